"""Augmented batches and an ensemble's logits for them, computed once for all students."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from crest_ext.augment import Augment
from crest_ext.methods import Ensemble


class CachedBatch(NamedTuple):
    """x: (n, 3, side, side) uint8, augmented; y: (n,) int64, the classes; z: (n, classes) float32, mean logits."""

    x: Tensor
    y: Tensor
    z: Tensor


class LogitCache:
    """Batches that every student sees alike and in the same order, with the logits of the very images they hold.

        cache = LogitCache(folder, images, labels, ensemble, passes=160)
        print(f"{cache.nbytes / 1e9:.1f} GB")
        cache.write()
        for x, y, z in cache: ...

    Each batch depends on nothing but the seed and its number, so a write that was interrupted, even killed, goes on
    after the last batch that is whole, and ends with the same bytes. The folder holds images.bin, logits.bin (a
    checksum, classes and logits a batch) and header.json, which says what they were made of.

    Args:
        folder: made if it is not there.
        images: (n, 3, side, side), uint8.
        labels: (n,), int64, the classes.
        teachers: takes augmented uint8 batches, on its own device.
        passes: over the images, each in an order of its own and without its last, smaller batch; 160 in the paper.
        batch_size: samples in a batch; the paper does not give it.
        augment: what is drawn for each image; the paper's by default.
        seed: of order and augmentation.
        classes: logits of a sample.

    Raises:
        ValueError: an argument is not as above, or the folder holds a cache of other images, labels, teachers or
            settings.

    Source: Urban et al., ICLR 2017, section 2: 160 passes over 40,000 images of CIFAR-10 are 20 GB.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        images: Tensor,
        labels: Tensor,
        teachers: Ensemble,
        *,
        passes: int = 160,
        batch_size: int = 128,
        augment: Augment | None = None,
        seed: int = 0,
        classes: int = 10,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(f"LogitCache: images must have rank 4 and be uint8, got {_kind(images)}")
        if labels.shape != (len(images),) or labels.dtype != torch.int64:
            rule = f"have shape ({len(images)},) and be int64"
            raise ValueError(f"LogitCache: labels must {rule}, got {_kind(labels)}")
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"LogitCache: batch_size must be 1 to the {len(images)} images, got {batch_size}")
        if passes < 1:
            raise ValueError(f"LogitCache: passes must be at least 1, got {passes}")
        self.folder, self.images, self.labels, self.teachers = Path(folder), images, labels, teachers
        self.batch_size, self.seed, self.classes = batch_size, seed, classes
        self.augment = augment or Augment()
        self.batches_per_pass = len(images) // batch_size
        self._length = passes * self.batches_per_pass
        self._image_bytes = batch_size * images[0].numel()
        self._record = np.dtype([("crc", "<u4"), ("y", "<i8", (batch_size,)), ("z", "<f4", (batch_size, classes))])
        settings = {"passes": passes, "batch_size": batch_size, "seed": seed, "classes": classes}
        self._header: dict[str, object] = {
            "format": 1,
            "images": _sha256(images),
            "labels": _sha256(labels),
            "teachers": _sha256_of_module(teachers),
            "augment": asdict(self.augment),
            **settings,
        }
        self._check_header()

    def __len__(self) -> int:
        """Batches in all."""
        return self._length

    @property
    def identity(self) -> str:
        """Of what it is made of: data, teachers and settings."""
        return hashlib.sha256(json.dumps(self._header, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pair of files, written or not."""
        return len(self) * (self._image_bytes + self._record.itemsize)

    def write(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Write what is not there yet; waits while another process does.

        Args:
            progress: called with the batches that are whole and those in all, at the start and after each.

        Raises:
            ValueError: the disk has no room for what is missing, or the teachers give other shapes; what is whole
                stays.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._path("header.json").exists():
            unfinished = self._path(f"header.json.{os.getpid()}")  # each writer's own: the same text, whoever is last
            unfinished.write_text(json.dumps(self._header, indent=1) + "\n")
            unfinished.replace(self._path("header.json"))
        with self._path("images.bin").open("ab") as images, self._path("logits.bin").open("ab") as logits:
            fcntl.flock(images, fcntl.LOCK_EX)
            done = len(self) if self._sizes() == (len(self), len(self), True) else self._whole()
            missing, free = self.nbytes // len(self) * (len(self) - done), shutil.disk_usage(self.folder).free
            if missing > free:
                raise ValueError(f"LogitCache: {self.folder} must have {missing:,} bytes free, got {free:,}")
            if progress:
                progress(done, len(self))
            images.truncate(done * self._image_bytes)  # of the batch that was being written
            logits.truncate(done * self._record.itemsize)
            for number in range(done, len(self)):
                x, record = self._make(number)
                for file, content in ((images, x.numpy()), (logits, record)):
                    file.write(content.tobytes())
                    file.flush()
                if progress:
                    progress(number + 1, len(self))

    def __iter__(self) -> Iterator[CachedBatch]:
        """All batches in order, from the mapped files.

        Raises:
            ValueError: the files are not there, cut short or too long, or a batch has not its checksum.
        """
        images, logits, exact = self._sizes()
        if (images, logits, exact) != (len(self), len(self), True):
            raise ValueError(
                f"LogitCache: {self.folder} must hold {len(self)} batches, got {min(images, logits)}"
                f"{'' if exact else ' and a part'}: call write() to go on"
            )
        for number, (x, record) in enumerate(self._mapped(len(self))):
            if _crc(number, x, record) != record["crc"]:
                raise ValueError(
                    f"LogitCache: batch {number} of {self.folder} must have the checksum {record['crc']:08x}, got "
                    f"{_crc(number, x, record):08x}: remove the folder and write it again"
                )
            pixels = torch.from_numpy(x.copy()).view(-1, *self.images.shape[1:])
            yield CachedBatch(pixels, torch.from_numpy(record["y"].copy()), torch.from_numpy(record["z"].copy()))

    def _make(self, number: int) -> tuple[Tensor, np.ndarray]:
        """A batch, by a draw that only the seed and its number decide."""
        epoch, place = divmod(number, self.batches_per_pass)
        order = torch.randperm(len(self.images), generator=_generator("order", self.seed, epoch))
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        x = self.augment(self.images[chosen], _generator("augment", self.seed, number)).contiguous()
        z = self.teachers(x.to(next(self.teachers.parameters()).device)).float().cpu()
        record = np.zeros((), self._record)
        if z.shape != record["z"].shape:
            raise ValueError(f"LogitCache: teachers must give shape {record['z'].shape}, got {tuple(z.shape)}")
        record["y"], record["z"] = self.labels[chosen].numpy(), z.numpy()
        record["crc"] = _crc(number, x.numpy(), record)
        return x, record

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _sizes(self) -> tuple[int, int, bool]:
        """Whole batches in each file, and whether there is nothing besides."""
        paths = (self._path("images.bin"), self._image_bytes), (self._path("logits.bin"), self._record.itemsize)
        (a, a_rest), (b, b_rest) = (divmod(p.stat().st_size if p.exists() else 0, size) for p, size in paths)
        return a, b, not (a_rest or b_rest)

    def _mapped(self, batches: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels and record of the first so many batches."""
        if batches:
            images = np.memmap(self._path("images.bin"), np.uint8, "r", shape=(batches, self._image_bytes))
            records = np.memmap(self._path("logits.bin"), self._record, "r", shape=(batches,))
            yield from ((images[i], records[i]) for i in range(batches))

    def _whole(self) -> int:
        """Batches before the first that is damaged or cut off."""
        there = min(*self._sizes()[:2], len(self))
        for number, (x, record) in enumerate(self._mapped(there)):
            if _crc(number, x, record) != record["crc"]:
                return number
        return there

    def _check_header(self) -> None:
        path = self._path("header.json")
        beside = any(self._path(name).exists() for name in ("images.bin", "logits.bin"))  # looked for first: made last
        if not path.exists():
            if beside:
                raise ValueError(f"LogitCache: {self.folder} must hold header.json beside its files: remove the folder")
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise ValueError(f"LogitCache: {path} must be the header of a cache: remove the folder")
        for key, mine in self._header.items():
            if there.get(key) != mine:
                raise ValueError(
                    f"LogitCache: {key} must be as in {self.folder}, {_short(there.get(key))}, got {_short(mine)}"
                )


def _crc(number: int, x: np.ndarray, record: np.ndarray) -> int:
    """Of a batch in its place: one that has moved is as wrong as one that has changed."""
    crc = zlib.crc32(x.tobytes(), number)
    return zlib.crc32(record["z"].tobytes(), zlib.crc32(record["y"].tobytes(), crc))


def _generator(*identity: object) -> torch.Generator:
    digest = hashlib.sha256(repr(identity).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _sha256(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
    digest.update(data.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256_of_module(module: nn.Module) -> str:
    """Of all kinds of modules in it, and of all values."""
    kinds = [f"{name} {type(m).__name__}" for name, m in module.named_modules()]
    values = [f"{name} {_sha256(value)}" for name, value in module.state_dict().items()]
    return hashlib.sha256("\n".join(kinds + values).encode()).hexdigest()


def _kind(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _short(value: object) -> str:
    return f"sha256 {value[:12]}..." if isinstance(value, str) else repr(value)
