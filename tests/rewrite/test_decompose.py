from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crest_ext import decompose
from crest_ext.models import create_model, multiply_adds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 9, 7)),
        (lambda: nn.Conv2d(6, 8, (5, 3), (2, 3), (1, 2), (2, 1), bias=False), (2, 6, 15, 14)),
        (lambda: nn.Conv2d(6, 8, 3, padding="same", dilation=2, padding_mode="reflect"), (2, 6, 9, 7)),
    ],
)
def test_a_pair_has_the_shape_of_its_convolution(layer: Any, shape: tuple[int, ...]) -> None:
    conv = layer()
    model = nn.Sequential(conv, nn.ReLU()).eval()
    before = copy.deepcopy(model.state_dict())
    small = decompose(model)
    vertical, relu, horizontal = small[0]
    kh, kw = conv.kernel_size
    assert (vertical.weight.shape, horizontal.weight.shape) == ((8, 6, kh, 1), (8, 8, 1, kw))
    assert isinstance(relu, nn.ReLU)
    assert vertical.bias is not None
    assert (horizontal.bias is None) == (conv.bias is None)
    x = torch.randn(shape)
    assert small(x).shape == model(x).shape
    assert not any(m.training for m in small.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_resnet() -> None:
    """By the formula, layer by layer; what is left is named by its rule; and it trains."""
    model: Any = create_model("resnet20")
    small: Any = decompose(model)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    pairs = [(n, c) for n, c in ((m.out_channels, m.in_channels) for m in layers) if 3 * n * (c + n) < 9 * n * c]
    assert len(pairs) == len(layers) - 3  # the first has three channels, and two double theirs
    fewer = sum(9 * n * c - 3 * n * (c + n) - n for n, c in pairs)
    count = sum(p.numel() for p in small.parameters())
    assert count == sum(p.numel() for p in model.parameters()) - fewer == 188_890
    x = torch.randn(4, 3, 32, 32)
    assert isinstance(small.conv1, nn.Conv2d)
    assert sum(multiply_adds(small, x[:1]).values()) < 0.75 * sum(multiply_adds(model, x[:1]).values())
    F.cross_entropy(small(x), torch.arange(4)).backward()
    assert all(p.grad is not None for p in small.parameters())


def test_what_is_left_alone() -> None:
    shared, tied, hooked = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
    tied.weight = shared.weight
    hooked.register_forward_hook(lambda *_: None)
    model = nn.ModuleDict(
        {
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "one": nn.Conv2d(8, 8, 1),
            "row": nn.Conv2d(8, 8, (1, 5)),
            "thin": nn.Conv2d(8, 64, 2),
            "shared": shared,
            "tied": tied,
            "hooked": hooked,
            "linear": nn.Linear(8, 8),
        }
    )
    small, report = decompose(model, explain=True)
    assert not any(isinstance(layer, nn.Sequential) for layer in small.modules())
    assert {row.name: row.note for row in report.layers} == {
        "grouped": "has groups",
        "one": "has a side of 1",
        "row": "has a side of 1",
        "thin": "a pair needs 9,216 weights instead of 2,048",
        "shared": "shares its weight",
        "tied": "shares its weight",
        "hooked": "has hooks",
    }
    assert all(row.before == row.after for row in report.layers)


def test_report() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 16, (3, 5), bias=False))
    small, report = decompose(model, explain=True)
    assert str(report) == "0: left as it is: has groups\n2: 1,920 -> 1,664 weights"
    weights = [sum(p.numel() for n, p in layer.named_parameters() if "weight" in n) for layer in (small[0], small[2])]
    assert [row.after for row in report.layers] == weights
    assert isinstance(decompose(model), nn.Sequential)


def test_dec3_and_dec8() -> None:
    """Parameters and multiply-adds, counted by hand."""
    dec3, dec8 = create_model("dec3"), create_model("dec8")
    sides = {"pair1": 9 * (1 + 96) * 96 * 24**2, "pair2": 9 * (96 + 128) * 128 * 12**2}
    last = 8 * 128 * 512 * 6 + 8 * 512 * 512  # at 1x6 places and at one
    assert sum(multiply_adds(dec3, torch.randn(1, 1, 24, 24)).values()) == sum(sides.values()) + last + 512 * 36
    assert sum(p.numel() for p in dec8.parameters()) == 3 * 3 * 512 + 15 * 3 * 512**2 + 16 * 512 + 512 * 1000 + 1000
    dec8 = create_model("dec8", neurons=8, classes=5)  # the same in proportion
    places = [56**2, 28**2, 28**2, 14**2, 14**2, 7**2, 7**2]
    pairs = 3 * 3 * 8 * 112 * 224 + 3 * 8 * 8 * 112**2 + sum(2 * 3 * 8 * 8 * n for n in places)
    assert sum(multiply_adds(dec8, torch.randn(1, 3, 224, 224)).values()) == pairs + 8 * 5
