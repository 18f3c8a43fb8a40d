from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn

from crest_ext.nn import LoweredConv2d

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 5, "stride": 2, "padding": 2, "bias": False},
    {"kernel_size": (3, 2), "padding": (1, 0), "dilation": (2, 1)},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 1},
]


def thinned(**arguments: Any) -> tuple[nn.Conv2d, LoweredConv2d]:
    """A convolution with zeros at the same places of all filters, and what is left of it."""
    conv = nn.Conv2d(4, 6, **arguments)
    kept = torch.rand(conv.weight.shape[1:]) < 0.4
    kept[1, 0, 0], kept[2] = True, False
    with torch.no_grad():
        conv.weight.mul_(kept)
    return conv, LoweredConv2d.from_conv2d(conv, kept)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
def test_computes_the_same(arguments: dict[str, Any], memory_format: torch.memory_format) -> None:
    conv, lowered = thinned(**arguments)
    x = torch.randn(2, 4, 9, 11).to(memory_format=memory_format)
    assert lowered.weight.numel() < conv.weight.numel()
    assert torch.equal(lowered.dense_weight(), conv.weight)
    for module in (lowered.eval(), copy.deepcopy(lowered), pickle.loads(pickle.dumps(lowered)), lowered.train()):
        torch.testing.assert_close(module(x), conv(x))
        torch.testing.assert_close(module(x[1]), conv(x[1]))  # one image


def test_state_dict() -> None:
    conv, lowered = thinned(kernel_size=3)
    assert lowered.state_dict().keys() == {"weight", "bias", "shapes"}
    other = LoweredConv2d.from_conv2d(nn.Conv2d(4, 6, 3), lowered.dense_weight().any(0).roll(1, 0))
    other.load_state_dict(lowered.state_dict())
    assert torch.equal(other.dense_weight(), conv.weight)


def test_gradients_are_those_of_what_is_left() -> None:
    conv, lowered = thinned(kernel_size=3, padding=1)
    x = torch.randn(2, 4, 6, 6)
    c, i, j = lowered.shapes
    for module in (conv, lowered, lowered.eval()):
        module.zero_grad()
        module(x).square().sum().backward()
        assert conv.weight.grad is not None
        assert module.weight.grad is not None
        if module is lowered:
            torch.testing.assert_close(module.weight.grad[:, :, 0, 0], conv.weight.grad[:, c, i, j])


def test_exports_and_compiles() -> None:
    _, lowered = thinned(kernel_size=3, padding=1)
    lowered, x = lowered.eval(), torch.randn(3, 4, 6, 7)
    dims = {0: torch.export.Dim("batch", max=64), 2: torch.export.Dim("height", min=4, max=99)}
    program = torch.export.export(lowered, (x,), dynamic_shapes=(dims,)).module()
    other = torch.randn(5, 4, 9, 7)
    torch.testing.assert_close(program(other), lowered(other))
    torch.testing.assert_close(torch.compile(lowered, fullgraph=True, backend="eager")(x), lowered(x))


def test_onnx_gets_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, lowered = thinned(kernel_size=3, padding=1)
    lowered, x = lowered.eval(), torch.randn(1, 4, 6, 7)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(lowered, (x,))
    assert "unfold" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), conv(x))


def test_errors_and_repr() -> None:
    kept = torch.zeros(4, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^LoweredConv2d: groups must be 1, got 2$"):
        LoweredConv2d.from_conv2d(nn.Conv2d(8, 6, 3, groups=2), kept)
    message = r"^LoweredConv2d: kept must be bool, \(4, 3, 3\), and keep some, got torch\.bool, \(4, 3, 3\), 0 of 36$"
    with pytest.raises(ValueError, match=message):
        LoweredConv2d.from_conv2d(nn.Conv2d(4, 6, 3), kept)
    kept[0, 1, 1] = True
    for shape in ((2, 5, 6, 6), (5, 6, 6), (6, 6)):  # of more channels a gather would take the first
        for mode in (True, False):
            message = rf"^LoweredConv2d: x must have shape \(n, 4, h, w\) or \(4, h, w\), got {re.escape(str(shape))}$"
            with pytest.raises(ValueError, match=message):
                LoweredConv2d.from_conv2d(nn.Conv2d(4, 6, 3), kept).train(mode)(torch.zeros(shape))
    assert repr(LoweredConv2d.from_conv2d(nn.Conv2d(4, 6, 3, bias=False), kept)) == (
        "LoweredConv2d(4, 6, window=(3, 3), shapes=1 of 36, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), "
        "bias=False)"
    )
