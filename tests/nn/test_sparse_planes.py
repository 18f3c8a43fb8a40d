"""Planes that sparse convolutions pass on within one call: rows of layers as they are by themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crest_ext.nn import PackedSequential, Residual, Shortcut, SparseConv2d
from crest_ext.nn.quick import MaxPool2d


def conv(*args: Any, activation: str = "none", kept: float = 0.4, **options: Any) -> SparseConv2d:
    dense = nn.Conv2d(*args, **options)
    with torch.no_grad():
        dense.weight.mul_(torch.rand_like(dense.weight) < kept)
    return SparseConv2d.from_conv2d(dense, activation=activation)


def rows_of_convolutions() -> dict[str, list[nn.Module]]:
    """What passes planes on from layer to layer, and what must not."""

    same = conv(4, 4, 3, padding=1)
    return {
        "narrower and wider": [conv(3, 9, 3, padding=1), nn.ReLU(), conv(9, 4, 3, padding=1, bias=False)],
        "pointwise": [conv(3, 6, 3, padding=1), conv(6, 5, 1), conv(5, 2, 3, padding=1, activation="relu6")],
        "further beyond": [conv(3, 4, 3, padding=1), conv(4, 4, 5, padding=2), conv(4, 4, 3, padding=2, dilation=2)],
        "less far": [conv(3, 4, 5, padding=2), conv(4, 4, 3, padding=1), conv(4, 3, (1, 3), padding=(0, 1))],
        "rows, then columns": [conv(3, 4, (3, 1), padding=(1, 0)), conv(4, 4, (1, 3), padding=(0, 1))],
        "groups": [conv(3, 6, 3, padding=1), conv(6, 4, 3, padding=1, groups=2), conv(4, 4, 3, padding=1, groups=4)],
        "smaller": [conv(3, 4, 3, padding=1), conv(4, 5, 3), conv(5, 5, 3, padding=1)],
        "larger": [conv(3, 4, 3, padding=1), conv(4, 5, 3, padding=2), conv(5, 5, 3, padding=1)],
        "more padding than kernel": [conv(3, 4, 3, padding=1), conv(4, 9, 2, padding=2), conv(9, 4, 1, padding=1)],
        "even kernels": [conv(3, 4, 2), conv(4, 9, 2, padding=1), conv(9, 4, 4, (2, 1), 1)],
        "strides": [conv(3, 4, 3, 2, 1), conv(4, 5, 3, padding=1), conv(5, 6, 3, (2, 1), 1), conv(6, 6, 5, 3, 2)],
        "pooled": [conv(3, 4, 3, padding=1), MaxPool2d(2), conv(4, 5, 3, padding=1), nn.Flatten()],
        "pooled, of few non-zeros": [conv(3, 20, 3, kept=0.05), MaxPool2d(2), conv(20, 4, 1), nn.Flatten()],
        "pooled, of many": [conv(3, 40, 5, activation="relu"), MaxPool2d(3, 2, 1, ceil_mode=True), conv(40, 4, 1)],
        "pooled after pooled": [conv(3, 4, (1, 3), (1, 2)), MaxPool2d((2, 1), 1), MaxPool2d(3, 1, 1), conv(4, 4, 1)],
        "shortcut": [conv(3, 4, 3, padding=1), Shortcut((2, 3), 1, 0), conv(5, 5, 3, padding=1)],
        "around a stride": [
            conv(3, 2, 3, padding=1),
            Residual({"a": conv(2, 4, 3, 2, 1)}, same, {"s": Shortcut((2, 2), 1, 1)}),
            Residual({}, copy.deepcopy(same), {}),
            Residual({"a": conv(4, 4, 1)}, conv(4, 4, 5, padding=2), {"b": conv(4, 4, 3, padding=1)}),
        ],
    }


@pytest.mark.parametrize("name", rows_of_convolutions())
def test_planes_between_convolutions(name: str, isa: str) -> None:
    plain = nn.Sequential(*rows_of_convolutions()[name]).eval().requires_grad_(False)
    made = PackedSequential(dict(plain.named_children())).eval()
    assert [run[:2] for run in made.runs] == [(0, len(plain))]
    for shape in ((1, 3, 8, 8), (3, 3, 7, 9), (1, 3, 33, 18), (2, 3, 6, 40), (0, 3, 8, 8)):
        x = torch.randn(shape)
        assert torch.equal(made(x), plain(x))
    x = torch.randn(2, 3, 9, 11)
    x[0, 1, 4, 5], x[1, 2, 0, 0] = float("inf"), float("nan")
    torch.testing.assert_close(made(x), plain(x), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["around a stride", "pooled", "pooled, of few non-zeros", "pooled, of many"])
def test_planes_by_two_threads(name: str, isa: str) -> None:
    """And of more images than are computed at a time."""
    plain = nn.Sequential(*rows_of_convolutions()[name]).eval().requires_grad_(False)
    made, before = PackedSequential(dict(plain.named_children())).eval(), torch.get_num_threads()
    x = torch.randn(3, 3, 90, 70)
    expected = plain(x)
    try:
        torch.set_num_threads(2)
        assert torch.equal(made(x), expected)
    finally:
        torch.set_num_threads(before)


def test_planes_are_no_ones_but_the_calls(isa: str) -> None:
    """Neither a result nor what a thread keeps for the next call is one that a caller still has."""
    plain = nn.Sequential(*rows_of_convolutions()["around a stride"]).eval().requires_grad_(False)
    made, x = PackedSequential(dict(plain.named_children())).eval(), torch.randn(2, 3, 8, 8)
    first, expected = made(x), plain(x)
    made(torch.randn(2, 3, 8, 8)), made(torch.randn(1, 3, 20, 20))
    assert torch.equal(first, expected)


def same_size(draw: st.DrawFn, channels: int) -> SparseConv2d:
    kernel, dilation = draw(st.sampled_from([1, 3, 3, 5])), draw(st.integers(1, 2))
    return conv(channels, channels, kernel, padding=kernel // 2 * dilation, dilation=dilation)


@st.composite
def any_row(draw: st.DrawFn) -> tuple[list[nn.Module], int]:
    """Layers in a row, and the channels of their input."""
    first = channels = draw(st.integers(1, 4))
    layers: list[nn.Module] = []
    kinds = ["conv", "conv", "block", "stride", "shortcut", "relu", "pool", "pool"]
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=2)):
        if kind == "conv":
            to = draw(st.integers(1, 17))
            sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))
            where = {"padding": draw(st.integers(0, 3)), "dilation": draw(st.integers(1, 2))}
            activation = draw(st.sampled_from(["none", "relu", "relu6"]))
            stride = draw(st.sampled_from([1, 1, 2, 3, (1, 2)]))
            layers.append(conv(channels, to, draw(sizes), stride, activation=activation, **where))
            channels = to
        elif kind == "block":
            paths = [{str(i): same_size(draw, channels) for i in range(draw(st.integers(0, 2)))} for _ in range(2)]
            layers.append(Residual(paths[0], same_size(draw, channels), paths[1]))
        elif kind == "stride":
            inner, around = conv(channels, channels + 3, 3, 2, 1), Shortcut((2, 2), 1, 2)
            channels += 3
            layers.append(Residual({"a": inner}, same_size(draw, channels), {"b": around}))
        elif kind == "pool":
            size = draw(st.integers(1, 4))
            where = {"padding": draw(st.integers(0, size // 2)), "dilation": draw(st.integers(1, 2))}
            layers.append(MaxPool2d(size, draw(st.integers(1, 3)), ceil_mode=draw(st.booleans()), **where))
        elif kind == "shortcut":
            layers.append(Shortcut((draw(st.integers(1, 3)), 1), 1, 0))
            channels += 1
        else:
            layers.append(nn.ReLU())
    return [conv(first, first, 3, padding=1), *layers], first


@settings(max_examples=150, deadline=None)
@given(any_row(), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
def test_any_row_of_layers(row: tuple[list[nn.Module], int], n: int, h: int, w: int) -> None:
    layers, channels = row
    plain = nn.Sequential(*layers).eval().requires_grad_(False)
    made, x = PackedSequential(dict(plain.named_children())).eval(), torch.randn(n, channels, h, w)
    try:
        expected = plain(x)
    except ValueError as error:  # of a kernel that is larger than what it gets
        with pytest.raises(ValueError) as raised:
            made(x)
        assert str(raised.value) == str(error)
    else:  # a window that is all padding gives -inf, and these NaNs
        torch.testing.assert_close(made(x), expected, rtol=0, atol=0, equal_nan=True)
