"""How the bytes of elements become a payload, and back. See docs/format.md.

The sparse codec is only read: rans makes smaller payloads.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crest_ext import _C
from crest_ext.container import mixed, scaled
from crest_ext.container.fields import Cursor, varint
from crest_ext.container.index import DEFLATED, EXPANSION, MIXED, MIXED_EXPANSION, RANS, RAW, SCALED, SPARSE, Stream

Bytes = NDArray[np.uint8]
LARGE = 1 << 20  # bytes, from which on no time is spent on trying
SLOW = 0.99  # A payload that decodes ten times as slowly has to be so much smaller.
LOOK = 1 << 15  # elements: their planes are as long as deflate's memory


def encode(*tensors: Tensor) -> tuple[int, bytes | memoryview]:
    """The smallest payload of the elements of tensors of one dtype: its codec and its bytes."""
    tensor, columns = joined(tensors)
    if not tensor.numel():
        return RAW, b""
    data, coded = _coded(tensor, columns)
    itemsize = tensor.dtype.itemsize
    if tensor.dtype == torch.bool:
        data = np.packbits(data, bitorder="little")
    choices: list[tuple[int, bytes | memoryview]] = [(RAW, data.data)]
    # A stream may not be larger than EXPANSION times its payload. Told of rows that are none, the coder does worse.
    while data.nbytes > EXPANSION * len(coded[0][1]) > data.nbytes // 4 and columns % 2 == 0:
        columns //= 2
        coded = _coded(tensor, columns)[1]
    choices += [(codec, payload) for codec, payload in coded if data.nbytes <= EXPANSION * len(payload)]
    # Deflate finds repeats, which models of single values do not; a quick look at the start says whether there are any.
    start = _shuffle(data[: LOOK * itemsize], itemsize)
    quick = len(zlib.compress(start.data, 1)) * data.nbytes / start.nbytes
    if quick < min(len(payload) for _, payload in choices):
        choices.append((DEFLATED, _deflate(_shuffle(data, itemsize))))
    best = min(choices, key=lambda choice: len(choice[1]))
    payload = mixed.encode(tensors)
    return (MIXED, payload) if payload and pays(tensors, len(payload), len(best[1])) else best


def pays(tensors: Sequence[Tensor], size: int, other: int) -> bool:
    """Whether a mixed payload of `size` bytes is worth its time beside another, and a reader accepts it."""
    numel, itemsize = sum(t.numel() for t in tensors), tensors[0].dtype.itemsize
    return size < SLOW * other and numel <= min(MIXED_EXPANSION, EXPANSION // itemsize) * size


def estimate(*tensors: Tensor) -> tuple[int, int]:
    """A codec and about the bytes of its payload, at most so many, sooner than by all codecs; mixed is left out."""
    tensor, columns = joined(tensors)
    if not tensor.numel():
        return RAW, 0
    data, coded = _coded(tensor, columns)
    sizes = [(RAW, data.nbytes), *((codec, len(payload)) for codec, payload in coded)]
    return min(sizes, key=lambda size: size[1])


def joined(tensors: Sequence[Tensor]) -> tuple[Tensor, int]:
    """The elements of several tensors, one after another, and the columns in which they are alike."""
    if len(tensors) == 1:
        return tensors[0], row(tensors[0])
    flat = torch.cat([t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in tensors])  # in any dtype
    return flat.view(tensors[0].dtype), math.gcd(*(row(t) for t in tensors)) or 1


def _coded(tensor: Tensor, columns: int) -> tuple[Bytes, list[tuple[int, bytes]]]:
    """The bytes of the elements, and payloads of entropy-coded ones."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data: Bytes = flat.view(torch.uint8).numpy()
    payloads = [(RANS, _C.encode_tensor(data, _kind(tensor.dtype), tensor.dtype.itemsize, columns))]
    if found := scaled.factor(flat):
        payloads.append((SCALED, scaled.encode(*found, columns)))
    return data, payloads


def row(tensor: Tensor) -> int:
    """Elements of one row: what an index into the first dimension selects."""
    return tensor.numel() // max(tensor.shape[0], 1) if tensor.dim() > 1 else tensor.numel()


