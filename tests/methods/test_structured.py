from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import StructuredConfig, StructuredSparsity, group_norms, reference, shrink
from crest_ext.models import create_model
from crest_ext.nn import MaskedConv2d, mask_
from shrinking import run, settle

pytestmark = pytest.mark.usefixtures("one_thread")
# The class is in the signs of two colours: a few filters are enough.
Y = torch.arange(64) % 4
X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
X[:, 0] += (Y % 2 * 2 - 1)[:, None, None]
X[:, 1] += (Y // 2 * 2 - 1)[:, None, None]


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
    )


class Residual(nn.Module):
    """A stem, a block whose convolutions pad, and what reads the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(F.relu(x + y).mean((2, 3)))


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def fit(model: nn.Module, optimizer: Any, steps: int, method: StructuredSparsity | None = None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        if method and method.config.mode == "subgradient":
            method.add_gradients()
        optimizer.step()
        if method:
            method.step()


# One step, by the formulas.


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_proximal_step(memory_format: torch.memory_format) -> None:
    """Of the length lr / (1 - momentum), each kind of groups after the other; biases are left alone."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)).to(memory_format=memory_format)  # type: ignore[call-overload]
    config = StructuredConfig(filter={"0": 0.02}, channel=0.03, shape={"0": 0.01}, kernel={"0": 0.005}, depth=0.04)
    expected = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    method = StructuredSparsity(model, config, sgd(model, lr=0.1))
    with torch.no_grad():
        conv, linear = expected[0].weight, expected[2].weight
        for groups, factor in (
            ("filter", 0.02),
            ("channel", 0.03),
            ("shape", 0.01),
            ("kernel", 0.005),
            ("layer", 0.04),
        ):
            reference.group_soft_threshold_(conv, groups, factor)
        reference.group_soft_threshold_(linear, "column", 0.03)
        reference.group_soft_threshold_(linear, "layer", 0.04)
    method.step()
    for name, p in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p)
    assert model[0].weight.is_contiguous(memory_format=memory_format)


def test_subgradient_step() -> None:
    """The gradient gains lambda w / ||w|| of each group, 0 where that is 0/0; then small weights become 0."""
    layer = nn.Linear(2, 3, bias=False)
    layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.9e-4, -1.1e-4]])
    method = StructuredSparsity(layer, StructuredConfig(filter=2.0, channel=3.0, mode="subgradient"))
    layer.weight.grad = torch.ones(3, 2)
    method.add_gradients()
    columns = layer.weight.detach().norm(dim=0)
    small = torch.tensor([0.9, -1.1]) / (0.9**2 + 1.1**2) ** 0.5
    rows = torch.stack([torch.tensor([0.6, 0.8]), torch.zeros(2), small])
    torch.testing.assert_close(layer.weight.grad, 1 + 2 * rows + 3 * layer.weight.detach() / columns)
    method.step()
    assert layer.weight.tolist()[2] == [0.0, pytest.approx(-1.1e-4)]


def test_square_roots_of_group_sizes() -> None:
    model = nn.Conv2d(2, 4, 3)
    before = model.weight.detach().clone()
    method = StructuredSparsity(
        model, StructuredConfig(filter=0.1, sqrt_size=True), torch.optim.Adam(model.parameters(), 0.1)
    )
    method.step()
    expected = before.clone()
    reference.group_soft_threshold_(expected, "filter", 0.1 * 0.1 * 18**0.5)  # Adam has no momentum of this kind
    torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("field", ["channel", "shape", "filter"])
def test_grouped_convolution(field: str) -> None:
    """Two groups of it are two convolutions, each with channels and shapes of its own."""
    grouped = nn.Conv2d(6, 8, 3, groups=2, bias=False)
    halves = [nn.Conv2d(3, 4, 3, bias=False) for _ in range(2)]
    for half, weight in zip(halves, grouped.weight.detach().chunk(2), strict=True):
        half.weight.data = weight.clone()
    for mode in ("proximal", "subgradient"):
        for model in (grouped, *halves):
            model.weight.grad = torch.zeros_like(model.weight)
            method = StructuredSparsity(model, StructuredConfig(**{field: 0.2}, mode=mode), sgd(model))  # type: ignore[arg-type]
            if mode == "subgradient":
                method.add_gradients()
            method.step()
        torch.testing.assert_close(grouped.weight, torch.cat([half.weight for half in halves]))
        torch.testing.assert_close(grouped.weight.grad, torch.cat([half.weight.grad for half in halves]))


# From training to a smaller network.


def test_conv_net_shrinks() -> None:
    """Filters go, through BatchNorm, with their beta; what is left computes the same and trains on."""
    model = conv_net()
    optimizer = sgd(model)
    method = StructuredSparsity(model, StructuredConfig(filter={"0": 0.2, "3": 0.3}), optimizer)
    fit(model, optimizer, 150, method)
    summary = method.finish()
    left = [int(group_norms(model[i].weight.detach(), "filter").count_nonzero()) for i in (0, 3)]
    assert 0 < left[0] < 8
    assert 0 < left[1] < 12
    assert [row.note for row in summary.layers][:2] == [f"{left[0]} of 8 filters", f"{left[1]} of 12 filters"]
    small: Any = shrink(model, X)
    assert [small[0].out_channels, small[3].out_channels] == left
    torch.testing.assert_close(run(small, X), run(model, X), rtol=0, atol=1e-4)
    fit(small, sgd(small), 3)


