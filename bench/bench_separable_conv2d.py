"""A depthwise 3x3 and a pointwise layer with their biases and ReLUs in one pass, against engines that know both.

The layers are MobileNet's, with torch's symmetric padding; ours gets and gives channels_last, which the next one takes.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import peers
from crest_ext.nn import SeparableConv2d
from timing import compare

# inputs, outputs, size and stride of each separable layer of MobileNet at 224 pixels
LAYERS = [
    (32, 64, 112, 1),
    (64, 128, 112, 2),
    (128, 128, 56, 1),
    (128, 256, 56, 2),
    (256, 256, 28, 1),
    (256, 512, 28, 2),
    (512, 512, 14, 1),
    (512, 1024, 14, 2),
    (1024, 1024, 7, 1),
]


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize(("c", "m", "size", "stride"), LAYERS)
def bench_separable_conv2d(benchmark: Any, c: int, m: int, size: int, stride: int, n: int) -> None:
    depthwise, pointwise = nn.Conv2d(c, c, 3, stride, 1, groups=c), nn.Conv2d(c, m, 1)
    plain = nn.Sequential(depthwise, nn.ReLU(), pointwise, nn.ReLU()).eval().requires_grad_(False)
    x = torch.randn(n, c, size, size)
    last = x.contiguous(memory_format=torch.channels_last)
    ours = peers.in_torch(SeparableConv2d.from_conv2d(depthwise, pointwise, "relu", "relu"), last)
    out = ours()
    others = peers.dense(plain, x) if benchmark.enabled else {"torch": peers.in_torch(plain, x)}
    compare(
        benchmark,
        ours,
        others | {"torch, channels_last": peers.in_torch(copy.deepcopy(plain), x, memory_format=torch.channels_last)},
        group="separable_conv2d, float32, biases and ReLUs, in channels_last",
        case=f"{c} to {m} x {size} x {size}, stride {stride}, batch {n}",
        headline=f"separable_conv2d {c} to {m} x {size} x {size}, batch {n}" if (c, m) == (512, 512) else "",
        rounds=30,
        flops=2 * (9 * c + c * m) * out[:, 0].numel(),
    )
    torch.testing.assert_close(out, plain(x), rtol=1e-4, atol=1e-4)
