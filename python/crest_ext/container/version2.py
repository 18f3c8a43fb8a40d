"""The index of version 2, after the payloads: columns of fields, deflated, with tensors apart from streams."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

from crest_ext.container.fields import MAX_TEXT, Cursor, refuse, text, varint
from crest_ext.container.index import (
    DTYPE_IDS,
    Entry,
    Index,
    Stream,
    check_codec,
    check_rank,
    check_shape,
    check_stream,
    dtype_of,
)

START = 16  # bytes before the first payload: magic, CRC-32 of all that follows it, version
END = struct.Struct("<II")  # bytes of the deflated index; CRC-32 of the index and of these four bytes
CONTINUES = 0x80  # in a codec's byte: more elements of the tensor in the stream before
LONGEST = 255  # bytes that a name takes from the one before it
RATIO, LARGEST = 64, 1 << 26  # An index inflates to at most so many times its bytes, and to at most so many bytes.
# What deflate may refer to before there is anything: names as networks have them.
WORDS = (
    b"embeddings.attention.classifier.features.downsample.1.running_var.num_batches_tracked.running_mean.layers.blocks"
    b".conv3.bn3.bn2.conv2.layer1.0.bn1.conv1.biasip2.biasfc2.biasip1.biasfc1.biasconv2.biasip1.weightfc1.weightconv1"
    b".weight"
)


def write(
    shapes: Mapping[str, tuple[int, ...]],
    numbers: Mapping[str, int],
    streams: Sequence[Stream],
    continued: Sequence[int],
    metadata: Mapping[str, str],
) -> bytes:
    """All that stands after the payloads.

    Args:
        shapes: of the tensors, by name, in the order of the bytes of the names.
        numbers: which is the first stream of each.
        streams: in the order of the file.
        continued: of each stream, how many elements it adds to the tensor of the stream before; else 0.
        metadata: pairs of texts.
    """
    parts = [varint(len(metadata))]
    parts += [text(key) + text(metadata[key]) for key in sorted(metadata, key=str.encode)]
    parts.append(varint(len(shapes)))
    last = b""
    for name in shapes:
        data = name.encode()
        shared = _shared(last, data)
        parts += [bytes([shared]), varint(len(data) - shared), data[shared:]]
        last = data
    parts.append(bytes(len(shape) for shape in shapes.values()))
    parts += [varint(size) for shape in shapes.values() for size in shape]
    parts += [varint(numbers[name]) for name in shapes]
    parts.append(varint(len(streams)))
    parts.append(bytes(DTYPE_IDS[stream.dtype] for stream in streams))
    parts.append(bytes(s.codec | CONTINUES * (more > 0) for s, more in zip(streams, continued, strict=True)))
    parts += [varint(more) for more in continued if more]
    parts += [varint(stream.length) for stream in streams]
    parts += [struct.pack("<I", stream.crc) for stream in streams]
    body = b"".join(parts)
    if len(body) > LARGEST:
        raise ValueError(f"save: index must have at most {LARGEST} bytes, got {len(body)}: too many names")
    packed = _deflate(body, 9)
    if len(body) > RATIO * len(packed):
        packed = _deflate(body, 0)
    size = struct.pack("<I", len(packed))
    return packed + size + struct.pack("<I", zlib.crc32(packed + size))


def _shared(a: bytes, b: bytes) -> int:
    count = 0
    while count < min(len(a), len(b), LONGEST) and a[count] == b[count]:
        count += 1
    return count


def _deflate(data: bytes, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, WORDS)
    return packer.compress(data) + packer.flush()


def read(file: BinaryIO, size: int, name: str) -> Index:
    """Parse and check all but the payloads of a file that starts with the magic and says that its version is 2."""
    where = f"{name}: index"
    if size < START + END.size:
        refuse(f"{name}: end", f"the file must have at least {START + END.size} bytes, got {size}: it is cut off")
    file.seek(size - END.size)
    end = file.read(END.size)
    length, crc = END.unpack(end)
    stop = size - END.size - length  # of the payloads
    if stop < START:
        refuse(where, f"must lie in the {size - END.size - START} bytes before the end, got {length} bytes")
    file.seek(stop)
    packed = file.read(length)
    if zlib.crc32(packed + end[:4]) != crc:
        refuse(where, "CRC-32 must match: the file is damaged or cut off")
    return _parse(Cursor(_inflate(packed, where), where), stop, packed + end, name)


def _inflate(packed: bytes, where: str) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS, zdict=WORDS)
    limit = min(RATIO * len(packed), LARGEST)
    try:
        body = unpacker.decompress(packed, limit + 1)
    except zlib.error as error:
        refuse(where, f"must be a deflate stream: {error}")
    if len(body) > limit:
        refuse(where, f"must inflate to at most {limit} bytes")
    if not unpacker.eof or unpacker.unused_data:
        refuse(where, "must be one whole deflate stream and nothing after it")
    return body


def _parse(cursor: Cursor, stop: int, end: bytes, name: str) -> Index:
    where = cursor.where
    metadata = dict(_metadata(cursor))
    names = list(_names(cursor))
    ranks = cursor.take(len(names), "ranks")
    for rank, key in zip(ranks, names, strict=True):
        check_rank(rank, f"{where}: tensor {key!r}")
    shapes = [tuple(cursor.varint(f"tensor {n!r}: size") for _ in range(r)) for n, r in zip(names, ranks, strict=True)]
    numbers = [cursor.varint(f"tensor {n!r}: stream") for n in names]
    count = cursor.varint("number of streams", cursor.left // 7)  # of at least so many bytes each
    dtypes = [dtype_of(d, f"{where}: stream {i}") for i, d in enumerate(cursor.take(count, "dtypes"))]
    codecs = cursor.take(count, "codecs")
    more = [cursor.varint(f"stream {i}: elements") if codec & CONTINUES else 0 for i, codec in enumerate(codecs)]
    lengths = [cursor.varint(f"stream {i}: length") for i in range(count)]
    crcs = struct.unpack(f"<{count}I", cursor.take(4 * count, "CRCs"))
    cursor.end()
    streams: list[Stream] = []
    entries: dict[str, Entry] = {}
    offset = START
    for first, tensors in _members(numbers, names, codecs, where).items():
        last = first
        while last + 1 < count and codecs[last + 1] & CONTINUES:
            last += 1
        dtype, rest = dtypes[first], 0
        for t in tensors:
            check_shape(shapes[t], dtype, f"{where}: tensor {names[t]!r}")
            entries[names[t]] = Entry(names[t], dtype, shapes[t], (), rest)
            rest += math.prod(shapes[t])
        if last > first:
            if len(tensors) > 1:
                refuse(where, f"stream {last} must continue one tensor, got {len(tensors)}")
            rest -= sum(more[first + 1 : last + 1])
            if rest < 1 or 0 in more[first + 1 : last + 1] or any(d != dtype for d in dtypes[first : last + 1]):
                refuse(where, f"streams {first} to {last} must share the elements of a tensor of one dtype")
        for k in range(first, last + 1):
            codec = check_codec(codecs[k] & ~CONTINUES, f"{where}: stream {k}")
            stream = Stream(dtype, codec, more[k] or rest, lengths[k], crcs[k], offset)
            streams.append(check_stream(stream, stop, f"{where}: stream {k}"))
            offset += stream.length
        for t in tensors:
            entries[names[t]] = replace(entries[names[t]], streams=tuple(streams[first:]))
    if offset != stop:
        refuse(f"{name}: end", f"payloads must end where the index starts, at {stop} bytes, got {offset} bytes")
    return Index({n: entries[n] for n in names}, tuple(streams), metadata, 2, end)


def _metadata(cursor: Cursor) -> Iterator[tuple[str, str]]:
    last = b""
    for i in range(cursor.varint("number of metadata keys", cursor.left // 2)):
        key = cursor.text("metadata key")
        if i and key.encode() <= last:
            refuse(cursor.where, f"metadata keys must be sorted and differ, got {key!r:.80} after {last!r:.80}")
        last = key.encode()
        yield key, cursor.text(f"metadata {key!r:.80}")


def _names(cursor: Cursor) -> Iterator[str]:
    last = b""
    for i in range(cursor.varint("number of tensors", cursor.left // 4)):
        shared = cursor.take(1, "tensor name")[0]
        data = last[:shared] + cursor.take(cursor.varint("length of tensor name", MAX_TEXT), "tensor name")
        name = cursor.utf8(data, "tensor name")
        if len(data) > MAX_TEXT:
            refuse(cursor.where, f"tensor name must have at most {MAX_TEXT} bytes, got {len(data)}")
        if i and data <= last:
            refuse(cursor.where, f"tensor names must be sorted and differ, got {name!r:.80} after {last!r:.80}")
        if shared != _shared(last, data):
            refuse(cursor.where, f"tensor name {name!r:.80} must share {_shared(last, data)} bytes, got {shared}")
        yield name
        last = data


def _members(numbers: Sequence[int], names: Sequence[str], codecs: bytes, where: str) -> dict[int, list[int]]:
    """The tensors of each stream that does not continue another, which are numbered as names first need them."""
    starts = [k for k, codec in enumerate(codecs) if not codec & CONTINUES]
    members: dict[int, list[int]] = {}
    for t, number in enumerate(numbers):
        if number not in members and (len(members) == len(starts) or number != starts[len(members)]):
            rule = f"one of before or {starts[len(members)]}" if len(members) < len(starts) else "one of before"
            refuse(where, f"tensor {names[t]!r}: stream must be {rule}, got {number}")
        members.setdefault(number, []).append(t)
    if len(members) < len(starts) or (codecs and codecs[0] & CONTINUES):
        refuse(where, f"every stream must have a tensor, got {len(members)} of {len(starts)}")
    return members