@pytest.mark.parametrize("factor", [0.3, 100.0])
def test_least_leaves_as_many(factor: float) -> None:
    """A little pressure for long or a lot at once: three filters of one layer and two inputs of another are left."""
    model = conv_net()
    optimizer = sgd(model)
    config = StructuredConfig(
        filter={"0": factor}, channel={"8": factor}, least={"filter": {"0": 3}, "channel": {"8": 2}}
    )
    method = StructuredSparsity(model, config, optimizer)
    fit(model, optimizer, 120, method)
    assert int(group_norms(model[0].effective_weight().detach(), "filter").count_nonzero()) == 3
    assert int(group_norms(model[8].effective_weight().detach(), "column").count_nonzero()) == 2
    pressed = [model[i].effective_weight().detach().norm().item() for i in (0, 8)]
    fit(model, optimizer, 60, method)
    assert [model[i].effective_weight().detach().norm().item() for i in (0, 8)] > pressed  # what is left may grow
    assert int(group_norms(model[0].effective_weight().detach(), "filter").count_nonzero()) == 3
    assert "3 of 8 filters" in str(method.finish())


@pytest.mark.parametrize("field", ["channel", "shape"])
def test_least_counts_over_all_groups_of_a_convolution(field: str) -> None:
    model = nn.Conv2d(4, 4, 3, groups=2)
    config = StructuredConfig(**{field: {"": 100.0}, "least": {field: {"": 3}}})
    StructuredSparsity(model, config, sgd(model)).step()
    groups: Any = {"channel": "channel", "shape": "shape"}[field]
    assert (
        sum(int(group_norms(part, groups).count_nonzero()) for part in model.effective_weight().detach().chunk(2)) == 3
    )


def test_subgradients_reach_zero() -> None:
    """By the authors' way as well; without BatchNorm, whose scale makes up for smaller weights."""
    first, _, _, second, *rest = conv_net()
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *rest[2:])
    optimizer = sgd(model, lr=0.003)
    method = StructuredSparsity(model, StructuredConfig(filter={"0": 0.4, "2": 0.4}, mode="subgradient"), optimizer)
    fit(model, optimizer, 150, method)
    method.finish()
    left = [int(group_norms(model[i].weight.detach(), "filter").count_nonzero()) for i in (0, 2)]
    assert 0 < left[0] < 8
    small: Any = shrink(model, X)
    assert [small[0].out_channels, small[2].out_channels] == left
    torch.testing.assert_close(run(small, X), run(model, X), rtol=0, atol=1e-4)


def test_residual_net_shrinks() -> None:
    """Zero padding follows a dead filter's beta, so the channels that read it must die as well."""
    model = settle(Residual())
    optimizer = sgd(model)
    config = StructuredConfig(filter={"conv1": 0.06}, channel={"conv2": 0.06}, depth={"conv2": 0.001})
    method = StructuredSparsity(model, config, optimizer)
    fit(model, optimizer, 200, method)
    method.finish()
    alive = group_norms(model.conv2.weight.detach(), "channel") > 0  # type: ignore[union-attr,operator]
    small: Any = shrink(model, X)
    assert small.conv1.out_channels == small.conv2.in_channels == max(int(alive.sum()), 1) < 8
    torch.testing.assert_close(run(small, X), run(model, X), rtol=0, atol=1e-4)


