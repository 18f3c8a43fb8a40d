from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crest_ext.nn import MaskedConv2d, SamePad2d, StemConv2d


@pytest.mark.parametrize(
    ("pad", "arguments"),
    [
        (None, {"kernel_size": 3, "padding": 1}),
        (None, {"kernel_size": (3, 2), "padding": (1, 0), "dilation": (2, 1), "bias": False}),
        (None, {"kernel_size": 11, "stride": 4}),
        (nn.ZeroPad2d((3, 0, 1, 2)), {"kernel_size": 5, "stride": 2}),
        (SamePad2d((3, 3), (2, 2)), {"kernel_size": 3, "stride": 2}),
    ],
)
def test_computes_all_three(pad: nn.Module | None, arguments: dict[str, Any]) -> None:
    conv, x = nn.Conv2d(3, 40, **arguments), 3 * torch.randn(2, 3, 23, 24)
    module = StemConv2d.from_conv2d(conv, "relu6", pad)
    for size in ((23, 24), (20, 22)):
        image = x[:, :, : size[0], : size[1]]
        with torch.no_grad():
            expected = F.relu6(conv(pad(image) if pad else image))
            torch.testing.assert_close(module(image), expected, rtol=1e-4, atol=1e-5)
    assert not list(module.parameters())


def test_planes() -> None:
    conv, x = nn.Conv2d(3, 40, 3, 2), torch.randn(2, 3, 23, 24)
    module = StemConv2d.from_conv2d(conv, "relu", channels_last=False)
    with torch.no_grad():
        assert module(x).is_contiguous()
        torch.testing.assert_close(module(x), F.relu(conv(x)), rtol=1e-4, atol=1e-5)


def test_of_a_masked_convolution() -> None:
    conv = MaskedConv2d(3, 5, 3)
    conv.mask.copy_(torch.rand_like(conv.weight) < 0.5)
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(StemConv2d.from_conv2d(conv)(x), conv(x))


def test_is_an_ordinary_module() -> None:
    module, other = (StemConv2d.from_conv2d(nn.Conv2d(3, 40, 3), "relu").eval() for _ in range(2))
    x = torch.randn(2, 3, 9, 9)
    expected = module(x)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), expected)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    batch = torch.randn(5, 3, 9, 9)
    torch.testing.assert_close(program.module()(batch), module(batch))


@pytest.mark.parametrize(
    ("conv", "pad", "rule"),
    [
        (nn.Conv2d(6, 6, 3, groups=2), None, "it is no convolution of 4 channels at most"),
        (nn.Conv2d(5, 6, 3), None, "it is no convolution of 4 channels at most"),
        (nn.Conv2d(3, 6, 3, padding_mode="circular"), None, "it pads with something else than zeros"),
        (nn.Conv2d(3, 6, 3, padding="same"), None, "it has a padding by name"),
        (nn.Conv2d(3, 6, 3, padding=1), nn.ZeroPad2d(1), "pad must be one in front of a convolution without padding"),
        (nn.Conv2d(3, 6, 3), nn.ZeroPad2d((1, -1, 0, 0)), "pad must be one in front of"),
        (nn.Conv2d(3, 6, 3), SamePad2d((3, 3), (2, 2)), "pad must be one in front of"),
        (nn.Conv2d(3, 6, 3), nn.ReflectionPad2d(1), "pad must be one in front of"),
    ],
)
def test_refuses(conv: nn.Conv2d, pad: nn.Module | None, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^StemConv2d: .*{re.escape(rule)}"):
        StemConv2d.from_conv2d(conv, pad=pad)
