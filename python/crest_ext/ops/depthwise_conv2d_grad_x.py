"""The gradient of depthwise_conv2d with respect to x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crest_ext.ops._grad import call
from crest_ext.ops.depthwise_conv2d import Ints, new_in_format_of, pair


def depthwise_conv2d_grad_x(
    grad: Tensor, weight: Tensor, size: Sequence[int], stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1
) -> Tensor:
    """Gradient of `depthwise_conv2d`, without its activation, with respect to x: the transposed convolution of grad.

    Args:
        grad: (n, m, out_h, out_w); float32, float64, bfloat16 or float16.
        weight: (m, 1, kh, kw), m a multiple of c; dtype of grad.
        size: (c, h, w) of x.
        stride, padding, dilation: as of `depthwise_conv2d`.

    Returns:
        (n, c, h, w); dtype and memory format of grad. Sums are kept in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype, device or value is not as above.

    Work: 2 n m out_h out_w kh kw flop; reads grad and writes the result once.
    """
    return call(
        torch.ops.crest.depthwise_conv2d_grad_x.default, grad, weight, size, pair(stride), pair(padding), pair(dilation)
    )


@torch.library.register_fake("crest::depthwise_conv2d_grad_x")
def _fake(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    return new_in_format_of(grad, (grad.shape[0], *size))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, _, *ctx.where = inputs
    ctx.save_for_backward(grad, weight)


def _backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    """The three ops are the partial derivatives of one trilinear form, so each is made of the other two."""
    grad, weight = ctx.saved_tensors
    needs_grad, needs_weight, *_ = ctx.needs_input_grad
    return (
        torch.ops.crest.depthwise_conv2d(grad_grad, weight, None, *ctx.where) if needs_grad else None,
        torch.ops.crest.depthwise_conv2d_grad_weight(grad, grad_grad, weight.shape[2:], *ctx.where)
        if needs_weight
        else None,
        None,
        None,
        None,
        None,
    )


torch.library.register_autograd("crest::depthwise_conv2d_grad_x", _backward, setup_context=_setup_context)
