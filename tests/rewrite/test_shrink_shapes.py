"""Filter shapes taken out: narrower lowered matrices, and smaller windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest_ext import shrink
from crest_ext.models import create_model
from crest_ext.nn import LoweredConv2d, mask_
from shrinking import run, settle, zero_

pytestmark = pytest.mark.usefixtures("one_thread")


def keep_(conv: Any, kept: Tensor) -> None:
    """Zero all other shapes."""
    with torch.no_grad():
        conv.weight.mul_(kept)


def shrunk(model: nn.Module, x: Tensor, **options: Any) -> tuple[Any, list[str]]:
    small, report = shrink(model, x, shape=True, explain=True, **options)
    expected = run(model, x)
    torch.testing.assert_close(run(small, x), expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))
    return small, [str(row) for row in report.layers]


def test_lenet_5_masked() -> None:
    """As in the paper's table 2: few shapes, in the second convolution fewer channels besides."""
    model: Any = settle(create_model("lenet_5"))
    mask_(model.conv1).mask[:, 0, 1:3] = False
    mask_(model.conv1).mask[:, 0, 4] = False
    zero_(model.conv1, outs=range(15))
    kept = torch.zeros(20, 5, 5, dtype=torch.bool)
    kept[13:19, [0, 4], 2] = True  # two of these channels are constant: folded
    mask_(model.conv2).mask &= kept
    x = torch.randn(2, 1, 28, 28)
    small, said = shrunk(model, x)
    assert said[:2] == [
        "conv1: (20, 1, 5, 5) -> (4, 1, 5, 5)",  # ten of 25 shapes are too many for four filters
        "conv2: (50, 20, 5, 5) -> (50, 8, 1, 1); 8 of 500 shapes",
    ]
    assert isinstance(small.conv2, LoweredConv2d)
    plain = {key for key in model.state_dict() if not key.endswith("mask")}
    assert small.state_dict().keys() == plain | {"conv2.shapes"}
    torch.testing.assert_close(run(small, x[:, :, 2:, 4:].repeat(3, 1, 2, 2)[..., :28, :28]).shape, (6, 10))


@pytest.mark.parametrize(
    ("rows", "columns", "window", "padding"),
    [
        ((1, 4), (1, 4), (3, 3), (1, 1)),
        ((0, 5), (2, 3), (5, 1), (2, 0)),
        ((1, 5), (0, 5), None, None),  # would pad more above than below
    ],
)
def test_windows(rows: Any, columns: Any, window: Any, padding: Any) -> None:
    model: Any = settle(nn.Sequential(nn.Conv2d(3, 8, 5, padding=2, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    kept = torch.zeros(3, 5, 5, dtype=torch.bool)
    kept[:, slice(*rows), slice(*columns)] = True
    keep_(model[0], kept)
    small, said = shrunk(model.to(memory_format=torch.channels_last), torch.randn(2, 3, 9, 12))
    assert type(small[0]) is nn.Conv2d
    if window is None:
        assert said[0] == "0: left as it is: all its outputs are used"
    else:
        assert said[0] == f"0: (8, 3, 5, 5) -> {(8, 3, *window)}"
        assert (small[0].kernel_size, small[0].padding) == (window, padding)
        assert small[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert small[0].bias.requires_grad


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_words_for_padding(padding: str) -> None:
    model: Any = settle(nn.Sequential(nn.Conv2d(3, 8, 5, padding=padding, dilation=2), nn.Conv2d(8, 4, 1)))
    kept = torch.zeros(3, 5, 5, dtype=torch.bool)
    kept[:, 1:4, 1:4] = True
    keep_(model[0], kept)
    small, _ = shrunk(model, torch.randn(2, 3, 12, 11))
    assert small[0].kernel_size == ((3, 3) if padding == "same" else (5, 5))  # a window further inside needs a crop


def test_what_stays() -> None:
    model: Any = settle(
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=2, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3))
    )
    kept = torch.zeros(3, 3, dtype=torch.bool)
    kept[1, 1] = True
    for conv in model:
        keep_(conv, kept)
    assert shrunk(model, torch.randn(2, 8, 9, 9), ignored_layers=["1"])[1] == [
        "0: left as it is: 8 of 8 outputs stay: 1 reads them, which is ignored",
        "1: left as it is: is ignored",
        "2: left as it is: 8 of 8 outputs stay: they are outputs of the model",
    ]


def test_trains_on_with_its_optimizer() -> None:
    model: Any = settle(nn.Sequential(nn.Conv2d(8, 20, 3), nn.ReLU(), nn.Conv2d(20, 64, 5, padding=2), nn.Flatten()))
    zero_(model[0], outs=range(4), bias=0.0)
    kept = torch.zeros(20, 5, 5, dtype=torch.bool)
    kept[6:, 2, 1] = True
    keep_(model[2], kept)
    x = torch.randn(2, 8, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    keep_(model[2], kept)
    zero_(model[0], outs=range(4), bias=0.0)
    momentum = optimizer.state[model[2].weight]["momentum_buffer"].clone()
    small, _ = shrunk(model, x, optimizer=optimizer)
    assert isinstance(small[2], LoweredConv2d)
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(small.parameters())
    cut = optimizer.state[small[2].weight]["momentum_buffer"]
    assert torch.equal(cut[:, :, 0, 0], momentum[:, 6:, 2, 1])
    before = run(small, x)
    small(x).square().mean().backward()
    optimizer.step()
    assert not torch.equal(run(small, x), before)
