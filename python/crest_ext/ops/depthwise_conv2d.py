"""A convolution in which each channel of the result sees one channel of x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crest_ext.ops._autocast import register_autocast
from crest_ext.ops._grad import call

Ints = int | Sequence[int]


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    activation: str = "none",
) -> Tensor:
    """Depthwise convolution, bias and activation in one pass: F.conv2d(x, weight, bias, ..., groups=c), activated.

    Args:
        x: (n, c, h, w); float32, float64, bfloat16 or float16; in torch.channels_last or contiguous, either without
            a copy.
        weight: (m, 1, kh, kw), m a multiple of c; dtype of x. Its channel o is for channel o // (m / c) of x.
        bias: (m,); dtype of x.
        stride: one int or two, along h and w.
        padding: zeros around x: one int, two along h and w, or four, (top, bottom, left, right). TensorFlow's SAME is
            (0, 1, 0, 1) for a 3x3 kernel with a stride of 2 on an even size.
        dilation: one int or two.
        activation: "none", "relu" or "relu6". Its gradient at a kink is torch's.

    Returns:
        (n, m, out_h, out_w), out_h = (h + top + bottom - (kh - 1) dilation - 1) // stride + 1; dtype and memory format
        of x. Sums are kept in float32 (float64 for float64). Under autocast, arguments are cast as F.conv2d casts its
        own.

    Raises:
        ValueError: a shape, dtype, device or value is not as above, or the kernel does not fit in the padded image.

    Work: 2 n m out_h out_w kh kw flop; reads x and writes the result once. Kernels of 3x3 and 5x5 with strides of 1 and
        2 and m = c are tuned; the others take simple loops.
    Source: Howard et al., "MobileNets: Efficient CNNs for Mobile Vision Applications", 2017, eq. 3.
    """
    return call(
        torch.ops.crest.depthwise_conv2d.default,
        x,
        weight,
        bias,
        pair(stride),
        pair(padding),
        pair(dilation),
        activation,
    )


def pair(value: Ints) -> Sequence[int]:
    """One int, for both dimensions, or a sequence as it is."""
    return (value, value) if isinstance(value, int) else value


def sides(padding: Sequence[int]) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a padding of two or four."""
    if len(padding) == 4:
        return padding[0], padding[1], padding[2], padding[3]
    return padding[0], padding[0], padding[1], padding[1]


def out_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    top, bottom, left, right = sides(padding)
    rooms = size[0] + top + bottom, size[1] + left + right
    return [(r - (k - 1) * d - 1) // s + 1 for r, k, s, d in zip(rooms, kernel, stride, dilation, strict=True)]


def is_channels_last(t: Tensor) -> bool:
    """Where both formats would do, it is not: as csrc/conv_host.cpp has it."""
    return not t.is_contiguous() and t.numel() > 0 and t.is_contiguous(memory_format=torch.channels_last)


def new_in_format_of(t: Tensor, shape: Sequence[int]) -> Tensor:
    return t.new_empty(shape).to(memory_format=torch.channels_last) if is_channels_last(t) else t.new_empty(shape)


@torch.library.register_fake("crest::depthwise_conv2d")
def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    activation: str = "none",
) -> Tensor:
    size = out_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return new_in_format_of(x, (x.shape[0], weight.shape[0], *size))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.stride, ctx.padding, ctx.dilation, ctx.activation = inputs
    grad_x, grad_weight, *_ = ctx.needs_input_grad
    ctx.save_for_backward(
        x if grad_weight else None, weight if grad_x else None, None if ctx.activation == "none" else output
    )
    ctx.size, ctx.kernel_size = x.shape[1:], weight.shape[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, output = ctx.saved_tensors
    needs_x, needs_weight, *rest = ctx.needs_input_grad  # as long as the arguments that were given
    if ctx.activation == "relu":
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    elif ctx.activation == "relu6":
        grad = torch.ops.aten.hardtanh_backward(grad, output, 0, 6)
    ops, where = torch.ops.crest, (ctx.stride, ctx.padding, ctx.dilation)
    grad_x = grad_weight = grad_bias = None
    if needs_x and needs_weight:
        grad_x, grad_weight = call(ops.depthwise_conv2d_grads.default, grad, x, weight, *where)
    elif needs_x:
        grad_x = call(ops.depthwise_conv2d_grad_x.default, grad, weight, ctx.size, *where)
    elif needs_weight:
        grad_weight = call(ops.depthwise_conv2d_grad_weight.default, grad, x, ctx.kernel_size, *where)
    if any(rest):
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias, None, None, None, None


torch.library.register_autograd("crest::depthwise_conv2d", _backward, setup_context=_setup_context)
register_autocast("depthwise_conv2d")
