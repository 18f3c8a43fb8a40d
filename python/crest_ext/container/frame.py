"""What every version of a file starts with."""

from __future__ import annotations

import struct
from typing import BinaryIO

from crest_ext.container import version1, version2
from crest_ext.container.fields import refuse
from crest_ext.container.index import Index

MAGIC = b"\x89CREST\r\n"  # A byte that is not ASCII and a line end: a transfer in text mode breaks it.
HEADER = struct.Struct("<8sII")  # magic, CRC-32 of what follows it, version
VERSION = 2
READERS = {1: version1.read, 2: version2.read}

FOREIGN = {
    b"PK": "a zip archive, as torch.save writes",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x1f\x8b": "a gzip file",
}


def read_index(file: BinaryIO, size: int, name: str) -> Index:
    """Parse and check everything but the payloads of a file of `size` bytes; every stream then lies inside the file."""
    where = f"{name}: header"
    file.seek(0)
    header = file.read(HEADER.size)
    if header[: len(MAGIC)] != MAGIC:
        foreign = next((f": this is {what}" for prefix, what in FOREIGN.items() if header.startswith(prefix)), "")
        if header[8:9] == b"{":
            foreign = ": this looks like a safetensors file"
        cut = ": the file is cut off" if header and MAGIC.startswith(header) else foreign
        refuse(where, f"a .crest file must start with {MAGIC!r}, got {header[: len(MAGIC)]!r}{cut}")
    if len(header) < HEADER.size:
        refuse(where, f"must have {HEADER.size} bytes, got {len(header)}: the file is cut off")
    _, _, version = HEADER.unpack(header)
    if version > VERSION:
        refuse(where, f"version must be at most {VERSION}, got {version}: a newer crest_ext wrote it")
    if version < 1:
        refuse(where, f"version must be at least 1, got {version}")
    return READERS[version](file, size, name)
