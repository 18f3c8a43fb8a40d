"""Tensors to the bytes of a file, a stream at a time, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from crest_ext.container import codecs, version2
from crest_ext.container.fields import MAX_TEXT
from crest_ext.container.frame import HEADER, MAGIC, VERSION
from crest_ext.container.index import DTYPE_IDS, MAX_RANK, Stream
from crest_ext.container.parallel import in_order, workers
from crest_ext.container.pools import blocks, plan


def write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a whole file; of the payloads, only a few are in memory at a time. Arguments are checked."""
    threads = workers()
    pools = plan(tensors, threads)
    numbers: dict[str, int] = {}
    streams: list[Stream] = []
    continued: list[int] = []
    file.write(HEADER.pack(MAGIC, 0, VERSION))
    crc = zlib.crc32(struct.pack("<I", VERSION))

    def parts() -> Iterator[tuple[tuple[str, ...], int, list[Tensor]]]:
        for names in pools:
            if len(names) > 1:
                yield names, 0, [tensors[n] for n in names]
            else:
                for k, block in enumerate(blocks(tensors[names[0]])):
                    yield names, k, [block]

    def encode(part: tuple[tuple[str, ...], int, list[Tensor]]) -> tuple[tuple[str, ...], int, Stream, bytes]:
        names, k, some = part
        codec, payload = codecs.encode(*some)
        numel = sum(t.numel() for t in some)
        return names, k, Stream(some[0].dtype, codec, numel, len(payload), zlib.crc32(payload)), bytes(payload)

    for names, k, stream, payload in in_order(encode, parts(), threads):
        if k == 0:
            numbers |= dict.fromkeys(names, len(streams))
        streams.append(stream)
        continued.append(stream.numel if k else 0)
        file.write(payload)
        crc = zlib.crc32(payload, crc)
    shapes = {name: tuple(tensors[name].shape) for name in sorted(tensors, key=str.encode)}
    end = version2.write(shapes, numbers, streams, continued, metadata)
    file.write(end)
    file.seek(0)
    file.write(HEADER.pack(MAGIC, zlib.crc32(end, crc), VERSION))


def check(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, op: str) -> None:
    for key, value in (metadata or {}).items():
        if not (_is_text(key) and _is_text(value)):
            raise ValueError(f"{op}: metadata must map str to str of at most {MAX_TEXT} bytes, got {key!r:.80}")
    for name, tensor in tensors.items():
        _check(name, tensor, op)


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and len(value.encode()) <= MAX_TEXT
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _check(name: object, tensor: object, op: str) -> None:
    if not _is_text(name):
        raise ValueError(f"{op}: name must be a str of at most {MAX_TEXT} bytes, got {name!r:.80}")
    what = f"{op}: tensor {name!r}"
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{what} must be a Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise ValueError(f"{what} must be strided and hold data, got {tensor.layout} on {tensor.device}")
    if tensor.dtype not in DTYPE_IDS:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPE_IDS)
        raise ValueError(f"{what} must be {allowed}, got {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.dim() > MAX_RANK:
        raise ValueError(f"{what} must have at most {MAX_RANK} dimensions, got {tensor.dim()}")


def replace(path: Path, content: Callable[[BinaryIO], object]) -> None:
    """Write beside the target, make it durable, then rename over it. A link stays a link to the new file."""
    target = path.resolve()
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with _folder(target.parent) as folder:
        os.fsync(folder)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
