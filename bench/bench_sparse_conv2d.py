"""A packed sparse convolution against dense peers, which gain nothing from zeros, and against DeepSparse."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import peers
from crest_ext.nn import SparseConv2d
from timing import compare


class Layer(NamedTuple):
    channels: int
    size: int
    filters: int
    kernel: int
    padding: int
    groups: int
    zeros: float


# AlexNet's at the sparsity that direct sparse convolution was published for; MobileNet's pointwise ones at 90 %.
LAYERS = {
    "AlexNet conv2": Layer(96, 27, 256, 5, 2, 2, 0.85),
    "AlexNet conv3": Layer(256, 13, 384, 3, 1, 1, 0.88),
    "AlexNet conv4": Layer(384, 13, 384, 3, 1, 2, 0.88),
    "AlexNet conv5": Layer(384, 13, 256, 3, 1, 2, 0.88),
    "MobileNet block 2": Layer(64, 56, 128, 1, 0, 1, 0.9),
    "MobileNet block 4": Layer(128, 28, 256, 1, 0, 1, 0.9),
    "MobileNet block 6": Layer(256, 14, 512, 1, 0, 1, 0.9),
    "MobileNet block 8": Layer(512, 14, 512, 1, 0, 1, 0.9),
    "MobileNet block 13": Layer(1024, 7, 1024, 1, 0, 1, 0.9),
}


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("name", LAYERS)
def bench_sparse_conv2d(benchmark: Any, name: str, n: int, threads: int) -> None:
    run(benchmark, name, n, threads)


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("name", ["AlexNet conv3", "MobileNet block 8"])
@pytest.mark.parametrize("threads", [2], indirect=True)
def bench_sparse_conv2d_threads(benchmark: Any, name: str, n: int, threads: int) -> None:
    run(benchmark, name, n, threads)


def run(benchmark: Any, name: str, n: int, threads: int) -> None:
    layer = LAYERS[name]
    conv = nn.Conv2d(layer.channels, layer.filters, layer.kernel, padding=layer.padding, groups=layer.groups).eval()
    conv.requires_grad_(False)
    conv.weight.mul_(torch.rand_like(conv.weight) >= layer.zeros)
    x, sparse = torch.randn(n, layer.channels, layer.size, layer.size), SparseConv2d.from_conv2d(conv)
    others = peers.engines(conv, x) if benchmark.enabled else {"torch": peers.in_torch(conv, x)}
    others["torch, channels_last"] = peers.in_torch(copy.deepcopy(conv), x, memory_format=torch.channels_last)
    shape = f"({layer.filters}, {layer.channels // layer.groups}, {layer.kernel}, {layer.kernel})"
    headline = name in ("AlexNet conv3", "MobileNet block 8") and n == threads == 1
    compare(
        benchmark,
        partial(sparse, x),
        others,
        group=f"sparse_conv2d, float32, {n} image{'s'[: n > 1]}" + f", {threads} threads" * (threads > 1),
        case=f"{name} {shape}, {layer.size} x {layer.size}, {layer.zeros:.0%} zeros",
        headline=f"sparse_conv2d, {name} {shape}, {layer.zeros:.0%} zeros" if headline else "",
        rounds=15,
        flops=2 * n * layer.size**2 * int(conv.weight.count_nonzero()),
    )
    torch.testing.assert_close(sparse(x), conv(x), rtol=1e-4, atol=1e-4)
