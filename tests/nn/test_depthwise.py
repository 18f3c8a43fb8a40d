from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crest_ext.nn import DepthwiseConv2d, SeparableConv2d

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 5, "stride": 2, "padding": 2, "bias": False},
    {"kernel_size": (3, 2), "padding": (1, 0), "dilation": (2, 1)},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
def test_drops_in(arguments: dict[str, Any], multiplier: int) -> None:
    plain = nn.Conv2d(6, 6 * multiplier, groups=6, **arguments).eval()
    ours, x = DepthwiseConv2d.from_conv2d(plain), torch.randn(2, 6, 11, 12)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)
    assert ours.weight is plain.weight
    assert ours.bias is plain.bias
    assert not ours.training
    fresh = DepthwiseConv2d(6, **arguments, multiplier=multiplier)
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh(x), ours(x))
    assert fresh.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_same(size: tuple[int, int], stride: int) -> None:
    conv, x = DepthwiseConv2d(3, 3, stride, "same"), torch.randn(1, 3, *size)
    pads = [max((-(-n // stride) - 1) * stride + 3 - n, 0) for n in reversed(size)]
    padded = F.pad(x, [side for pad in pads for side in (pad // 2, pad - pad // 2)])
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, conv.bias, stride, groups=3))
    assert conv(x).shape[2:] == tuple(-(-n // stride) for n in size)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pointwise", [False, True])
def test_same_exports_with_dynamic_images(stride: int, pointwise: bool) -> None:
    """The padding is a function of the image: one program for all sizes."""
    conv = DepthwiseConv2d(3, 3, stride, "same").requires_grad_(False)
    module = SeparableConv2d.from_conv2d(conv, nn.Conv2d(3, 5, 1)).eval() if pointwise else conv
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=6), 3: torch.export.Dim("w", min=6)}
    program = torch.export.export(module, (torch.randn(2, 3, 8, 9),), dynamic_shapes=(dims,)).module()
    for size in ((2, 3, 8, 9), (1, 3, 13, 6), (3, 3, 6, 7)):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), module(x))


def test_activation_and_repr() -> None:
    conv, x = DepthwiseConv2d(4, 3, padding=1, activation="relu6"), torch.randn(1, 4, 5, 5) * 9
    torch.testing.assert_close(conv(x), F.relu6(F.conv2d(x, conv.weight, conv.bias, padding=1, groups=4)))
    assert "groups=4" in repr(conv)
    assert repr(conv).endswith("activation=relu6)")


@pytest.mark.parametrize("padding", ["same", 1])
def test_one_image(padding: Any) -> None:
    conv, x = DepthwiseConv2d(4, 3, 2, padding), torch.randn(4, 9, 8)
    assert torch.equal(conv(x), conv(x.unsqueeze(0))[0])
    with pytest.raises(ValueError, match=r"^depthwise_conv2d: x must have 4 dimensions, got \(9, 8\)$"):
        conv(x[0])


@pytest.mark.parametrize("padding", ["same", (0, 1, 1, 2)])
def test_onnx_gets_operations_of_torch(padding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = DepthwiseConv2d(4, 3, 2, padding, activation="relu6"), torch.randn(1, 4, 8, 9) * 9
    expected = conv(x)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    torch.testing.assert_close(conv(x), expected)
    program = torch.export.export(conv, (x,))
    assert not any("crest" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(clone: Callable[[nn.Module], nn.Module]) -> None:
    conv, x = DepthwiseConv2d(4, 3, 2, (0, 1, 1, 2), activation="relu"), torch.randn(1, 4, 8, 8)
    assert torch.equal(clone(conv)(x), conv(x))


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"^DepthwiseConv2d: groups must be in_channels, 4, got 2$"):
        DepthwiseConv2d.from_conv2d(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match=r"^DepthwiseConv2d: padding_mode must be zeros, got reflect$"):
        DepthwiseConv2d.from_conv2d(nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match=r"^DepthwiseConv2d: padding_mode must be zeros, got circular$"):
        DepthwiseConv2d(4, 3, padding=1, padding_mode="circular")
    with pytest.raises(ValueError, match=r"^depthwise_conv2d: weight must have a multiple of 3 channels, "):
        DepthwiseConv2d(4, 3)(torch.zeros(3, 5, 5))
    for channels, multiplier in ((0, 1), (3, 0)):
        message = rf"^DepthwiseConv2d: channels and multiplier must be at least 1, got {channels} and {multiplier}$"
        with pytest.raises(ValueError, match=message):
            DepthwiseConv2d(channels, 3, multiplier=multiplier)
    for padding in ((1, 1, 1), "full"):
        message = r"^DepthwiseConv2d: padding must be 1, 2 or 4 ints, 'same' or 'valid', got "
        with pytest.raises(ValueError, match=message):
            DepthwiseConv2d(3, 3, padding=padding)
