"""nn.PackedSequential, and what pack makes of rows of layers."""

from __future__ import annotations

import copy
import io
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crest_ext
from crest_ext import packed_sequential
from crest_ext.nn import (
    ChannelMean,
    DepthwiseConv2d,
    PackedSequential,
    Residual,
    SamePad2d,
    SeparableConv2d,
    Shortcut,
    SparseConv2d,
    SparseLinear,
    StemConv2d,
)
from crest_ext.nn.quick import MaxPool2d
from crest_ext.rewrite import measure


def sparse(layer: nn.Conv2d | nn.Linear, activation: str = "none") -> nn.Module:
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.4)
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d.from_conv2d(layer, activation=activation)
    return SparseLinear.from_linear(layer, activation=activation)


def row() -> nn.Sequential:
    """Two runs, with a layer between them that stays as it is, and every kind of step in them."""
    layers = nn.Sequential(
        OrderedDict(
            conv1=sparse(nn.Conv2d(2, 6, (3, 2), (1, 2), (1, 0), (2, 1), 2, bias=False)),
            pool1=MaxPool2d((3, 2), ceil_mode=True),
            relu1=nn.ReLU(),
            norm=nn.BatchNorm2d(6),
            conv2=sparse(nn.Conv2d(6, 4, 3, padding=1), "relu"),
            nothing=nn.Identity(),
            pool2=MaxPool2d(2),
            flat=nn.Flatten(),
            ip1=sparse(nn.Linear(16, 9), "relu"),
            ip2=sparse(nn.Linear(9, 5, bias=False)),
            soft=nn.Softmax(1),
        )
    )
    return layers.eval().requires_grad_(False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The steps of each call of the op."""
    found = []

    def spy(x: Tensor, tensors: list[Tensor], steps: list[int]) -> Tensor:
        found.append(steps)
        return packed_sequential(x, tensors, steps)

    monkeypatch.setitem(PackedSequential.forward.__globals__, "packed_sequential", spy)
    return found


X = torch.randn(3, 2, 13, 14)


def test_computes_the_modules(calls: list[list[int]], isa: str) -> None:
    plain = row()
    made = PackedSequential(dict(plain.named_children())).eval()
    assert torch.equal(made(X), plain(X))
    assert [run[:2] for run in made.runs] == [(0, 3), (3, 4), (4, 10), (10, 11)]
    assert len(calls) == 2
    assert list(made.state_dict()) == list(plain.state_dict())
    assert torch.equal(made[4:](torch.ones(1, 6, 4, 4)), plain[4:](torch.ones(1, 6, 4, 4)))


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda m: loaded(m), lambda m: m.to(torch.float32)], ids=["copied", "saved", "moved"]
)
def test_copies_and_saves(way: Callable[[nn.Module], nn.Module]) -> None:
    made = PackedSequential(dict(row().named_children())).eval()
    expected = made(X)
    assert torch.equal(way(made)(X), expected)
    other = PackedSequential(dict(row().named_children())).eval()
    other.load_state_dict(made.state_dict())  # of another number of non-zeros
    assert torch.equal(other(X), expected)


def loaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_compiles_and_exports() -> None:
    made = PackedSequential(dict(row().named_children())).eval()
    with torch.no_grad():
        expected = made(X)
        torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="aot_eager")(X), expected)
        torch.testing.assert_close(torch.export.export(made, (X,)).module()(X), expected)


def test_hooks_are_called(calls: list[list[int]]) -> None:
    made = PackedSequential(dict(row().named_children())).eval()
    expected, seen = made(X), []
    calls.clear()
    made.ip1.register_forward_hook(lambda *call: seen.append(call[2].shape))
    assert torch.equal(made(X), expected)
    assert (seen, len(calls)) == ([(3, 9)], 1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions(channels_last: bool, calls: list[list[int]], isa: str) -> None:
    """An image's, depthwise and separable ones, paddings in numbers and SAME, as they are by themselves."""
    conv, depthwise = nn.Conv2d(3, 8, 3, 2, bias=False), DepthwiseConv2d(8, (3, 5), (2, 1), "same", activation="relu6")
    separable = DepthwiseConv2d(16, 3, 2, (0, 1, 1, 0), bias=False), nn.Conv2d(16, 5, 1)
    layers = [
        StemConv2d.from_conv2d(conv, "relu", SamePad2d((3, 3), (2, 2)), channels_last),
        depthwise,
        SeparableConv2d.from_conv2d(DepthwiseConv2d(8, 3, 1, "same"), nn.Conv2d(8, 16, 1, bias=False), "relu", "none"),
        SeparableConv2d.from_conv2d(*separable, "none", "relu6"),
    ]
    plain = nn.Sequential(*layers).eval().requires_grad_(False)
    made = PackedSequential(dict(plain.named_children())).eval()
    for shape in ((2, 3, 21, 18), (1, 3, 16, 16), (0, 3, 9, 9)):
        x = torch.randn(shape)
        assert torch.equal(made(x), plain(x))
    assert [run[:2] for run in made.runs] == [(0, 4)]
    assert len(calls) == 3
    x = torch.randn(2, 3, 13, 14)
    torch.testing.assert_close(torch.export.export(made, (x,)).module()(x), plain(x))
    depthwise.weight.requires_grad_()
    with pytest.raises(ValueError, match="packed_sequential: tensors must not require a gradient"):
        made(x)


def blocks() -> nn.Sequential:
    """A shortcut, a path beside a convolution, one block within another, and a layer behind."""

    def conv(channels: int = 4, activation: str = "none") -> SparseConv2d:
        made = sparse(nn.Conv2d(4, channels, 3, padding=1), activation)
        assert isinstance(made, SparseConv2d)
        return made

    inner = Residual({"a": conv(activation="relu"), "nothing": nn.Identity()}, conv(activation="relu"), {})
    layers = [
        inner,
        Residual({}, conv(), {"a": conv(activation="relu"), "relu": nn.ReLU(), "b": conv()}),
        Residual({"a": conv(), "block": copy.deepcopy(inner)}, conv(activation="relu"), {"c": conv()}),
        conv(3),
    ]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def test_residual_blocks(calls: list[list[int]], isa: str) -> None:
    plain, x = blocks(), torch.randn(2, 4, 9, 7)
    made = PackedSequential(dict(plain.named_children())).eval()
    expected = plain(x)
    assert torch.equal(made(x), expected)
    assert len(calls) == 1 and made.saved == 10
    assert list(made.state_dict()) == list(plain.state_dict())
    assert not torch.equal(expected, nn.Sequential(*(block.inner for block in plain[:3]), plain[3])(x))
    for same in (copy.deepcopy(made), loaded(made), torch.export.export(made, (x,)).module()):
        assert torch.equal(same(x), expected)


@pytest.mark.parametrize("name", ["0.inner.a", "1.last", "1.other", "2", "2.inner.block"])
def test_hooks_within_blocks_are_called(name: str, calls: list[list[int]]) -> None:
    plain, x, seen = blocks(), torch.randn(1, 4, 6, 6), []
    made = PackedSequential(dict(plain.named_children())).eval()
    made.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(made(x), plain(x))
    assert (len(seen), len(calls)) == (2, 0)  # the module is in both


def test_blocks_that_are_called_as_they_are() -> None:
    conv = blocks()[1].last
    for paths in (
        ({"a": nn.Tanh(), "b": conv}, {}),
        ({"a": conv}, {"b": nn.Tanh()}),
        ({"relu": nn.ReLU()}, {"b": conv}),
    ):
        block = Residual(paths[0], copy.deepcopy(conv), paths[1])
        assert PackedSequential.of({"0": block}) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_shortcut(dtype: torch.dtype, channels_last: bool, isa: str) -> None:
    x = torch.randn(2, 3, 37, 34).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for stride, before, behind in (((2, 2), 1, 2), ((1, 1), 0, 3), ((3, 2), 0, 0), ((2, 1), 2, 0), ((40, 40), 1, 1)):
        expected = Shortcut(stride, before, behind)(x)
        assert torch.equal(packed_sequential(x, [], [10, *stride, before, behind]), expected)
    assert packed_sequential(x[:0], [], [10, 2, 2, 1, 1]).shape == (0, 5, 19, 17)
    assert torch.equal(packed_sequential(x[:, :0], [], [10, 2, 2, 1, 1]), torch.zeros(2, 2, 19, 17, dtype=dtype))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mean", [ChannelMean(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())], ids=str)
def test_the_end_of_a_network(mean: nn.Module, bias: bool, calls: list[list[int]]) -> None:
    ends = list(mean) if isinstance(mean, nn.Sequential) else [mean]
    convs = [sparse(nn.Conv2d(3, 5, 3, padding=1)), sparse(nn.Conv2d(5, 6, 3, padding=1), "relu")]
    plain = nn.Sequential(*convs, *ends, nn.Linear(6, 4, bias=bias)).eval().requires_grad_(False)
    made = PackedSequential(dict(plain.named_children())).eval()
    for x in (torch.randn(2, 3, 9, 7), torch.randn(1, 3, 1, 1)):
        assert torch.equal(made(x), plain(x))
    assert len(calls) == 2 and made.saved == 1
    torch.testing.assert_close(torch.export.export(made, (x,)).module()(x), plain(x))


def test_a_pool_of_several_is_no_step() -> None:
    conv = sparse(nn.Conv2d(3, 5, 3))
    made = PackedSequential({"0": conv, "1": conv, "2": nn.AdaptiveAvgPool2d(2), "3": nn.Flatten()})
    assert [run[:2] for run in made.runs] == [(0, 2), (2, 3), (3, 4)]


def test_where_no_call_is_saved() -> None:
    ip = sparse(nn.Linear(6, 6))
    for layers in ([ip], [nn.ReLU(), ip, nn.ReLU()], [ip, nn.Tanh(), ip], [MaxPool2d(2), MaxPool2d(2)]):
        assert PackedSequential.of({str(i): layer for i, layer in enumerate(layers)}) is None


LINEAR = [3, 2, 3, 0, 0]


@pytest.mark.parametrize(
    ("steps", "count", "rule"),
    [
        ([], 0, "packed_sequential: steps must have a layer, got none"),
        ([13], 0, "packed_sequential: steps must begin a layer with a kind from 0 to 12, got 13"),
        ([0, -1], 0, "packed_sequential: steps must begin a layer with a kind from 0 to 12, got -1"),
        ([8, 8], 0, "packed_sequential: steps must add what they keep, got 2 more"),
        ([9], 0, "packed_sequential: steps must keep what they swap or add, got none"),
        ([1, 0], 0, "packed_sequential: steps must end with a layer, got 2 numbers, which is within one"),
        (LINEAR[:-1], 5, "packed_sequential: steps must end with a layer, got 4 numbers, which is within one"),
        (LINEAR, 4, "packed_sequential: tensors must be as many as steps take, got 4"),
        (LINEAR, 6, "packed_sequential: tensors must be as many as steps take, 5, got 6"),
        ([3, 2, 3, 1, 0], 5, "packed_sequential: tensors must be as many as steps take, got 5"),
        ([3, 2, 4, 0, 0], 5, "sparse_linear: x must have shape (..., 4), got (1, 3)"),
        ([3, 2, 3, 0, 3], 5, "packed_sequential: an activation among steps must be 0, 1 or 2, got 3"),
        ([11, 0], 0, "packed_sequential: the mean must be of 4 dimensions, got (1, 3)"),
        ([12, 0], 0, "packed_sequential: tensors must be as many as steps take, got 0"),
        ([10, 2, 2, 1, 1], 0, "shortcut: x must have 4 dimensions, got (1, 3)"),
        ([5, *[1] * 8, 0, 0], 1, "packed_sequential: a weight must have 4 dimensions, got (2, 16)"),
    ],
)
def test_errors(steps: list[int], count: int, rule: str) -> None:
    tensors = [*sparse(nn.Linear(3, 2)).packed()[:5], torch.zeros(2)]  # type: ignore[operator]
    with pytest.raises(ValueError) as raised:
        packed_sequential(torch.zeros(1, 3), tensors[:count], steps)
    assert str(raised.value) == rule


def test_autocast() -> None:
    dense, sparse = nn.Linear(16, 16), nn.Linear(16, 16)
    nn.init.zeros_(sparse.weight)
    made = PackedSequential({str(i): SparseLinear.from_linear(sparse) for i in range(2)})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = dense(torch.randn(3, 16))
        assert x.dtype == torch.bfloat16
        torch.testing.assert_close(made(input=x), made(x.float()))
        torch.testing.assert_close(made[0](input=x), made[0](x.float()))


def test_no_gradient() -> None:
    with pytest.raises(ValueError, match="packed_sequential: x must not require a gradient"):
        packed_sequential(torch.zeros(1, 3, requires_grad=True), [], [0])
    with torch.no_grad():
        packed_sequential(torch.zeros(1, 3, requires_grad=True), [], [0])


class Traced(nn.Module):
    """Calls of functions, so that pack makes a graph of it; the first layer's result is taken twice."""

    def __init__(self) -> None:
        super().__init__()
        sizes = itertools.pairwise((30, 20, 20, 20, 5))
        self.body = nn.ModuleList(nn.Linear(*size) for size in sizes)
        with torch.no_grad():
            for layer in self.body:
                layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.body[0](x.flatten(1)).relu()
        return self.body[3](self.body[2](self.body[1](first).relu()) + first)


@pytest.fixture
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "medians", lambda *_: (2.0, 1.0))


