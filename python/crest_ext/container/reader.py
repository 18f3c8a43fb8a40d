"""A checked file and the tensors in it, read one at a time or all at once."""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from crest_ext.container import codecs
from crest_ext.container.frame import HEADER, read_index
from crest_ext.container.index import Entry, Stream
from crest_ext.container.parallel import in_order, workers

StrPath = str | os.PathLike[str]


class Reader:
    """What `safe_open` gives: names, metadata, tensors and parts of them."""

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        name: str,
        device: str | torch.device = "cpu",
        view: memoryview | None = None,
    ) -> None:
        self._file, self._name, self._device, self._view = file, name, device, view
        self._index = read_index(file, size, name)
        self._labels: dict[Stream, str] = {}
        for entry in self._index.entries.values():
            for stream in entry.streams:
                self._labels.setdefault(stream, f"{name}: tensor {entry.name!r}")
        self._last: tuple[Stream, Tensor] | None = None  # the shared stream that was decoded last

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
        """One tensor: its streams are read and checked, and nothing else of the file."""
        entry = self.entry(name)
        return self._elements(entry, 0, entry.numel).reshape(entry.shape).to(self._device)

    def get_slice(self, name: str) -> Slice:
        """A tensor to index: of one in several streams, those that hold the rows asked for are read and checked."""
        return Slice(self, self.entry(name))

    def rows(self, entry: Entry, begin: int, end: int) -> Tensor:
        """tensor[begin:end]"""
        each = entry.numel // entry.shape[0]
        flat = self._elements(entry, begin * each, end * each)
        return flat.reshape(end - begin, *entry.shape[1:]).to(self._device)

    def all(self, max_bytes: int | None) -> dict[str, Tensor]:
        """All tensors, read in one pass and decoded by threads; the whole file's checksum is checked."""
        entries = self._index.entries
        total = sum(entry.nbytes for entry in entries.values())
        if max_bytes is not None and total > max_bytes:
            raise ValueError(
                f"{self._name}: index: tensors must have at most {max_bytes} bytes (max_bytes), got {total}"
            )
        flats: dict[tuple[Stream, ...], Tensor] = {}
        parts: dict[Stream, Tensor] = {}
        for entry in entries.values():
            if entry.streams not in flats:
                sizes = [stream.numel for stream in entry.streams]
                flat = flats[entry.streams] = torch.empty(sum(sizes), dtype=entry.dtype)
                parts |= zip(entry.streams, flat.split(sizes), strict=True)
        for _ in in_order(lambda job: self._decode(job[0], job[1], parts[job[0]]), self._payloads(), workers()):
            pass
        tensors = {}
        for name, entry in entries.items():
            flat = flats[entry.streams]
            if flat.numel() != entry.numel:  # A tensor does not keep its neighbours in memory.
                flat = flat[entry.start : entry.start + entry.numel].clone()
            tensors[name] = flat.reshape(entry.shape).to(self._device)
        return tensors

    def _payloads(self) -> Iterator[tuple[Stream, bytearray | memoryview]]:
        """Of the whole file, in its order."""
        self._file.seek(0)
        header = self._file.read(HEADER.size)
        _, expected, _ = HEADER.unpack(header)
        crc = zlib.crc32(header[12:])
        for stream in self._index.streams:
            payload = self._payload(stream)
            crc = zlib.crc32(payload, crc)
            yield stream, payload
        if self._index.version > 1 and zlib.crc32(self._index.end, crc) != expected:
            raise ValueError(f"{self._name}: header: CRC-32 of the file must match: it is damaged")

    def _payload(self, stream: Stream) -> bytearray | memoryview:
        payload: bytearray | memoryview
        if self._view is not None:
            payload = self._view[stream.offset : stream.offset + stream.length]
        else:
            payload = bytearray(stream.length)
            self._file.seek(stream.offset)
            if self._file.readinto(payload) != stream.length:  # type: ignore[attr-defined]
                rule = f"payload must have {stream.length} bytes: the file is cut off"
                raise ValueError(f"{self._labels[stream]}: {rule}")
        if zlib.crc32(payload) != stream.crc:
            raise ValueError(f"{self._labels[stream]}: CRC-32 must match: the file is damaged")
        return payload

    def _decode(self, stream: Stream, payload: bytearray | memoryview, out: Tensor) -> None:
        codecs.decode(stream, payload, out, self._labels[stream])

    def _elements(self, entry: Entry, begin: int, end: int) -> Tensor:
        """A tensor's elements, in row-major order."""
        out = torch.empty(end - begin, dtype=entry.dtype)
        begin, end, at = begin + entry.start, end + entry.start, 0
        for stream in entry.streams:
            low, high = max(begin, at), min(end, at + stream.numel)
            if low < high:
                part = out[low - begin : high - begin]
                if high - low == stream.numel:
                    self._decode(stream, self._payload(stream), part)
                else:
                    part.copy_(self._whole(stream)[low - at : high - at])
            at += stream.numel
        return out

    def _whole(self, stream: Stream) -> Tensor:
        if self._last is None or self._last[0] is not stream:
            out = torch.empty(stream.numel, dtype=stream.dtype)
            self._decode(stream, self._payload(stream), out)
            self._last = stream, out
        return self._last[1]