def decode(stream: Stream, payload: bytearray | memoryview, out: Tensor, where: str) -> None:
    """Write the elements of a payload whose CRC matches to `out`: (numel,); dtype of the stream."""
    if stream.numel == 0:
        return
    if stream.codec == RANS:
        scaled.rans(payload, out, _kind(stream.dtype), where)
        return
    if stream.codec == SCALED:
        scaled.decode(payload, out, where)
        return
    if stream.codec == MIXED:
        mixed.decode(payload, out, where)
        return
    data: bytearray | memoryview | Bytes = payload
    itemsize = 1 if stream.dtype == torch.bool else stream.dtype.itemsize
    if stream.codec == DEFLATED:
        data = _unshuffle(_inflate(payload, stream.nbytes, where, "values", exact=True), itemsize)
    elif stream.codec == SPARSE:
        data = _decode_sparse(stream, bytes(payload), where)
    found = np.frombuffer(data, np.uint8)
    if stream.dtype == torch.bool:
        bits = np.unpackbits(found, bitorder="little")
        if bits[stream.numel :].any():
            raise ValueError(f"{where}: bits after the last bool must be 0")
        found = bits[: stream.numel]
    view: Bytes = out.view(torch.uint8).numpy()
    view[:] = found


def _kind(dtype: torch.dtype) -> _C.Kind:
    return "bool" if dtype == torch.bool else "float" if dtype.is_floating_point else "int"


def _shuffle(data: Bytes, itemsize: int) -> Bytes:
    """First bytes of all values, then all second bytes, ...: exponents stand beside exponents."""
    return np.ascontiguousarray(data.reshape(-1, itemsize).T)


def _unshuffle(planes: bytes, itemsize: int) -> Bytes:
    data: Bytes = np.frombuffer(planes, np.uint8).reshape(itemsize, -1).T.copy()  # A copy can be written to.
    return data.reshape(-1)


def _deflate(data: Bytes) -> bytes:
    """The shortest of three ways to deflate; of much data, the one that finds most repeats."""
    ways = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE, zlib.Z_HUFFMAN_ONLY)
    return min((_deflate_by(way, data) for way in (ways if data.nbytes <= LARGE else ways[:1])), key=len)


def _deflate_by(way: int, data: Bytes) -> bytes:
    # No header and no checksum (negative window): the index has one.
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, way)
    return packer.compress(data.data) + packer.flush()


def _inflate(data: bytes | bytearray | memoryview, limit: int, where: str, what: str, *, exact: bool) -> bytes:
    """Decompress at most `limit` bytes: what a stream declares or would grow to is never allocated."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(f"{where}: {what} must be a deflate stream: {error}") from None
    if len(out) > limit or (exact and len(out) != limit):
        raise ValueError(f"{where}: {what} must inflate to {'' if exact else 'at most '}{limit} bytes")
    if not unpacker.eof:
        raise ValueError(f"{where}: {what} must be a whole deflate stream, got one that is cut off")
    if unpacker.unused_data:
        raise ValueError(f"{where}: {what} must end with its stream, got {len(unpacker.unused_data)} more bytes")
    return out


def _decode_sparse(stream: Stream, payload: bytes, where: str) -> Bytes:
    itemsize = stream.dtype.itemsize
    cursor = Cursor(payload, where)
    count = cursor.varint("number of values", stream.numel)
    packed = cursor.take(cursor.varint("length of positions"), "positions")
    values = cursor.take(cursor.left, "values")
    # Values first: they bound the count by what the payload holds.
    kept = _unshuffle(_inflate(values, count * itemsize, where, "values", exact=True), itemsize).view(f"<u{itemsize}")
    if not kept.all():
        raise ValueError(f"{where}: values must not be zero")
    longest = len(varint(stream.numel - 1))
    gaps = _unvarints(_inflate(packed, count * longest, where, "positions", exact=False), count, longest, where)
    positions = np.cumsum(gaps + 1) - 1
    # The sum of gaps, each below 2**62, cannot pass 2**63 without a negative number on the way.
    if count and (gaps.max() >= stream.numel or positions.min() < 0 or positions[-1] >= stream.numel):
        raise ValueError(f"{where}: positions must be below {stream.numel}, got {int(positions.max())}")
    words = np.zeros(stream.numel, f"<u{itemsize}")
    words[positions] = kept
    return words.view(np.uint8)


def _unvarints(data: bytes, count: int, longest: int, where: str) -> NDArray[np.int64]:
    """LEB128 of many values: exactly `count` of at most `longest` bytes, in the one shortest form."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if len(ends) != count or (len(raw) and raw[-1] >= 0x80):
        raise ValueError(f"{where}: positions must be {count} varints, got {len(ends)}")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[:count]
    lengths = ends - starts + 1
    if lengths.max(initial=0) > longest:
        raise ValueError(f"{where}: positions must have at most {longest} bytes, got {int(lengths.max())}")
    if (raw[ends][lengths > 1] == 0).any():
        raise ValueError(f"{where}: positions must be varints of the fewest bytes")
    values = np.zeros(count, np.int64)
    for k in range(int(lengths.max(initial=0))):
        some = lengths > k
        values[some] |= (raw[starts[some] + k] & 0x7F).astype(np.int64) << 7 * k
    return values
