"""The gradients of depthwise_conv2d with respect to x and weight, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crest_ext.ops._grad import call
from crest_ext.ops.depthwise_conv2d import Ints, new_in_format_of, pair


def depthwise_conv2d_grads(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1
) -> tuple[Tensor, Tensor]:
    """Gradients of `depthwise_conv2d`, without its activation, with respect to x and weight: as training needs them.

    Args:
        grad: (n, m, out_h, out_w); float32, float64, bfloat16 or float16. Where its memory format is not that of x, it
            is copied to that of x.
        x: (n, c, h, w); dtype of grad.
        weight: (m, 1, kh, kw), m a multiple of c; dtype of grad.
        stride, padding, dilation: as of `depthwise_conv2d`.

    Returns:
        As `depthwise_conv2d_grad_x` and `depthwise_conv2d_grad_weight` return them: (n, c, h, w), in the memory format
        of x, and (m, 1, kh, kw); dtype of grad.

    Raises:
        ValueError: a shape, dtype, device or value is not as above.

    Work: 4 n m out_h out_w kh kw flop; reads grad and x once and writes the gradient of x once, where m = c and the
        channels do not come last or the dtype is float32: by parts that stay in a cache. Else, and on a GPU, the one
        gradient after the other.
    """
    op = torch.ops.crest.depthwise_conv2d_grads.default
    grad_x, grad_weight = call(op, grad, x, weight, pair(stride), pair(padding), pair(dilation))
    return grad_x, grad_weight


@torch.library.register_fake("crest::depthwise_conv2d_grads")
def _fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> tuple[Tensor, Tensor]:
    return new_in_format_of(x, x.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_grad_x: Tensor, grad_grad_weight: Tensor) -> tuple[Tensor | None, ...]:
    """By the product rule, from the gradients of the two."""
    grad, x, weight = ctx.saved_tensors
    ops, where = torch.ops.crest, (ctx.stride, ctx.padding, ctx.dilation)
    needs_grad, needs_x, needs_weight, *_ = ctx.needs_input_grad
    of_grad = of_x = of_weight = None
    if needs_grad:
        of_grad = ops.depthwise_conv2d(grad_grad_x, weight, None, *where)
        of_grad = of_grad + ops.depthwise_conv2d(x, grad_grad_weight, None, *where)
    if needs_x:
        of_x = ops.depthwise_conv2d_grad_x(grad, grad_grad_weight, x.shape[1:], *where)
    if needs_weight:
        of_weight = ops.depthwise_conv2d_grad_weight(grad, grad_grad_x, weight.shape[2:], *where)
    return of_grad, of_x, of_weight, None, None, None


torch.library.register_autograd("crest::depthwise_conv2d_grads", _backward, setup_context=_setup_context)
