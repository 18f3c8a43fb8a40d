"""The frame of a file: header and index. See docs/format.md."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn, TypeVar

import torch

MAGIC = b"\x89CREST\r\n"  # A byte that is not ASCII and a line end: a transfer in text mode breaks it.
VERSION = 1
HEADER = struct.Struct("<IIQ")  # CRC-32 of all that follows it up to the payloads, version, bytes of the index.

DTYPES = {
    0: torch.float32,
    1: torch.float64,
    2: torch.float16,
    3: torch.bfloat16,
    4: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    8: torch.uint8,
    9: torch.uint16,
    10: torch.uint32,
    11: torch.uint64,
    12: torch.bool,
    13: torch.float8_e4m3fn,
    14: torch.float8_e5m2,
}
DTYPE_IDS = {dtype: number for number, dtype in DTYPES.items()}
RAW, DEFLATED, SPARSE, RANS = range(4)
CODECS = {RAW: "raw", DEFLATED: "deflated", SPARSE: "sparse", RANS: "rans"}

EXPANSION = 1032  # What deflate can reach; rans could do more. No tensor may be larger than this times its payload.
MAX_TEXT = 1 << 16
MAX_RANK = 64

FOREIGN = {
    b"PK": "a zip archive, as torch.save writes",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x1f\x8b": "a gzip file",
}

Value = TypeVar("Value")


@dataclass(frozen=True)
class Entry:
    """One tensor as the index describes it: `length` bytes at `offset` of the file, in `codec`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    codec: int
    length: int
    crc: int
    offset: int = 0  # Not stored: payloads follow one another without a gap.

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes before the codec: a bool is one bit."""
        return -(-self.numel // 8) if self.dtype == torch.bool else self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Index:
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first, the top bit set where another byte follows."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _text(value: str) -> bytes:
    data = value.encode()
    return varint(len(data)) + data


def _refuse(where: str, rule: str) -> NoReturn:
    raise ValueError(f"{where}: {rule}")


class Cursor:
    """Reads fields from a buffer and never beyond it."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, n: int, what: str) -> bytes:
        if n > self.left:
            _refuse(self.where, f"{what} must lie in the {self.left} bytes left, got {n} bytes")
        self.at += n
        return self.data[self.at - n : self.at]

    def varint(self, what: str, limit: int = 1 << 62) -> int:
        value = 0
        for k in range(9):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << 7 * k
            if byte < 0x80:
                if k and not byte:
                    _refuse(self.where, f"{what} must be a varint of the fewest bytes")
                if value > limit:
                    _refuse(self.where, f"{what} must be at most {limit}, got {value}")
                return value
        _refuse(self.where, f"{what} must be a varint of at most 9 bytes")

    def text(self, what: str) -> str:
        data = self.take(self.varint(f"length of {what}", MAX_TEXT), what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            _refuse(self.where, f"{what} must be UTF-8")


def write_index(index: Index) -> bytes:
    """Header and index, all that stands before the payloads. Sorted: the order of the dicts does not matter."""
    parts = [varint(len(index.metadata))]
    parts += [_text(key) + _text(index.metadata[key]) for key in sorted(index.metadata, key=str.encode)]
    parts.append(varint(len(index.entries)))
    for name in sorted(index.entries, key=str.encode):
        entry = index.entries[name]
        parts += [_text(name), bytes([DTYPE_IDS[entry.dtype], entry.codec, len(entry.shape)])]
        parts += [varint(size) for size in entry.shape]
        parts += [varint(entry.length), struct.pack("<I", entry.crc)]
    body = b"".join(parts)
    tail = HEADER.pack(0, VERSION, len(body))[4:] + body
    return MAGIC + struct.pack("<I", zlib.crc32(tail)) + tail


def read_index(file: BinaryIO, size: int, name: str) -> Index:
    """Parse and check everything but the payloads of a file of `size` bytes; every entry then lies inside the file."""
    where = f"{name}: header"
    start = len(MAGIC) + HEADER.size
    header = file.read(start)
    if header[: len(MAGIC)] != MAGIC:
        foreign = next((f": this is {what}" for prefix, what in FOREIGN.items() if header.startswith(prefix)), "")
        if header[8:9] == b"{":
            foreign = ": this looks like a safetensors file"
        cut = ": the file is cut off" if header and MAGIC.startswith(header) else foreign
        _refuse(where, f"a .crest file must start with {MAGIC!r}, got {header[: len(MAGIC)]!r}{cut}")
    if len(header) < start:
        _refuse(where, f"must have {start} bytes, got {len(header)}: the file is cut off")
    crc, version, length = HEADER.unpack(header[len(MAGIC) :])
    if version > VERSION:
        _refuse(where, f"version must be at most {VERSION}, got {version}: a newer crest_ext wrote it")
    if length > size - start:
        _refuse(where, f"index must lie in the {size - start} bytes left, got {length} bytes")
    body = file.read(length)
    if zlib.crc32(header[len(MAGIC) + 4 :] + body) != crc:
        _refuse(f"{name}: index", "CRC-32 must match: the file is damaged")
    if version < 1:
        _refuse(where, f"version must be at least 1, got {version}")
    cursor = Cursor(body, f"{name}: index")
    metadata = _table(cursor, "metadata key", 2, lambda key: cursor.text(f"metadata {key!r}"))
    offset = start + length

    def entry(key: str) -> Entry:
        nonlocal offset
        read = _entry(cursor, key, offset, size)
        offset += read.length
        return read

    entries = _table(cursor, "tensor name", 9, entry)
    if cursor.left:
        _refuse(cursor.where, f"must end after the last tensor, got {cursor.left} more bytes")
    if offset != size:
        _refuse(f"{name}: end", f"the file must end after the last payload, at {offset} bytes, got {size} bytes")
    return Index(entries, metadata)


def _table(cursor: Cursor, what: str, smallest: int, value: Callable[[str], Value]) -> dict[str, Value]:
    count = cursor.varint(f"number of {what}s", cursor.left // smallest)
    table: dict[str, Value] = {}
    last = b""
    for i in range(count):
        key = cursor.text(what)
        if i and key.encode() <= last:
            _refuse(cursor.where, f"{what}s must be sorted and differ, got {key!r} after {last.decode()!r}")
        last = key.encode()
        table[key] = value(key)
    return table


def _entry(cursor: Cursor, name: str, offset: int, size: int) -> Entry:
    what = f"tensor {name!r}"
    dtype, codec, rank = cursor.take(3, what)
    if dtype not in DTYPES:
        _refuse(cursor.where, f"{what}: dtype must be one of 0 to {max(DTYPES)}, got {dtype}: from a newer crest_ext?")
    if codec not in CODECS:
        _refuse(cursor.where, f"{what}: codec must be one of 0 to {max(CODECS)}, got {codec}: from a newer crest_ext?")
    if rank > MAX_RANK:
        _refuse(cursor.where, f"{what}: rank must be at most {MAX_RANK}, got {rank}")
    shape = tuple(cursor.varint(f"{what}: size") for _ in range(rank))
    length = cursor.varint(f"{what}: length")
    if length > size - offset:
        _refuse(cursor.where, f"{what}: payload must lie in the {size - offset} bytes left, got {length} bytes")
    (crc,) = struct.unpack("<I", cursor.take(4, what))
    entry = Entry(name, DTYPES[dtype], shape, codec, length, crc, offset)
    if math.prod(s for s in shape if s) * entry.dtype.itemsize >= 1 << 62:
        _refuse(cursor.where, f"{what}: shape must have fewer than 2**62 bytes, got {shape}")
    if codec == RAW and length != entry.nbytes:
        _refuse(cursor.where, f"{what}: raw payload must have {entry.nbytes} bytes, got {length}")
    if codec == SPARSE and entry.dtype == torch.bool:
        _refuse(cursor.where, f"{what}: a bool tensor must not be sparse")
    if entry.nbytes > EXPANSION * length:
        _refuse(cursor.where, f"{what}: must be at most {EXPANSION} times its {length} bytes, got {entry.nbytes}")
    return entry