def test_pack_makes_rows(sparse_wins: None, calls: list[list[int]]) -> None:
    model, x = Traced().eval(), torch.randn(4, 5, 6)
    packed = crest_ext.pack(model, x)
    calls.clear()
    torch.testing.assert_close(packed(x), model(x))
    assert len(calls) == 1
    assert [name for name, m in packed.named_modules() if isinstance(m, PackedSequential)] == ["body_1_to_body_2"]

    head = nn.Sequential(nn.Flatten(), nn.Linear(30, 20), nn.ReLU(), nn.Sequential(nn.Linear(20, 9), nn.Linear(9, 9)))
    head.requires_grad_(False)[1].weight.mul_(torch.rand(20, 30) < 0.3)
    for layer in head[3]:
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)
    packed = crest_ext.pack(head, x)
    torch.testing.assert_close(packed(x), head(x))
    assert [name for name, m in packed.named_modules() if isinstance(m, PackedSequential)] == ["3"]
    nested = nn.Sequential(nn.Flatten(), head[1], nn.ReLU(), nn.Linear(20, 20), nn.Sequential(*head[3]))
    nested[3].requires_grad_(False).weight.mul_(torch.rand(20, 20) < 0.3)
    assert [type(m) for m in crest_ext.pack(nested, x).modules()].count(PackedSequential) == 2
    lenet = nn.Sequential(*head[:3], *head[3])
    assert type(crest_ext.pack(lenet, x)) is PackedSequential


def test_pack_takes_a_layer_along_that_a_call_would_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 9)).requires_grad_(False), torch.randn(2, 30)
    for layer in (model[0], model[2]):
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)
    for row, kernels in (((2.0, 1.0), ["sparse, relu", "sparse"]), ((1.0, 2.0), ["sparse, relu", "dense"])):
        measured = iter([(2.0, 1.0), (1.0, 1.1), row, (2.0, 1.0)])  # each layer, the two, the whole
        monkeypatch.setattr(measure, "medians", lambda *_, measured=measured: next(measured))
        packed, report = crest_ext.pack(model, x, explain=True)
        assert [layer.kernel for layer in report.layers] == kernels
        assert isinstance(packed, PackedSequential) == (kernels[1] == "sparse")
        torch.testing.assert_close(packed(x), model(x))
        assert next(measured, None) is None
    assert report.layers[1].reason == "measured no slower"
