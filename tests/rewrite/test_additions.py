"""`pack` of residual blocks: sums that sparse convolutions take along, and modules that are called again."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from crest_ext.models import create_model
from crest_ext.nn import ChannelMean, PackedSequential, Residual, Shortcut, SparseConv2d
from crest_ext.rewrite import measure, pack
from crest_ext.rewrite.additions import additions_into_convolutions
from crest_ext.rewrite.functions import to_modules


def conv(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    made = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
    made.weight.data.mul_(torch.rand_like(made.weight) < 0.4)
    return made


class Bottleneck(nn.Module):
    """As torchvision writes it: one ReLU for all, and what is in its way added in place."""

    def __init__(self, channels: int, width: int, stride: int, expanded: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, expanded, 1), nn.BatchNorm2d(expanded)
        self.relu, self.downsample = nn.ReLU(inplace=True), nn.Identity()
        if stride > 1 or channels != expanded:
            self.downsample = nn.Sequential(conv(channels, expanded, 1, stride), nn.BatchNorm2d(expanded))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if not isinstance(self.downsample, nn.Identity):
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


@pytest.fixture
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "medians", lambda *_: (2.0, 1.0))


def test_residual_blocks(sparse_wins: None) -> None:
    """Nothing is left between the convolutions."""
    model = nn.Sequential(Bottleneck(6, 4, 1, 6), Bottleneck(6, 4, 2, 8), Bottleneck(8, 4, 1, 8)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 6, 9, 9)
    packed = pack(model, x)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    convs = [m for m in packed.modules() if isinstance(m, SparseConv2d)]
    relus = sum(c.activation == "relu" for c in convs)
    assert (len(convs), relus) == (10, 9)  # all but what the block with two paths adds
    assert not any(isinstance(m, (nn.ReLU, nn.Identity, nn.BatchNorm2d)) for m in packed.modules())
    assert type(packed) is PackedSequential and len(packed.runs) == 1  # one call for all
    assert [type(m) for m in packed] == [Residual] * 3
    assert packed(torch.randn(1, 6, 13, 5)).shape == (1, 8, 7, 3)


class InvertedResidual(nn.Module):
    """As in MobileNetV2, but for the depthwise layer: wide in the middle, and no activation behind."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers = [conv(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU6(inplace=True)]
        layers += [conv(width, width, 3), nn.BatchNorm2d(width), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(*layers, conv(width, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def test_inverted_residual_blocks(sparse_wins: None) -> None:
    model = nn.Sequential(conv(3, 4, 3), nn.ReLU6(), InvertedResidual(4, 24), InvertedResidual(4, 24), conv(4, 9, 1))
    model.append(nn.ReLU6())
    x = 9 * torch.randn(2, 3, 9, 8)
    packed = pack(model.eval(), x)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    assert (model[:2](x) == 6).any()
    assert type(packed) is PackedSequential and len(packed.runs) == 1  # one call for all
    assert not any(isinstance(m, (nn.ReLU6, nn.Identity, nn.BatchNorm2d)) for m in packed.modules())


def test_a_network_of_shortcuts_without_parameters(sparse_wins: None) -> None:
    model = create_model("resnet20").eval()
    for layer in [m for m in model.modules() if isinstance(m, nn.Conv2d)][1:]:
        layer.weight.data.mul_(torch.rand_like(layer.weight) < 0.3)
    x = torch.randn(2, 3, 32, 32)
    packed = pack(model, x)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    assert type(packed) is PackedSequential and len(packed.runs) == 1  # one call for all
    assert [type(m) for m in packed][1:] == [*[Residual] * 9, ChannelMean, nn.Linear]
    assert [type(m) for block in packed[1:10] for m in block.other] == [Shortcut, Shortcut]


class Around(nn.Module):
    """What `add` makes of x and of a convolution of x."""

    def __init__(self, add: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.add, self.conv, self.relu = add, SparseConv2d.from_conv2d(conv(4, 4, 3)), nn.ReLU()
        self.offset, self.pool = nn.Parameter(torch.randn(1, 4, 7, 7)), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self, x)


def changed_between(m: nn.Module, x: Tensor) -> Tensor:
    x = x * 1
    y = m.conv(x)
    x.mul_(2)
    return x + y


def used_again(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    return (x + y) * y


def not_last(m: nn.Module, x: Tensor) -> Tensor:
    return m.conv(x) + m.relu(x)


def first_but_can_wait(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(2 * x)
    return y + x.relu()


TAKEN: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "x + y": lambda m, x: x + m.conv(x),
    "y + x": lambda m, x: m.conv(x) + x,
    "torch.add": lambda m, x: torch.add(x, m.conv(x)),
    "y.add(x)": lambda m, x: m.conv(x).add(x),
    "y.add_(x)": lambda m, x: m.conv(x).add_(x),
    "iadd": lambda m, x: operator.iadd(m.conv(x), x),
    "relu": lambda m, x: m.relu(x + m.conv(x)) + m.relu(x),
    "first, but can wait": first_but_can_wait,
}
LEFT: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a number": lambda m, x: m.conv(x) + 1,
    "twice it": lambda m, x: torch.add(x, m.conv(x), alpha=2),
    "itself": lambda m, x: (lambda y: y + y)(m.conv(x)),
    "a parameter": lambda m, x: m.conv(x) + m.offset,
    "another shape": lambda m, x: m.conv(x) + m.pool(x),
    "called twice": lambda m, x: m.conv(x) + m.conv(2 * x).relu(),
    "x.add_(y)": lambda m, x: (x * 1).add_(m.conv(x)),
    "changed between": changed_between,
    "used again": used_again,
    "not last": not_last,
}


@pytest.mark.parametrize("name", TAKEN)
def test_sums_that_are_taken_along(name: str) -> None:
    model, x = Around(TAKEN[name]).eval(), torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        expected = model(x)
        graph = to_modules(model, (x,), always=True)
        assert additions_into_convolutions(graph, (x,)) == 1 + (name == "relu")
        graph.recompile()
        torch.testing.assert_close(graph(x), expected)
    assert graph.get_submodule("conv").activation == ("relu" if name == "relu" else "none")


@pytest.mark.parametrize("name", LEFT)
def test_sums_that_are_not(name: str) -> None:
    model, x = Around(LEFT[name]).eval(), torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        expected = model(x)
        graph = to_modules(model, (x,), always=True)
        assert isinstance(graph, fx.GraphModule)
        assert additions_into_convolutions(graph, (x,)) == 0
        graph.recompile()
        torch.testing.assert_close(graph(x), expected)


def test_a_module_called_again_becomes_two() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
            self.hooked = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.hooked(self.hooked(self.inner(self.inner(x))))

    model, seen = Twice(), []
    model.hooked.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(2, 3)
    traced = to_modules(model, (x,))
    assert isinstance(traced, fx.GraphModule)
    seen.clear()
    assert torch.equal(traced(x), model(x))
    assert len(seen) == 4
    targets = [str(node.target) for node in traced.graph.find_nodes(op="call_module")]
    assert [targets.count(name) for name in ("inner.0", "inner.1", "hooked")] == [2, 1, 2]
    assert traced.state_dict().keys() == model.state_dict().keys()
