"""The index of version 1: one stream a tensor, each described in one row. It is read, but no longer written."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from crest_ext.container.fields import Cursor, refuse
from crest_ext.container.index import (
    Entry,
    Index,
    Stream,
    check_codec,
    check_rank,
    check_shape,
    check_stream,
    dtype_of,
)

HEADER = struct.Struct("<8sIIQ")  # magic, CRC-32 of what follows up to the payloads, version, bytes of the index

Value = TypeVar("Value")


def read(file: BinaryIO, size: int, name: str) -> Index:
    """Parse and check header and index of a file that starts with the magic and says that its version is 1."""
    file.seek(0)
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        refuse(f"{name}: header", f"must have {HEADER.size} bytes, got {len(header)}: the file is cut off")
    _, crc, _, length = HEADER.unpack(header)
    if length > size - HEADER.size:
        refuse(f"{name}: header", f"index must lie in the {size - HEADER.size} bytes left, got {length} bytes")
    body = file.read(length)
    if zlib.crc32(header[12:] + body) != crc:
        refuse(f"{name}: index", "CRC-32 must match: the file is damaged")
    cursor = Cursor(body, f"{name}: index")
    metadata = _table(cursor, "metadata key", 2, lambda key: cursor.text(f"metadata {key!r}"))
    offset = HEADER.size + length

    def entry(key: str) -> Entry:
        nonlocal offset
        read = _entry(cursor, key, offset, size)
        offset += read.length
        return read

    entries = _table(cursor, "tensor name", 9, entry)
    cursor.end()
    if offset != size:
        refuse(f"{name}: end", f"the file must end after the last payload, at {offset} bytes, got {size} bytes")
    return Index(entries, tuple(entry.streams[0] for entry in entries.values()), metadata, 1)


def _table(cursor: Cursor, what: str, smallest: int, value: Callable[[str], Value]) -> dict[str, Value]:
    count = cursor.varint(f"number of {what}s", cursor.left // smallest)
    table: dict[str, Value] = {}
    last = b""
    for i in range(count):
        key = cursor.text(what)
        if i and key.encode() <= last:
            refuse(cursor.where, f"{what}s must be sorted and differ, got {key!r} after {last.decode()!r}")
        last = key.encode()
        table[key] = value(key)
    return table


def _entry(cursor: Cursor, name: str, offset: int, size: int) -> Entry:
    what = f"tensor {name!r}"
    where = f"{cursor.where}: {what}"
    number, codec, rank = cursor.take(3, what)
    dtype = dtype_of(number, where)
    check_codec(codec, where)
    check_rank(rank, where)
    shape = tuple(cursor.varint(f"{what}: size") for _ in range(rank))
    length = cursor.varint(f"{what}: length")
    (crc,) = struct.unpack("<I", cursor.take(4, what))
    check_shape(shape, dtype, where)
    stream = check_stream(Stream(dtype, codec, math.prod(shape), length, crc, offset), size, where)
    return Entry(name, dtype, shape, (stream,))
