from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crest_ext import LowRank, LowRankConfig, factorize, reference
from crest_ext.nn import MaskedLinear, mask_

pytestmark = pytest.mark.usefixtures("one_thread")
# The class is in two of thirty numbers: a layer of rank two is enough.
Y = torch.arange(64) % 4
X = torch.randn(64, 30, generator=torch.Generator().manual_seed(1))
X[:, 0] += 2 * (Y % 2 * 2 - 1)
X[:, 1] += 2 * (Y // 2 * 2 - 1)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4))


def sgd(model: nn.Module, lr: float = 0.02) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def fit(model: nn.Module, optimizer: Any, steps: int, method: LowRank | None = None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        if method:
            method.step()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_proximal_step(memory_format: torch.memory_format) -> None:
    """First the nuclear norm, of each group of a convolution by itself, then the sparse group lasso."""
    model = nn.Conv2d(4, 6, 3, groups=2).to(memory_format=memory_format)  # type: ignore[call-overload]
    bias, expected = model.bias.detach().clone(), model.weight.detach().clone().contiguous()
    method = LowRank(model, LowRankConfig(tau=0.4, sparse_group=0.02, alpha=0.3), sgd(model, lr=0.05))
    method.step()
    low = reference.singular_value_threshold(expected.view(2, 3, 18), 0.5 * 0.4).view_as(expected)
    reference.sparse_group_soft_threshold_(low, "filter", 0.5 * 0.02 * 0.7 * 18**0.5, 0.5 * 0.02 * 0.3)
    torch.testing.assert_close(model.weight.detach(), low, rtol=1e-4, atol=1e-6)
    assert model.weight.is_contiguous(memory_format=memory_format)
    assert torch.equal(model.bias, bias)


def test_interval() -> None:
    """One step as long as all since the last, at each lr; `finish()` makes up for those left."""
    layer = nn.Linear(9, 7, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    method = LowRank(layer, LowRankConfig(tau=1.0, interval=3), optimizer)
    before = layer.weight.detach().clone()
    for lr in (0.1, 0.05, 0.02, 0.03):
        optimizer.param_groups[0]["lr"] = lr
        method.step()
        if lr == 0.05:
            assert torch.equal(layer.weight, before)
    between = reference.singular_value_threshold(before, 0.17)
    torch.testing.assert_close(layer.weight.detach(), between, rtol=1e-4, atol=1e-5)
    method.finish()
    after = reference.singular_value_threshold(before, 0.2)
    torch.testing.assert_close(layer.weight.detach(), after, rtol=1e-4, atol=1e-5)


def test_training_to_a_thinner_network() -> None:
    """At the same energy, fewer parameters than plain training leaves, and still right."""
    sizes = []
    for tau in (0.0, 0.05):
        torch.manual_seed(0)
        model = net()
        optimizer = sgd(model)
        method = LowRank(model, LowRankConfig(tau=tau), optimizer) if tau else None
        fit(model, optimizer, 150, method)
        if method:
            assert "rank" in method.finish().layers[0].note
        small = factorize(model, energy=0.99)
        assert (small(X).argmax(1) == Y).float().mean() > 0.95
        sizes.append(sum(p.numel() for p in small.parameters()))
    assert sizes[1] < 0.5 * sizes[0]


def test_neurons_at_zero_stay_zero_after_finish() -> None:
    model = net()
    optimizer = sgd(model)
    method = LowRank(model, LowRankConfig(tau=0.005, sparse_group={"0": 0.01}), optimizer)
    fit(model, optimizer, 100, method)
    summary = method.finish()
    assert isinstance(model[0], MaskedLinear)
    assert type(model[2]) is nn.Linear
    dead = ~model[0].mask.any(1)
    assert 0 < dead.sum() < 20
    assert summary.layers[0].note.endswith(f", {20 - int(dead.sum())} of 20 filters")
    fit(model, optimizer, 5)
    assert not model[0].effective_weight()[dead].any()


def test_masks_of_an_earlier_method_and_frozen_layers() -> None:
    model = net()
    layer = mask_(model[0], mask_bias=False)
    layer.mask[:, 5:] = False
    model[2].requires_grad_(False)
    frozen = model[2].weight.clone()
    expected = reference.singular_value_threshold(layer.effective_weight().detach(), 0.2 * 0.5)
    LowRank(model, LowRankConfig(tau=0.5), sgd(model)).step()
    torch.testing.assert_close(layer.effective_weight().detach(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model[2].weight, frozen)


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    def start() -> tuple[nn.Module, Any, LowRank]:
        model = net()
        optimizer = sgd(model)
        return model, optimizer, LowRank(model, LowRankConfig(tau=0.01, interval=4), optimizer)

    first = start()
    fit(first[0], first[1], 6, first[2])
    torch.save([part.state_dict() for part in first], tmp_path / "checkpoint.pt")
    second = start()
    for part, state in zip(second, torch.load(tmp_path / "checkpoint.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    for model, optimizer, method in (first, second):
        fit(model, optimizer, 6, method)
    for name, value in first[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    assert str(first[2].finish()) == str(second[2].finish())
    second[2].load_state_dict(first[2].state_dict())
    with pytest.raises(RuntimeError, match=r"^LowRank: step\(\) must come before finish\(\)$"):
        second[2].step()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "one of tau, sparse_group must be above 0, got 0.0"),
        ({"tau": -1.0}, "tau must be a finite number >= 0, or a mapping to some, got -1.0"),
        ({"sparse_group": {"fc": float("inf")}}, "sparse_group of 'fc' must be a finite number >= 0, got inf"),
        ({"tau": 1.0, "alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
        ({"tau": 1.0, "interval": 0}, "interval must be an int >= 1, got 0"),
        ({"tau": 1.0, "energy": 0.0}, r"energy must be in \(0, 1\], got 0.0"),
    ],
)
def test_config_errors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^LowRankConfig: {message}$"):
        LowRankConfig(**kwargs)


def test_errors() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"^LowRank: layer 'fc' must be in the model, which has '0', '2'$"):
        LowRank(model, LowRankConfig(tau={"fc": 1.0}), sgd(model))
    with pytest.raises(ValueError, match=r"^LowRank: optimizer must have the weight of layer '0', got one without$"):
        LowRank(model, LowRankConfig(tau=1.0), sgd(nn.Linear(1, 1)))
    with pytest.raises(RuntimeError, match=r"^LowRank: step\(\) must come after an optimizer is given$"):
        LowRank(model, LowRankConfig(tau=1.0)).step()
    method = LowRank(model, LowRankConfig(tau={"2": 1.0}), sgd(model))
    with pytest.raises(ValueError, match=r"^LowRank: state_dict must be of the layers \['2'\], got \[\]$"):
        method.load_state_dict({})
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^singular_value_threshold: a must be finite, got NaN or infinity$"):
        method.step()
