"""The convolution that a network begins with, with its bias and ReLU in one pass, against engines that know both.

Ours gives planes, as torch's own does, and channels_last. The padding is torch's symmetric one.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import peers
from crest_ext.nn import StemConv2d
from timing import compare

# outputs, kernel, stride, padding, size: of MobileNet, of ResNet, of AlexNet, of networks for CIFAR-10
LAYERS = [(32, 3, 2, 1, 224), (64, 7, 2, 3, 224), (96, 11, 4, 0, 227), (32, 3, 1, 1, 32)]


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize(("m", "kernel", "stride", "padding", "size"), LAYERS)
def bench_stem_conv2d(
    benchmark: Any, m: int, kernel: int, stride: int, padding: int, size: int, n: int, last: bool
) -> None:
    conv = nn.Conv2d(3, m, kernel, stride, padding)
    plain, x = nn.Sequential(conv, nn.ReLU()).eval().requires_grad_(False), torch.randn(n, 3, size, size)
    ours = peers.in_torch(StemConv2d.from_conv2d(conv, "relu", channels_last=last), x)
    out = ours()
    others = peers.dense(plain, x) if benchmark.enabled else {"torch": peers.in_torch(plain, x)}
    compare(
        benchmark,
        ours,
        others | {"torch, channels_last": peers.in_torch(copy.deepcopy(plain), x, memory_format=torch.channels_last)},
        group=f"stem_conv2d, float32, bias and ReLU, to {'channels_last' if last else 'NCHW'}",
        case=f"3 to {m} x {size} x {size}, {kernel} x {kernel}, stride {stride}, batch {n}",
        headline=f"stem_conv2d 3 to {m} x {size} x {size}, batch {n}" if (m, last) == (64, False) else "",
        rounds=30,
        flops=2 * 3 * kernel**2 * out.numel(),
    )
    torch.testing.assert_close(out, plain(x), rtol=1e-4, atol=1e-4)
