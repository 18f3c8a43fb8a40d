"""Files of named tensors."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from crest_ext.container import writer
from crest_ext.container.reader import Reader, StrPath, safe_open


def save_file(tensors: Mapping[str, Tensor], path: StrPath, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to one file, each with the codec that makes it smallest; the same bytes every time.

    The file appears whole or not at all: a file that was there before survives any failure. -0.0 is stored as what it
    is: mask with `torch.where(mask, weight, 0)` or `materialize`, since `weight * mask` leaves a -0.0 for half of the
    dropped weights and a file that has to say where. Runs on `torch.get_num_threads()` threads, at most 4, with the
    same bytes; beside the tensors it takes at most 64 MB of memory.

    Args:
        tensors: strided tensors of any shape and device; every dtype but the complex and quantised ones.
        path: of the file; its folder exists.
        metadata: text to store beside the tensors.

    Raises:
        ValueError: a name, tensor or metadata is not as above.
        OSError: the file cannot be written.
    """
    writer.check(tensors, metadata, "save_file")
    writer.replace(Path(path), lambda file: writer.write(file, tensors, metadata or {}))


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes that `save_file` writes."""
    writer.check(tensors, metadata, "save")
    file = io.BytesIO()
    writer.write(file, tensors, metadata or {})
    return file.getvalue()


def load_file(path: StrPath, device: str | torch.device = "cpu", max_bytes: int | None = None) -> dict[str, Tensor]:
    """Read all tensors of a file, bit for bit as they were saved.

    Args:
        path: of the file.
        device: of the result.
        max_bytes: refuse a file whose tensors have more bytes than this; without it, a tensor is at most 1032 times
            its bytes in the file.

    Raises:
        ValueError: the file is missing, damaged, cut off, foreign or of a newer version. The message names the file,
            the section and the rule.
    """
    with safe_open(path, device=device) as file:
        return file.all(max_bytes)


def load(data: bytes, max_bytes: int | None = None) -> dict[str, Tensor]:
    """`load_file` of bytes."""
    return Reader(io.BytesIO(data), len(data), "<bytes>").all(max_bytes)
