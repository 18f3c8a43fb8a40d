"""Augmented batches and an ensemble's logits for them, computed once for all students."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
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

# Of a batch's logits, by their norms. Measured on ResNet-20: 2e-6 between kernels for float32, 1e-3 to 1.5e-3 between
# those for bfloat16, and 7e-3 between float32 and bfloat16.
CLOSE = 2e-3


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

    A folder that holds a batch belongs to its images, labels, settings and teachers: the names of the teachers' classes
    and all values in their state_dict must be the same, and what else decides their logits (a slope, a stride, a dtype)
    shows in their answers to the first whole batch, which must be those stored within 0.2 %. All this is compared when
    the object is made, when `write` has the folder to itself, and when replay begins.

    Args:
        folder: made if it is not there.
        images: (n, 3, side, side), uint8, on the CPU; side at least the augmentation's smallest crop.
        labels: (n,), int64, the classes, below `classes`.
        teachers: takes augmented uint8 batches, on the device of its parameters. Autocast around a call has no part in
            images and logits: teachers that compute in bfloat16 ask for that themselves.
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
        for name, value in (("passes", passes), ("batch_size", batch_size), ("classes", classes)):
            if type(value) is not int or value < 1:
                raise ValueError(f"LogitCache: {name} must be an int >= 1, got {value!r}")
        if type(seed) is not int:
            raise ValueError(f"LogitCache: seed must be an int, got {seed!r}")
        augment = augment or Augment()
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != (3, *images.shape[3:] * 2):
            raise ValueError(f"LogitCache: images must have shape (n, 3, side, side) and be uint8, got {_kind(images)}")
        if images.shape[3] < augment.smallest:
            rule = f"have sides of at least {augment.smallest}, the smallest crop"
            raise ValueError(f"LogitCache: images must {rule}, got {images.shape[3]}")
        if batch_size > len(images):
            raise ValueError(f"LogitCache: batch_size must be at most the {len(images)} images, got {batch_size}")
        if labels.shape != (len(images),) or labels.dtype != torch.int64:
            rule = f"have shape ({len(images)},) and be int64"
            raise ValueError(f"LogitCache: labels must {rule}, got {_kind(labels)}")
        low, high = (int(end) for end in labels.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"LogitCache: labels must be 0 to {classes - 1}, below classes, got {low} to {high}")
        if not isinstance(teachers, Ensemble):
            raise ValueError(f"LogitCache: teachers must be an Ensemble, got {type(teachers).__name__}")
        self.folder, self.images, self.labels, self.teachers = Path(folder), images, labels, teachers
        self.batch_size, self.seed, self.classes = batch_size, seed, classes
        self.augment = augment
        self.batches_per_pass = len(images) // batch_size
        self._length = passes * self.batches_per_pass
        self._image_bytes = batch_size * images[0].numel()
        self._record = np.dtype([("crc", "<u4"), ("y", "<i8", (batch_size,)), ("z", "<f4", (batch_size, classes))])
        settings = {"passes": passes, "batch_size": batch_size, "seed": seed, "classes": classes}
        self._header: dict[str, object] = {
            "format": 1,
            "images": sha256(images),
            "labels": sha256(labels),
            "teachers": _sha256_of_module(teachers),
            "augment": asdict(self.augment),
            **settings,
        }
        self._check()

    def __len__(self) -> int:
        """Batches in all."""
        return self._length

    @property
    def identity(self) -> str:
        """Of what it is made of: data, settings, teachers and, once it is there, their first batch of logits."""
        first = [int(record["crc"]) for _, record in self._mapped(min(1, *self._sizes()[:2]))]
        return hashlib.sha256(json.dumps([self._header, first], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pair of files, written or not."""
        return len(self) * (self._image_bytes + self._record.itemsize)

    def write(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Write what is not there yet, and once more what is damaged; waits while another process does. Reads all that
        is there, to compare checksums.

        Args:
            progress: called with the batches that are whole and those in all, at the start and after each.

        Returns:
            How many batches were there but damaged, and are whole now.

        Raises:
            ValueError: the disk has no room for what is missing, the teachers give other shapes or logits that are not
                finite, or another cache has been written into the folder meanwhile; what is whole stays.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("images.bin", "logits.bin"):
            self._path(name).touch()
        with self._path("images.bin").open("r+b") as images, self._path("logits.bin").open("r+b") as logits:
            fcntl.flock(images, fcntl.LOCK_EX)
            self._check()
            there = min(*self._sizes()[:2], len(self))
            damaged = [number for number, (x, record) in enumerate(self._mapped(there)) if _damaged(number, x, record)]
            missing, free = self.nbytes // len(self) * (len(self) - there), shutil.disk_usage(self.folder).free
            if missing > free:
                raise ValueError(f"LogitCache: {self.folder} must have {missing:,} bytes free, got {free:,}")
            if not self._begun():
                unfinished = self._path("header.json.new")
                unfinished.write_text(json.dumps(self._header, indent=1) + "\n", encoding="utf-8")
                unfinished.replace(self._path("header.json"))
            done = there - len(damaged)
            if progress:
                progress(done, len(self))
            images.truncate(there * self._image_bytes)  # of the batch that was being written
            logits.truncate(there * self._record.itemsize)
            for number in (*damaged, *range(there, len(self))):
                x, record = self._make(number)
                for file, content in ((images, x.numpy()), (logits, record)):
                    file.seek(number * content.nbytes)
                    file.write(content.tobytes())
                    file.flush()
                done += 1
                if progress:
                    progress(done, len(self))
        return len(damaged)

    def __iter__(self) -> Iterator[CachedBatch]:
        """All batches in order, from the mapped files.

        Raises:
            ValueError: the files are not there, cut short or too long, are of another cache, or a batch has not its
                checksum.
        """
        self._check()
        images, logits, exact = self._sizes()
        if (images, logits, exact) != (len(self), len(self), True):
            raise ValueError(
                f"LogitCache: {self.folder} must hold {len(self)} batches, got {min(images, logits)}"
                f"{'' if exact else ' and a part'}: call write() to go on"
            )
        for number, (x, record) in enumerate(self._mapped(len(self))):
            if _damaged(number, x, record):
                raise ValueError(
                    f"LogitCache: batch {number} of {self.folder} must have the checksum {record['crc']:08x}, got "
                    f"{_crc(number, x, record):08x}: call write() to make it again"
                )
            y, z = (torch.from_numpy(record[name].copy()) for name in ("y", "z"))
            yield CachedBatch(self._pixels(x), y, z)

    def _make(self, number: int) -> tuple[Tensor, np.ndarray]:
        """A batch, by a draw that only the seed and its number decide."""
        epoch, place = divmod(number, self.batches_per_pass)
        order = torch.randperm(len(self.images), generator=_generator("order", self.seed, epoch))
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        with torch.autocast("cpu", enabled=False):
            x = self.augment(self.images[chosen], _generator("augment", self.seed, number)).contiguous()
        record = np.zeros((), self._record)
        record["y"], record["z"] = self.labels[chosen].numpy(), self._logits(x).numpy()
        record["crc"] = _crc(number, x.numpy(), record)
        return x, record

    def _logits(self, x: Tensor) -> Tensor:
        """The teachers' for a batch, on the CPU in float32."""
        values = itertools.chain(self.teachers.parameters(), self.teachers.buffers(), [x])  # x: they may have neither
        device = next(values).device
        with torch.autocast(device.type, enabled=False):
            z = self.teachers(x.to(device)).float().cpu()
        shape = (self.batch_size, self.classes)
        if z.shape != shape:
            raise ValueError(f"LogitCache: teachers must give shape {shape}, got {tuple(z.shape)}")
        if not (finite := z.isfinite()).all():
            raise ValueError(f"LogitCache: teachers must give finite logits, got {z[~finite][0].item()}")
        return z

    def _pixels(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.copy()).view(-1, *self.images.shape[1:])

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

    def _begun(self) -> bool:
        """Whether there is any record; without, the folder belongs to no one yet, whatever its header says."""
        path = self._path("logits.bin")
        return path.exists() and path.stat().st_size > 0

    def _check(self) -> None:
        """That what is stored, if anything, was made of the same."""
        if not self._begun():  # looked at first: the header is made before
            return
        path = self._path("header.json")
        if not path.exists():
            raise ValueError(f"LogitCache: {self.folder} must hold header.json beside its files: remove the folder")
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise ValueError(f"LogitCache: {path} must be the header of a cache: remove the folder")
        for key, mine in self._header.items():
            if there.get(key) != mine:
                rule = f"as in {self.folder}, {_short(there.get(key))}"
                raise ValueError(f"LogitCache: {key} must be {rule}, got {_short(mine)}: remove the folder")
        for number, (x, record) in enumerate(self._mapped(min(*self._sizes()[:2], len(self)))):
            if not _damaged(number, x, record):
                stored = torch.from_numpy(record["z"].copy())
                off = torch.linalg.vector_norm(self._logits(self._pixels(x)) - stored)
                norm = torch.linalg.vector_norm(stored)
                if not off <= CLOSE * norm:  # of a NaN too
                    rule = f"give the logits of batch {number} in {self.folder} within {CLOSE:.1%}"
                    raise ValueError(f"LogitCache: teachers must {rule}, got {off / norm:.1%}: remove the folder")
                return


def _crc(number: int, x: np.ndarray, record: np.ndarray) -> int:
    """Of a batch in its place: one that has moved is as wrong as one that has changed."""
    crc = zlib.crc32(x.tobytes(), number)
    return zlib.crc32(record["z"].tobytes(), zlib.crc32(record["y"].tobytes(), crc))


def _damaged(number: int, x: np.ndarray, record: np.ndarray) -> bool:
    return bool(_crc(number, x, record) != record["crc"])


def _generator(*identity: object) -> torch.Generator:
    digest = hashlib.sha256(repr(identity).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def sha256(tensor: Tensor) -> str:
    """Of dtype, shape and values, in hexadecimal."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
    digest.update(data.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256_of_module(module: nn.Module) -> str:
    """Of all kinds of modules in it, and of all values."""
    kinds = [f"{name} {type(m).__name__}" for name, m in module.named_modules()]
    values = [f"{name} {sha256(value)}" for name, value in module.state_dict().items()]
    return hashlib.sha256("\n".join(kinds + values).encode()).hexdigest()


def _kind(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _short(value: object) -> str:
    return f"sha256 {value[:12]}..." if isinstance(value, str) else repr(value)
