"""A depthwise 3x3 layer with its bias and ReLU, in both memory formats, against torch's and dense engines'.

The layers are MobileNet's, with torch's symmetric padding, which all of them know. torch takes its ReLU in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crest_ext
import peers
from timing import compare

# channels, size and stride of each depthwise layer of MobileNet at 224 pixels
LAYERS = [
    (32, 112, 1),
    (64, 112, 2),
    (128, 56, 1),
    (128, 56, 2),
    (256, 28, 1),
    (256, 28, 2),
    (512, 14, 1),
    (512, 14, 2),
    (1024, 7, 1),
]
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def torch_layer(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    return F.relu_(F.conv2d(x, weight, bias, stride, 1, groups=x.shape[1]))


@lru_cache(maxsize=1)  # the next case is of the same layer
def case(c: int, size: int, stride: int, n: int, measured: bool) -> tuple[Tensor, nn.Conv2d, dict[str, Any]]:
    """x, the layer, and other engines that have compiled it."""
    x = torch.randn(n, c, size, size)
    conv = nn.Conv2d(c, c, 3, stride, 1, groups=c).eval().requires_grad_(False)
    engines = peers.dense(nn.Sequential(conv, nn.ReLU()).eval(), x) if measured else {}
    return x, conv, {name: engine for name, engine in engines.items() if name != "torch"}


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize(("c", "size", "stride"), LAYERS)
def bench_depthwise_conv2d(benchmark: Any, c: int, size: int, stride: int, n: int, memory_format: str) -> None:
    x, conv, engines = case(c, size, stride, n, benchmark.enabled)
    weight, bias = conv.weight, conv.bias
    formats = {name: x.contiguous(memory_format=f) for name, f in FORMATS.items()}
    ours = partial(crest_ext.depthwise_conv2d, formats[memory_format], weight, bias, stride, 1, 1, "relu")
    out = ours()
    with torch.no_grad():
        compare(
            benchmark,
            ours,
            {f"torch {name}": partial(torch_layer, t, weight, bias, stride) for name, t in formats.items()} | engines,
            group=f"depthwise_conv2d, float32, bias and ReLU, ours in {memory_format}",
            case=f"{c} x {size} x {size}, stride {stride}, batch {n}",
            headline=f"depthwise_conv2d {c} x {size} x {size}, {memory_format}, batch {n}"
            if (c, stride) == (128, 1)
            else "",
            rounds=50,
            flops=2 * 9 * out.numel(),
            bytes=x.nbytes + out.nbytes,
        )
    torch.testing.assert_close(out, torch_layer(x, weight, bias, stride), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("c", "size", "stride"), LAYERS)
def bench_depthwise_conv2d_backward(benchmark: Any, c: int, size: int, stride: int, memory_format: str) -> None:
    """Both gradients of a batch of 8, without bias and activation, as before a BatchNorm."""
    x, weight = torch.randn(8, c, size, size), torch.randn(c, 1, 3, 3)
    x = x.contiguous(memory_format=FORMATS[memory_format])
    grad = torch.randn_like(crest_ext.depthwise_conv2d(x, weight, None, stride, 1))

    ours = partial(crest_ext.depthwise_conv2d_grads, grad, x, weight, stride, 1)

    def backward(format_: torch.memory_format) -> Callable[[], Any]:
        arguments = [t.contiguous(memory_format=format_) for t in (grad, x)]
        where = [0], [stride] * 2, [1, 1], [1, 1], False, [0, 0], c, [True, True, False]
        return partial(torch.ops.aten.convolution_backward, *arguments, weight, *where)

    compare(
        benchmark,
        ours,
        {f"torch {name}": backward(f) for name, f in FORMATS.items()},
        group=f"depthwise_conv2d's gradients, float32, batch 8, in {memory_format}",
        case=f"{c} x {size} x {size}, stride {stride}",
        rounds=10,
        flops=2 * 2 * 9 * grad.numel(),
    )
    for got, expected in zip(ours(), backward(FORMATS[memory_format])()[:2], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-2)
