from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pytest
import torch

from crest_ext import data
from crest_ext.data import Loader, Split


def counting(n: int) -> Split:
    return Split(torch.arange(n).float().view(n, 1), torch.arange(n))


def test_digits_are_split_for_good() -> None:
    train, test = data.load("digits")
    assert (train.x.shape, test.x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (train.x.dtype, train.y.dtype) == (torch.float32, torch.int64)
    assert (train.x.min(), train.x.max()) == (0, 1)
    assert torch.bincount(train.y).min() > 130
    assert torch.bincount(test.y).min() > 25
    assert torch.equal(data.load("digits").test.y, test.y)


def test_loader_covers_a_split_in_order() -> None:
    loader = Loader(counting(10), 4)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(10))


def test_loader_permutes_every_epoch_anew_and_repeats_with_its_seed() -> None:
    loader, same, other = (Loader(counting(10), 3, shuffle=True, seed=seed) for seed in (1, 1, 2))
    epochs = [torch.cat([y for _, y in loader]) for _ in range(2)]
    assert len(loader) == 3
    assert len(epochs[0].unique()) == 9  # every sample at most once; the last, smaller batch is left out
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], torch.cat([y for _, y in same]))
    assert not torch.equal(epochs[0], torch.cat([y for _, y in other]))
    for x, y in loader:
        assert torch.equal(x.view(-1), y.float())


def test_loader_shifts_each_image_by_itself() -> None:
    x = torch.zeros(200, 2, 5, 6)
    x[:, :, 2, 3] = torch.arange(1.0, 401).view(200, 2)
    split = data.Split(x, torch.arange(200))
    ((moved, y),) = Loader(split, 200, shift=1)
    places = moved[:, 0].nonzero()
    assert torch.equal(y, split.y)
    assert torch.equal(moved.sum((2, 3)), x.sum((2, 3)))
    assert torch.equal((moved[:, 0] > 0), (moved[:, 1] > 0))
    assert len(torch.unique(places[:, 1:], dim=0)) == 9
    assert {tuple(place) for place in places[:, 1:].tolist()} == {(r, c) for r in (1, 2, 3) for c in (2, 3, 4)}
    first, again, other = (next(iter(Loader(split, 50, shuffle=True, seed=s, shift=2)))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    ((away, _),) = Loader(data.Split(torch.ones(99, 1, 3, 3), torch.zeros(99)), 99, shift=1)
    assert away.sum((1, 2, 3)).unique().tolist() == [4, 6, 9]  # what leaves the image is lost, and zeros enter


@pytest.mark.parametrize(("x", "shift"), [((9, 1, 4, 4), -1), ((9, 1, 4, 5), 4), ((9, 16), 1), ((9, 4, 4), 1)])
def test_loader_refuses_shifts(x: tuple[int, ...], shift: int) -> None:
    with pytest.raises(ValueError, match=f"^Loader: shift must be 0, or of images .* got {shift} for "):
        Loader(data.Split(torch.zeros(x), torch.zeros(9)), 3, shift=shift)


def test_loader_refuses() -> None:
    with pytest.raises(ValueError, match=r"^Loader: batch_size must be at least 1, got 0$"):
        Loader(counting(10), 0)
    with pytest.raises(ValueError, match=r"^Loader: batch_size must be at most the 10 samples, got 11$"):
        Loader(counting(10), 11, shuffle=True)
    assert len(Loader(counting(10), 11)) == 1


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"^data: name must be one of digits, mnist, cifar10, got 'imagenet'$"):
        data.load("imagenet")


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREST_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^data: MNIST must be in .*: fetch .* --data or CREST_DATA$") as caught:
        data.load("mnist")
    text = str(caught.value)
    assert "t10k-labels-idx1-ubyte.gz (md5 ec29112dd5afa0611ce80d1b7f02629c)" in text
    assert "train-labels" not in text


@pytest.mark.parametrize("name", ["{}", "{}.gz"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    for file in data.MNIST:
        (tmp_path / name.format(file)).write_bytes(gzip.compress(b"x"))
    with pytest.raises(
        ValueError, match=r"^data: .*train-images-idx3-ubyte.* must have the md5 .* of the official file"
    ):
        data.load("mnist", tmp_path)


@pytest.mark.data
def test_mnist() -> None:
    train, test = data.load("mnist")
    assert (train.x.shape, test.x.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert (train.x.min(), train.x.max()) == (0, 255 / 256)
    assert torch.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.data
def test_mnist_unpacked_and_in_the_folder_itself(tmp_path: Path) -> None:
    folder = Path(os.environ["CREST_DATA"])
    for file in data.MNIST:
        packed = next(folder.rglob(f"{file}.gz"))
        (tmp_path / file).write_bytes(gzip.decompress(packed.read_bytes()))
    assert torch.equal(data.load("mnist", tmp_path).test.x, data.load("mnist", folder).test.x)


def test_cifar10_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data: CIFAR-10 must be in .*: fetch .*cifar-10-binary.* or CREST_DATA$"):
        data.load("cifar10", tmp_path)
    for name in data.CIFAR10:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"^data: .*data_batch_1\.bin must have the sha1 aadd24.* of the official file"
    ):
        data.load("cifar10", tmp_path)


def test_cifar10_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    pixels = bytes(range(256)) * 12
    for i, name in enumerate(data.CIFAR10):
        content = bytes([i]) + pixels
        (folder / name).write_bytes(content)
        monkeypatch.setitem(data.CIFAR10, name, hashlib.sha1(content).hexdigest())
    train, test = data.load("cifar10", tmp_path)
    assert train.y.tolist() == [0, 1, 2, 3, 4]
    assert test.y.tolist() == [5]
    assert train.x.shape == (5, 3, 32, 32)
    for channel in range(3):
        low, high = train.x[0, channel, 0, 0], train.x[0, channel, 7, 31]
        mean, std = data.CIFAR10_MEAN[channel], data.CIFAR10_STD[channel]
        assert low.item() == pytest.approx(-mean / std)
        assert high.item() == pytest.approx((1 - mean) / std)
    raw = data.cifar10_bytes(tmp_path)
    assert raw.train.x.dtype == torch.uint8
    assert raw.train.x[3].flatten().tolist() == list(pixels)
    assert torch.equal(raw.train.y, train.y)
