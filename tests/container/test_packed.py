"""Files read onto packed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest_ext.container import load_model, load_packed, save_model
from crest_ext.nn import MaskedLinear, SparseConv2d, SparseLinear
from crest_ext.ops import PackedSparse, pack_sparse, unpack_sparse
from crest_ext.ops.pack_sparse import blocks_of_rows, join_blocks, pack_block


def network() -> nn.Sequential:
    """A convolution, BatchNorm, and three Linear of more than one block of rows; the last one is dense."""
    conv, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    return nn.Sequential(
        conv, norm, nn.Flatten(), nn.Linear(128, 600), nn.Linear(600, 300, bias=False), nn.Linear(300, 7)
    )


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Sequential, Path]:
    model = network().eval()
    with torch.no_grad():
        for i, density in ((0, 0.4), (3, 0.1), (4, 0.2)):
            model[i].weight.mul_(torch.rand_like(model[i].weight) < density)
        model[1].running_mean.normal_()
    save_model(model, tmp_path / "x.crest")
    return model, tmp_path / "x.crest"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_computes_the_network(saved: tuple[nn.Sequential, Path], device: str) -> None:
    model, path = saved
    with torch.device(device):
        empty = network().eval()
    empty[5].weight.requires_grad_(False)
    loaded, x = load_packed(empty, path), torch.randn(2, 3, 4, 4)
    assert [type(m) for m in loaded] == [
        SparseConv2d,
        nn.BatchNorm2d,
        nn.Flatten,
        SparseLinear,
        SparseLinear,
        nn.Linear,
    ]
    assert loaded is empty and not loaded[3].training
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x))
    for i in (0, 3, 4):
        assert torch.equal(loaded[i].effective_weight(), model[i].weight)
    assert not loaded[5].weight.requires_grad and loaded[5].bias.requires_grad
    assert loaded[1].num_batches_tracked.dtype == torch.long


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_packs_as_pack_sparse(saved: tuple[nn.Sequential, Path], dtype: torch.dtype) -> None:
    model, path = saved
    loaded = load_packed(network(), path, dtype)
    for i in (3, 4):
        for got, wanted in zip(loaded[i].packed(), pack_sparse(model[i].weight, dtype), strict=True):
            assert torch.equal(got, wanted) if isinstance(got, Tensor) else got == wanted


@pytest.mark.parametrize(("m", "k"), [(0, 5), (5, 0), (1, 1), (256, 128), (257, 129), (1000, 300)])
def test_blocks_of_rows(m: int, k: int) -> None:
    weight = torch.randn(m, k) * (torch.rand(m, k) < 0.3)
    ranges = blocks_of_rows(m)
    assert [row for begin, end in ranges for row in range(begin, end)] == list(range(m))
    blocks = [pack_block(weight[begin:end], m, torch.float32) for begin, end in ranges]
    packed = join_blocks(blocks, m, k, torch.float32, weight.device)
    assert isinstance(packed, PackedSparse)
    packed.check()
    assert torch.equal(unpack_sparse(packed), weight)


@pytest.mark.parametrize(("most_kept", "count"), [(0.0, 0), (0.15, 1), (0.3, 2), (0.5, 3), (1.0, 4)])
def test_density_decides(saved: tuple[nn.Sequential, Path], most_kept: float, count: int) -> None:
    model, path = saved
    loaded = load_packed(network().eval(), path, most_kept=most_kept)
    assert sum(isinstance(m, (SparseLinear, SparseConv2d)) for m in loaded) == count
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x))


def test_one_layer(tmp_path: Path) -> None:
    layer = nn.Linear(20, 10)
    nn.init.zeros_(layer.weight)
    save_model(layer, tmp_path / "x.crest")
    loaded: Any = load_packed(nn.Linear(20, 10), tmp_path / "x.crest")
    assert isinstance(loaded, SparseLinear)
    assert torch.equal(loaded(torch.randn(3, 20)), layer.bias.expand(3, 10))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.own = nn.Embedding(30, 20), nn.Linear(20, 30), nn.Linear(20, 20)
        self.head.weight = self.embed.weight
        self.again = self.own

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.own(self.embed(x))))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_stay_tied_and_shared_layers_shared(tmp_path: Path, device: str) -> None:
    model = Tied().eval()
    with torch.no_grad():
        model.embed.weight.mul_(torch.rand(30, 20) < 0.1)
        model.own.weight.mul_(torch.rand(20, 20) < 0.1)
    save_model(model, tmp_path / "x.crest")
    with torch.device(device):
        empty = Tied().eval()
    loaded = load_packed(empty, tmp_path / "x.crest")
    assert loaded.head.weight is loaded.embed.weight
    assert isinstance(loaded.own, SparseLinear) and loaded.own is loaded.again
    x = torch.arange(30)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x))


class Positions(nn.Linear):
    def __init__(self) -> None:
        super().__init__(128, 4)
        self.register_buffer("positions", torch.arange(4), persistent=False)


def test_refuses(saved: tuple[nn.Sequential, Path], tmp_path: Path) -> None:
    _, path = saved
    with pytest.raises(ValueError, match=r"load_packed: most_kept must be in \[0, 1\], got 1\.5"):
        load_packed(network(), path, most_kept=1.5)
    with pytest.raises(ValueError, match=r"load_packed: dtype must be float32, bfloat16 or float16, got torch\.int8"):
        load_packed(network(), path, torch.int8)
    with pytest.raises(ValueError, match=r"names must be those of the model, got missing 6\.weight, 6\.bias"):
        load_packed(network().append(nn.Linear(7, 7)), path)
    with pytest.raises(ValueError, match=r"names must be those of the model, got unexpected 5\.bias, 5\.weight"):
        load_packed(network()[:5], path)
    other = network()
    other[5] = nn.Linear(300, 8)
    with pytest.raises(ValueError, match=r"tensor '5\.bias' must have the shape of the model's, \(8,\), got \(7,\)"):
        load_packed(other, path)
    with pytest.raises(ValueError, match="load_packed: model must be the plain network, got one with mask"):
        load_packed(MaskedLinear(3, 3), path)
    with pytest.raises(ValueError, match="file must exist"):
        load_packed(network(), tmp_path / "none")
    save_model(Positions(), tmp_path / "y.crest")
    with torch.device("meta"):
        meta = Positions()
    with pytest.raises(ValueError, match="positions must not be on the meta device, for no file holds it"):
        load_packed(meta, tmp_path / "y.crest")


def test_same_values_as_load_model(saved: tuple[nn.Sequential, Path]) -> None:
    _, path = saved
    dense, loaded = network(), load_packed(network(), path, most_kept=0)
    load_model(dense, path)
    for (name, a), (other, b) in zip(dense.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
