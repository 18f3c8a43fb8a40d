"""Files of named tensors."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from crest_ext.container import codecs
from crest_ext.container.index import DTYPE_IDS, MAX_RANK, MAX_TEXT, Entry, Index, read_index, write_index

StrPath = str | os.PathLike[str]
Chunks = Sequence[bytes | memoryview]


def save_file(tensors: Mapping[str, Tensor], path: StrPath, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to one file, each with the codec that makes it smallest; the same bytes every time.

    The file appears whole or not at all: a file that was there before survives any failure. -0.0 is stored as what it
    is: mask with `torch.where(mask, weight, 0)` or `materialize`, since `weight * mask` leaves a -0.0 for half of the
    dropped weights and a file that has to say where.

    Args:
        tensors: strided tensors of any shape and device; every dtype but the complex and quantised ones.
        path: of the file; its folder exists.
        metadata: text to store beside the tensors.

    Raises:
        ValueError: a name, tensor or metadata is not as above.
        OSError: the file cannot be written.
    """
    _write(Path(path), _chunks(tensors, metadata, "save_file"))


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes that `save_file` writes."""
    return b"".join(_chunks(tensors, metadata, "save"))


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
        return file._all(max_bytes)


def load(data: bytes, max_bytes: int | None = None) -> dict[str, Tensor]:
    """`load_file` of bytes."""
    return Reader(io.BytesIO(data), len(data), "<bytes>")._all(max_bytes)


class Reader:
    """A checked index and the tensors behind it, read one at a time."""

    def __init__(self, file: BinaryIO, size: int, name: str, device: str | torch.device = "cpu") -> None:
        self._file, self._name, self._device = file, name, device
        self._index = read_index(file, size, name)

    def keys(self) -> list[str]:
        return list(self._index.entries)

    def metadata(self) -> dict[str, str]:
        return dict(self._index.metadata)

    def entry(self, name: str) -> Entry:
        """dtype, shape, codec and bytes of a tensor, without reading it."""
        if name not in self._index.entries:
            raise ValueError(f"{self._name}: tensor must be one of {', '.join(self.keys())}, got {name}")
        return self._index.entries[name]

    def get_tensor(self, name: str) -> Tensor:
        entry, where = self.entry(name), f"{self._name}: tensor {name!r}"
        payload = bytearray(entry.length)
        self._file.seek(entry.offset)
        if self._file.readinto(payload) != entry.length:  # type: ignore[attr-defined]
            raise ValueError(f"{where}: payload must have {entry.length} bytes: the file is cut off")
        if zlib.crc32(payload) != entry.crc:
            raise ValueError(f"{where}: CRC-32 must match: the file is damaged")
        return codecs.decode(entry, payload, where).to(self._device)

    def _all(self, max_bytes: int | None) -> dict[str, Tensor]:
        total = sum(entry.numel * entry.dtype.itemsize for entry in self._index.entries.values())
        if max_bytes is not None and total > max_bytes:
            raise ValueError(
                f"{self._name}: index: tensors must have at most {max_bytes} bytes (max_bytes), got {total}"
            )
        return {name: self.get_tensor(name) for name in self.keys()}


class safe_open(contextlib.AbstractContextManager[Reader]):  # noqa: N801 (the name safetensors gave it)
    """`with safe_open(path) as file`: file.keys(), file.metadata(), file.get_tensor(name)."""

    def __init__(self, path: StrPath, framework: str = "pt", device: str | torch.device = "cpu") -> None:
        if framework != "pt":
            raise ValueError(f"safe_open: framework must be 'pt', got {framework!r}")
        self._path, self._device = Path(path), device

    def __enter__(self) -> Reader:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise ValueError(f"{self._path}: file must exist and be readable: {error.strerror}") from None
        try:
            return Reader(self._file, os.fstat(self._file.fileno()).st_size, str(self._path), self._device)
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def _chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, op: str) -> Chunks:
    """The parts of a file in order."""
    for key, value in (metadata or {}).items():
        if not (_is_text(key) and _is_text(value)):
            raise ValueError(f"{op}: metadata must map str to str of at most {MAX_TEXT} bytes, got {key!r:.80}")
    entries: dict[str, Entry] = {}
    payloads: list[bytes | memoryview] = []
    for name, tensor in tensors.items():
        _check(name, tensor, op)
    for name in sorted(tensors, key=str.encode):
        codec, payload = codecs.encode(tensors[name])
        shape = tuple(tensors[name].shape)
        entries[name] = Entry(name, tensors[name].dtype, shape, codec, len(payload), zlib.crc32(payload))
        payloads.append(payload)
    return [write_index(Index(entries, dict(metadata or {}))), *payloads]


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


def _write(path: Path, chunks: Chunks) -> None:
    """Write beside the target, make it durable, then rename over it. A link stays a link to the new file."""
    target = path.resolve()
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
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