class Slice:
    """Rows of a tensor in a file: `file.get_slice("weight")[10:20, :5]`."""

    def __init__(self, reader: Reader, entry: Entry) -> None:
        self._reader, self._entry = reader, entry

    def get_shape(self) -> list[int]:
        return list(self._entry.shape)

    def get_dtype(self) -> torch.dtype:
        return self._entry.dtype

    def __getitem__(self, index: Any) -> Tensor:
        """As of a tensor. A first index that is an int or a slice reads the rows between its ends alone."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        shape = self._entry.shape
        if not shape or not isinstance(first, int | slice) or isinstance(first, bool) or not self._entry.numel:
            return self._reader.get_tensor(self._entry.name)[index]
        if isinstance(first, slice):
            begin, end, step = first.indices(shape[0])
            key: tuple[Any, ...] = (slice(None, None, step), *rest)
            return self._reader.rows(self._entry, begin, max(begin, end))[key]
        if not -shape[0] <= first < shape[0]:
            raise IndexError(f"index must be in [{-shape[0]}, {shape[0]}), got {first}")
        row, key = first % shape[0], (0, *rest)
        return self._reader.rows(self._entry, row, row + 1)[key]


class safe_open(contextlib.AbstractContextManager[Reader]):  # noqa: N801 (the name safetensors gave it)
    """`with safe_open(path) as file`: keys(), metadata(), get_tensor(name), get_slice(name)[rows].

    Args:
        path: of the file.
        framework: "pt".
        device: of the tensors.
        mmap: read through a memory map. Saves a copy on a local disk; on a network volume, or where others cut files
            short in place, a failing page kills the process instead of raising an error, so the default is to read.

    Raises:
        ValueError: as `load_file`; header and index are checked at once, a payload when a tensor needs it.
    """

    def __init__(
        self, path: StrPath, framework: str = "pt", device: str | torch.device = "cpu", mmap: bool = False
    ) -> None:
        if framework != "pt":
            raise ValueError(f"safe_open: framework must be 'pt', got {framework!r}")
        self._path, self._device, self._mmap = Path(path), device, mmap
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Reader:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self._path.open("rb"))
            except OSError as error:
                raise ValueError(f"{self._path}: file must exist and be readable: {error.strerror}") from None
            size, view = os.fstat(file.fileno()).st_size, None
            if self._mmap and size:
                view = stack.enter_context(_mapped(file))
            reader = Reader(file, size, str(self._path), self._device, view)
            self._open = stack.pop_all()
            return reader

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._open.close()


@contextlib.contextmanager
def _mapped(file: BinaryIO) -> Iterator[memoryview]:
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(BufferError), pages, memoryview(pages) as view:  # A traceback may still hold a part:
        yield view  # then the pages go with it.
