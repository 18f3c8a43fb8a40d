from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest_ext import factorize
from crest_ext.nn import MaskedLinear
from crest_ext.rewrite.factorize import rank_of


def low_rank_(layer: nn.Module, rank: int, groups: int = 1) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    rows = len(weight) // groups
    left, right = torch.randn(groups, rows, rank), torch.randn(groups, rank, weight[0].numel())
    weight.data.copy_((left @ right / right.shape[2] ** 0.5).view_as(weight))


LAYERS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(30, 20), (4, 30)),
    "linear, no bias": (lambda: nn.Linear(30, 20, bias=False), (4, 30)),
    "conv": (lambda: nn.Conv2d(6, 16, 3, 2, 1), (2, 6, 9, 9)),
    "conv, grouped": (lambda: nn.Conv2d(8, 24, 3, padding="same", dilation=2, groups=2, bias=False), (2, 8, 9, 9)),
    "conv, reflect": (lambda: nn.Conv2d(6, 16, (3, 5), padding=2, padding_mode="reflect"), (2, 6, 9, 9)),
    "conv, 1x1": (lambda: nn.Conv2d(20, 30, 1), (2, 20, 5, 5)),
}


@pytest.mark.parametrize("energy", [{"energy": 1.0}, {"energy": 1.0, "squared": False}, {"rank": 3}])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_low_rank_keeps_its_output(name: str, energy: dict[str, Any]) -> None:
    make, shape = LAYERS[name]
    layer = make()
    low_rank_(layer, 3, getattr(layer, "groups", 1))
    model = nn.Sequential(layer, nn.ReLU()).eval()
    before = copy.deepcopy(model.state_dict())
    small, report = factorize(model, **energy, explain=True)
    x = torch.randn(shape)
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)
    (row,) = report.layers
    assert (row.name, row.rank, row.note) == ("0", 3, "")
    weights = [p for n, p in small.named_parameters() if "weight" in n]
    assert row.after == sum(p.numel() for p in weights) < row.before == layer.weight.numel()
    assert row.error < 1e-5
    assert not any(m.training for m in small.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the model is not changed


def test_the_pair_is_the_best_of_its_rank() -> None:
    layer = nn.Linear(40, 30)
    small, report = factorize(layer, rank=5, explain=True)
    assert isinstance(small, nn.Sequential)
    u, s, vh = torch.linalg.svd(layer.weight.detach())
    best = u[:, :5] @ s[:5].diag() @ vh[:5]
    torch.testing.assert_close(small[1].weight @ small[0].weight, best, rtol=1e-4, atol=1e-5)
    assert report.layers[0].error == pytest.approx(
        (best - layer.weight).norm().item() / layer.weight.norm().item(), rel=1e-4
    )
    assert str(report).startswith(": rank 5, 1,200 -> 350 weights, relative error 0.")


def test_above_break_even_it_is_left_and_the_reason_said() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Conv2d(4, 4, 3, groups=4))
    small, report = factorize(model, energy=1.0, explain=True)
    assert [type(m) for m in small] == [nn.Linear, nn.Conv2d]
    assert str(report.layers[0]) == "0: left as it is: rank 10 needs 200 weights instead of 100"
    assert report.layers[1].note == "rank 1 needs 40 weights instead of 36"


@pytest.mark.parametrize(("energy", "squared", "rank"), [(0.5, True, 1), (0.9, True, 2), (0.9, False, 3), (1, True, 3)])
def test_rank_of(energy: float, squared: bool, rank: int) -> None:
    s = torch.tensor([[4.0, 2.0, 1.0, 0.0]])
    shares = (s**2 if squared else s).cumsum(1) / (s**2 if squared else s).sum()
    assert shares[0, rank - 1] >= energy
    assert rank == 1 or shares[0, rank - 2] < energy
    assert rank_of(s, energy, squared) == rank
    assert rank_of(torch.zeros(2, 3), energy, squared) == 1


def test_ranks_by_name_tied_layers_and_masks() -> None:
    shared, tied = nn.Linear(20, 20), nn.Linear(20, 20)
    tied.weight = shared.weight
    masked = MaskedLinear(20, 20)
    masked.mask[:, 4:] = False
    model = nn.ModuleDict({"a": nn.Linear(20, 20), "twice": masked, "again": masked, "x": shared, "y": tied})
    small, report = factorize(model, rank={"a": 2, "[txy]*": 4}, explain=True)
    assert {row.name: row.rank for row in report.layers} == {"a": 2, "twice": 4, "x": None, "y": None}
    assert {row.note for row in report.layers[2:]} == {"shares its weight"}
    assert small["twice"] is small["again"]
    x = torch.randn(3, 20)
    torch.testing.assert_close(small["twice"](x), masked(x), rtol=1e-4, atol=1e-5)
    _, report = factorize(model, rank={"a": 2}, explain=True)
    assert report.layers[1].note == "is not named"


def test_trains_on() -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))
    model[0].weight.requires_grad_(False)
    small = factorize(model, energy=0.5)
    small(torch.randn(4, 30)).sum().backward()
    assert small[0][0].weight.grad is None
    assert small[0][1].bias.grad is not None


def test_one_rank_for_all_layers_that_can_have_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.Flatten(), nn.Linear(40, 10))
    small, report = factorize(model.to(memory_format=torch.channels_last), rank=12, explain=True)
    assert [layer.rank for layer in report.layers] == [12, None]
    assert report.layers[1].note == "has a rank of at most 10"
    assert small[0][0].weight.is_contiguous(memory_format=torch.channels_last)


def test_refuses() -> None:
    layer = nn.Linear(6, 5)
    for arguments in ({}, {"energy": 0.5, "rank": 1}):
        with pytest.raises(ValueError, match=r"^factorize: one of energy and rank must be given, got "):
            factorize(layer, **arguments)  # type: ignore[arg-type]
    for energy in (0.0, 1.01, -1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"^factorize: energy must be in \(0, 1\], got {energy}$"):
            factorize(layer, energy=energy)
    for wrong in ({}, 2.0, True):
        with pytest.raises(ValueError, match=r"^factorize: rank must (name a layer of the model, got none|be an int)"):
            factorize(layer, rank=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^factorize: rank of layer '' must be in \[1, 5\], got 0$"):
        factorize(layer, rank=0)
    with pytest.raises(ValueError, match=r"^factorize: rank of layer '' must be in \[1, 5\], got 6$"):
        factorize(layer, rank={"*": 6})
    with pytest.raises(ValueError, match=r"^factorize: rank must name a layer of the model, got 'fc\*'$"):
        factorize(layer, rank={"fc*": 2})
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^factorize: weight of layer '' must be finite$"):
        factorize(layer, energy=0.5)
