"""Data sets as tensors in memory, and batches of them."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Split(NamedTuple):
    """x: (n, channels, height, width) float32; y: (n,) int64, the classes."""

    x: Tensor
    y: Tensor


class Dataset(NamedTuple):
    train: Split
    test: Split


class Loader:
    """Batches of a split. Iterating is one epoch; no worker, no copy but the batch itself.

    Args:
        split: what to batch.
        batch_size: samples in a batch.
        shuffle: a new permutation every epoch, and no last batch that is smaller.
        seed: of the permutations and shifts; the n-th epoch of two loaders with one seed is the same.
        shift: pixels by which each image is shifted at most, each way and anew every time; what enters it is 0.
    """

    def __init__(self, split: Split, batch_size: int, shuffle: bool = False, seed: int = 0, shift: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"Loader: batch_size must be at least 1, got {batch_size}")
        if shuffle and batch_size > len(split.x):
            raise ValueError(f"Loader: batch_size must be at most the {len(split.x)} samples, got {batch_size}")
        shape = tuple(split.x.shape)
        if shift and not (len(shape) == 4 and 0 < shift < min(shape[2:])):
            rule = "0, or of images (n, channels, height, width) less than their sides"
            raise ValueError(f"Loader: shift must be {rule}, got {shift} for {shape}")
        self.split, self.batch_size, self.shuffle, self.shift = split, batch_size, shuffle, shift
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        n = len(self.split.x)
        return n // self.batch_size if self.shuffle else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.shuffle:
            for x, y in zip(self.split.x.split(self.batch_size), self.split.y.split(self.batch_size), strict=True):
                yield self._shifted(x), y
            return
        order = torch.randperm(len(self.split.x), generator=self._generator)
        for chosen in order.split(self.batch_size)[: len(self)]:
            yield self._shifted(self.split.x[chosen]), self.split.y[chosen]

    def _shifted(self, x: Tensor) -> Tensor:
        if not self.shift:
            return x
        n, _, height, width = x.shape
        down, right = torch.randint(2 * self.shift + 1, (2, n), generator=self._generator).to(x.device)
        windows = F.pad(x, (self.shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(n, device=x.device), :, down, right]


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """A data set by name: one of DATASETS.

    Args:
        name: "digits" (8x8, 1,437 + 360 samples, part of scikit-learn), "mnist" (28x28, 60,000 + 10,000) or "cifar10"
            (3x32x32, 50,000 + 10,000).
        folder: where the official files are, there or in a folder of the data set's name; default $CREST_DATA.

    Raises:
        ValueError: the name is unknown, or files are missing or damaged; the message says what to fetch.
    """
    if name not in DATASETS:
        raise ValueError(f"data: name must be one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name](Path(folder or os.environ.get("CREST_DATA") or "."))


def digits(_: Path) -> Dataset:
    """scikit-learn's handwritten digits, x in [0, 1]. Every fifth sample is a test sample."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError('data: digits are part of scikit-learn: pip install "crest_ext[cli]"') from None
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy(x).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(y.astype(np.int64))
    test = torch.arange(len(x)) % 5 == 0
    return Dataset(Split(x[~test], y[~test]), Split(x[test], y[test]))


class _File(NamedTuple):
    md5_gz: str  # of the official file
    md5: str  # of what is in it
    shape: tuple[int, ...]


MNIST = {
    "train-images-idx3-ubyte": _File(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb", (60000, 1, 28, 28)
    ),
    "train-labels-idx1-ubyte": _File("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624", (60000,)),
    "t10k-images-idx3-ubyte": _File(
        "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea", (10000, 1, 28, 28)
    ),
    "t10k-labels-idx1-ubyte": _File("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637", (10000,)),
}


def mnist(folder: Path) -> Dataset:
    """MNIST from its four official files, gzipped or not; x / 256 in [0, 255/256], as Caffe scales it."""
    for place in (folder, folder / "mnist"):
        paths = {name: _either(place / f"{name}.gz", place / name) for name in MNIST}
        found = {name: path for name, path in paths.items() if path}
        if found:
            break
    if missing := [f"{name}.gz (md5 {MNIST[name].md5_gz})" for name in MNIST if name not in found]:
        raise ValueError(
            f"data: MNIST must be in {folder} or {folder / 'mnist'}: fetch the official files {', '.join(missing)} "
            "and name their folder by --data or CREST_DATA"
        )
    raw = {name: _read_idx(path, MNIST[name]) for name, path in found.items()}
    splits = [
        Split(raw[f"{part}-images-idx3-ubyte"].float() / 256, raw[f"{part}-labels-idx1-ubyte"].long())
        for part in ("train", "t10k")
    ]
    return Dataset(*splits)


# SHA-1 of what the authors' cifar-10-binary.tar.gz holds; training batches first.
CIFAR10 = {
    "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
}
CIFAR10_MEAN, CIFAR10_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar10(folder: Path) -> Dataset:
    """CIFAR-10 from its binary version; (x / 255 - CIFAR10_MEAN) / CIFAR10_STD by channel. About 0.8 GB."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR10_MEAN, CIFAR10_STD))
    splits = [Split(x.float().div_(255).sub_(mean).div_(std), y) for x, y in cifar10_bytes(folder)]
    return Dataset(*splits)


def cifar10_bytes(folder: Path) -> Dataset:
    """CIFAR-10 from its binary version; x is uint8 as in the files, for augmentation.

    Raises:
        ValueError: files are missing or damaged.
    """
    places = [folder, folder / "cifar-10-batches-bin"]
    found = next((place for place in places if all((place / name).is_file() for name in CIFAR10)), None)
    if not found:
        raise ValueError(
            f"data: CIFAR-10 must be in {places[0]} or {places[1]}: fetch the authors' cifar-10-binary.tar.gz "
            f"({', '.join(CIFAR10)}) and name its folder by --data or CREST_DATA"
        )
    splits = [_read_cifar10(found, names) for names in (list(CIFAR10)[:5], list(CIFAR10)[5:])]
    return Dataset(*splits)


def _read_cifar10(folder: Path, names: list[str]) -> Split:
    """Each sample is a byte of class and 3072 of pixels, by channel."""
    raw = []
    for name in names:
        data = (folder / name).read_bytes()
        _check(folder / name, data, "sha1", CIFAR10[name])
        raw.append(np.frombuffer(data, np.uint8).reshape(-1, 3073))
    samples = torch.from_numpy(np.concatenate(raw))
    return Split(samples[:, 1:].reshape(-1, 3, 32, 32), samples[:, 0].long())


DATASETS: dict[str, Callable[[Path], Dataset]] = {"digits": digits, "mnist": mnist, "cifar10": cifar10}


def _either(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _read_idx(path: Path, file: _File) -> Tensor:
    """An idx file of bytes: 4 bytes of magic, 4 a dimension, the values. The md5 leaves nothing else to check."""
    data = path.read_bytes()
    _check(path, data, "md5", file.md5_gz if path.suffix == ".gz" else file.md5)
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    start = 16 if len(file.shape) > 1 else 8
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).copy()).view(file.shape)


def _check(path: Path, data: bytes, algorithm: str, expected: str) -> None:
    got = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if got != expected:
        raise ValueError(f"data: {path} must have the {algorithm} {expected} of the official file, got {got}")
