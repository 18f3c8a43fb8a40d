from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from crest_ext import recalibrate


@pytest.fixture
def model() -> Any:
    first = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5))
    return nn.Sequential(first, nn.Flatten(), nn.Linear(4 * 9, 5), nn.BatchNorm1d(5, track_running_stats=False))


@pytest.fixture
def batches() -> list[Tensor]:
    return [2 * torch.randn(8, 2, 5, 5) + 1 for _ in range(3)]


def test_statistics_are_those_of_the_batches(model: Any, batches: list[Tensor]) -> None:
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    small = recalibrate(model, batches)
    norm = small[0][1]
    with torch.no_grad():
        features = torch.stack([small[0][0](x).transpose(0, 1).flatten(1) for x in batches])
    torch.testing.assert_close(norm.running_mean, features.mean((0, 2)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, features.var(2).mean(0), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.3
    assert norm.num_batches_tracked == 3
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    same = ("0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "2.weight", "2.bias")
    assert all(torch.equal(small.state_dict()[name], before[name]) for name in same)


def test_takes_what_data_loaders_give(model: Any, batches: list[Tensor]) -> None:
    expected = recalibrate(model, batches).state_dict()
    labelled = [(x, torch.zeros(len(x))) for x in batches]
    torch.testing.assert_close(recalibrate(nn.DataParallel(model), labelled).module.state_dict(), expected)
    torch.testing.assert_close(recalibrate(model, labelled).state_dict(), expected)
    torch.testing.assert_close(recalibrate(model, [[x] for x in batches]).state_dict(), expected)


class Pair(nn.Module):
    """Takes two inputs, and what need not be given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(2, 4), nn.BatchNorm1d(4)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0, *, shift: float = 0.0) -> Tensor:
        return self.norm((self.a(a) + self.b(b)) * scale + shift)


def test_takes_several_inputs() -> None:
    model: Any = Pair()
    pairs = [(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(3)]
    with torch.no_grad():
        means = torch.stack([(model.a(a) + model.b(b)).mean(0) for a, b in pairs]).mean(0)
    labels = torch.zeros(8)
    for batches in (pairs, map(list, pairs), ((a, b, labels) for a, b in pairs), ({"b": b, "a": a} for a, b in pairs)):
        torch.testing.assert_close(recalibrate(model, batches).norm.running_mean, means)
    named = ({"a": a, "b": b, "scale": 2.0, "shift": 1.0} for a, b in pairs)
    torch.testing.assert_close(recalibrate(model, named).norm.running_mean, 2 * means + 1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        recalibrate(model, [a for a, _ in pairs])


def test_refuses_no_batches(model: Any) -> None:
    with pytest.raises(ValueError, match=r"^recalibrate: batches must not be empty$"):
        recalibrate(model, iter([]))


def test_takes_what_torch_pruned(model: Any, batches: list[Tensor]) -> None:
    prune.l1_unstructured(model[0][0], "weight", 0.5)
    model(batches[0])  # leaves a weight that deepcopy refuses
    small = recalibrate(model, batches)
    torch.testing.assert_close(small[0][0].weight, model[0][0].weight)
    assert not torch.equal(small[0][1].running_mean, model[0][1].running_mean)
