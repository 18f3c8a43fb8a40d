from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crest_ext.nn import DepthwiseConv2d, MaskedConv2d, SeparableConv2d


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
        (nn.Conv2d, {"kernel_size": (3, 2), "padding": (1, 0), "dilation": (2, 1), "bias": False}),
        (nn.Conv2d, {"kernel_size": 3, "padding": "same"}),
        (nn.Conv2d, {"kernel_size": 3, "padding": "valid", "stride": 2}),
        (DepthwiseConv2d, {"kernel_size": 3, "padding": "same", "stride": 2}),
        (DepthwiseConv2d, {"kernel_size": 5, "padding": (1, 2, 0, 3)}),
    ],
)
def test_computes_both(kind: Any, arguments: dict[str, Any]) -> None:
    first = nn.Conv2d(6, 6, groups=6, **arguments) if kind is nn.Conv2d else DepthwiseConv2d(6, **arguments)
    second, x = nn.Conv2d(6, 9, 1, bias="bias" not in arguments), 3 * torch.randn(2, 6, 11, 12)
    module = SeparableConv2d.from_conv2d(first, second, "relu", "relu6")
    with torch.no_grad():
        expected = F.relu6(second(F.relu(first(x))))
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
    for got, conv in zip(module.effective_weights(), (first, second), strict=True):
        assert torch.equal(got, conv.weight)
    assert not list(module.parameters())


def test_of_masked_convolutions() -> None:
    first, second = MaskedConv2d(4, 4, 3, groups=4), MaskedConv2d(4, 5, 1)
    for conv in (first, second):
        conv.mask.copy_(torch.rand_like(conv.weight) < 0.5)
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(SeparableConv2d.from_conv2d(first, second)(x), second(first(x)))


def test_is_an_ordinary_module() -> None:
    module, other = (
        SeparableConv2d.from_conv2d(nn.Conv2d(5, 5, 3, groups=5), nn.Conv2d(5, 40, 1), "relu6").eval() for _ in range(2)
    )
    x = torch.randn(2, 5, 9, 9)
    expected = module(x)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), expected)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert torch.equal(program.module()(x[:1]), module(x[:1]))
    assert "5, 40, kernel_size=(3, 3)" in repr(module)
    assert repr(module).endswith("depthwise_activation=relu6, activation=none)")


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 5, 1), "the first is not depthwise"),
        (nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 5, 1), "the first is not depthwise"),
        (nn.Conv2d(4, 4, 3, groups=4, padding_mode="circular"), nn.Conv2d(4, 5, 1), "the first is not depthwise"),
        (DepthwiseConv2d(4, 3, activation="relu"), nn.Conv2d(4, 5, 1), "the first has an activation of its own"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 3), "the second is not pointwise"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1, groups=2), "the second is not pointwise"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1, stride=2), "the second is not pointwise"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1, padding=1), "the second is not pointwise"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(3, 5, 1), "the second is not pointwise"),
    ],
)
def test_refuses(first: nn.Conv2d, second: nn.Conv2d, reason: str) -> None:
    rule = f"SeparableConv2d: must be a depthwise and a pointwise convolution; {reason}"
    with pytest.raises(ValueError, match=f"^{re.escape(rule)}$"):
        SeparableConv2d.from_conv2d(first, second)