def test_a_block_of_depth_zero_goes() -> None:
    model: Any = Residual()
    optimizer = sgd(model)
    method = StructuredSparsity(model, StructuredConfig(depth={"conv?": 5.0}), optimizer)
    fit(model, optimizer, 10, method)
    assert [row.note for row in method.finish().layers if row.name.startswith("conv")] == ["0 of 1 layers"] * 2
    small: Any = shrink(model, X)
    assert small.conv1.out_channels == small.conv2.in_channels == 1
    torch.testing.assert_close(run(small, X), run(model, X), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_groups_at_zero_stay_zero_after_finish(make: Any) -> None:
    """Exactly, though the optimizer's momentum would move them; biases and the groups left train on."""
    model = conv_net()
    optimizer = make(model.parameters())
    method = StructuredSparsity(model, StructuredConfig(filter={"0": 3.0}, shape={"3": 0.3}), optimizer)
    fit(model, optimizer, 40, method)
    method.finish()
    layers = [m for m in model if isinstance(m, MaskedConv2d)]
    masks, biases = [m.mask.clone() for m in layers], layers[0].bias.detach().clone()
    assert not all(mask.all() for mask in masks)
    fit(model, optimizer, 10)
    for layer, mask in zip(layers, masks, strict=True):
        assert torch.equal(layer.mask, mask)
        assert not layer.effective_weight()[~mask].any()
    assert layers[0].bias_mask is None
    assert not torch.equal(layers[0].bias, biases)


def test_masks_of_an_earlier_method_stay() -> None:
    layer = mask_(nn.Linear(4, 3, bias=False), mask_bias=False)
    layer.mask[0], layer.mask[1, 0] = False, False
    method = StructuredSparsity(layer, StructuredConfig(filter=0.1), sgd(layer))
    layer.weight.data.fill_(1.0)  # dropped weights as well: they do not count
    method.step()
    torch.testing.assert_close(layer.effective_weight()[1], torch.tensor([0.0, *[1 - 0.01 / 3**0.5] * 3]))
    assert str(method.finish()).splitlines()[1].endswith("2 of 3 filters")


def test_frozen_layers_are_left() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    before = copy.deepcopy(model)
    StructuredSparsity(model, StructuredConfig(filter=0.1), sgd(model)).step()
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[1].weight, before[1].weight)


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    def start() -> tuple[nn.Module, Any, StructuredSparsity]:
        model = conv_net()
        optimizer = sgd(model)
        config = StructuredConfig(filter=0.05, channel={"8": 1.0}, least={"channel": {"8": 5}})
        return model, optimizer, StructuredSparsity(model, config, optimizer)

    first = start()
    fit(first[0], first[1], 5, first[2])
    torch.save([part.state_dict() for part in first], tmp_path / "checkpoint.pt")
    second = start()
    for part, state in zip(second, torch.load(tmp_path / "checkpoint.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    for model, optimizer, method in (first, second):
        fit(model, optimizer, 5, method)
    for name, value in first[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    assert str(first[2].summary()) == str(second[2].summary())

    finished = start()
    first[2].finish()
    finished[2].load_state_dict(first[2].state_dict())
    with pytest.raises(RuntimeError, match=r"^StructuredSparsity: step\(\) must come before finish\(\)$"):
        finished[2].step()


# What goes wrong.


def test_calls_in_the_wrong_mode_or_order() -> None:
    layer = nn.Linear(2, 2)
    method = StructuredSparsity(layer, StructuredConfig(filter=0.1, mode="subgradient"))
    with pytest.raises(RuntimeError, match=r"step\(\) must follow add_gradients\(\), before optimizer\.step\(\)$"):
        method.step()
    method.finish()
    with pytest.raises(RuntimeError, match=r"^StructuredSparsity: add_gradients\(\) must come before finish\(\)$"):
        method.add_gradients()
    method = StructuredSparsity(layer, StructuredConfig(filter=0.1), sgd(layer))
    with pytest.raises(RuntimeError, match=r"add_gradients\(\) must be of mode 'subgradient', got 'proximal'$"):
        method.add_gradients()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "one of filter, channel, shape, kernel, depth must be above 0, got 0.0"),
        ({"filter": {"fc": 0.0}}, "one of filter, channel, shape, kernel, depth must be above 0, got 0.0"),
        ({"shape": -1.0}, "shape must be a finite number >= 0, or a mapping to some, got -1.0"),
        ({"depth": {"fc": float("nan")}}, "depth of 'fc' must be a finite number >= 0, got nan"),
        ({"filter": 1.0, "mode": "prox"}, "mode must be one of proximal, subgradient, got 'prox'"),
        ({"filter": 1.0, "least": {"shape": {"a": 1}}}, "least must be of kinds with a factor, got 'shape'"),
        ({"filter": 1.0, "least": {"filter": {"a": 0}}}, "least filter of 'a' must be an int > 0, got 0"),
        (
            {"filter": 1.0, "least": {"filter": {"a": 1}}, "mode": "subgradient"},
            "least must be None in mode 'subgradient', got {'filter': {'a': 1}}",
        ),
        ({"filter": 1.0, "zero_below": float("inf")}, "zero_below must be a finite number >= 0, got inf"),
    ],
)
def test_config_errors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^StructuredConfig: {message}$"):
        StructuredConfig(**kwargs)


def test_errors() -> None:
    model = create_model("lenet_300_100")
    with pytest.raises(ValueError, match=r"^StructuredSparsity: layer 'fc' must be in the model, which has 'ip1'"):
        StructuredSparsity(model, StructuredConfig(filter={"fc": 1.0}), sgd(model))
    rule = "optimizer must have the weight of layer 'ip1', whose steps set those of mode 'proximal', got"
    with pytest.raises(ValueError, match=f"^StructuredSparsity: {rule} None$"):
        StructuredSparsity(model, StructuredConfig(filter=1.0))
    with pytest.raises(ValueError, match=f"^StructuredSparsity: {rule} one without$"):
        StructuredSparsity(model, StructuredConfig(filter=1.0), sgd(nn.Linear(1, 1)))
    assert type(model.ip1) is nn.Linear
    other = StructuredSparsity(model, StructuredConfig(filter={"ip1": 1.0}), sgd(model)).state_dict()
    method = StructuredSparsity(model, StructuredConfig(filter={"ip2": 1.0}), sgd(model))
    with pytest.raises(
        ValueError, match=r"^StructuredSparsity: state_dict must be of the layers \['ip2'\], got \['ip1'\]$"
    ):
        method.load_state_dict(other)
