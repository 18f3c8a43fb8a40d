"""The gradient of depthwise_conv2d with respect to weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crest_ext.ops._grad import call
from crest_ext.ops.depthwise_conv2d import Ints, pair


def depthwise_conv2d_grad_weight(
    grad: Tensor, x: Tensor, kernel_size: Ints, stride: Ints = 1, padding: Ints = 0, dilation: Ints = 1
) -> Tensor:
    """Gradient of `depthwise_conv2d`, without its activation, with respect to weight.

    Args:
        grad: (n, m, out_h, out_w), m a multiple of c; float32, float64, bfloat16 or float16.
        x: (n, c, h, w); dtype of grad. Where their memory formats differ, grad is copied to that of x.
        kernel_size: (kh, kw), or one int for both.
        stride, padding, dilation: as of `depthwise_conv2d`.

    Returns:
        (m, 1, kh, kw); dtype of grad. Sums are kept in float32 (float64 for float64), and do not depend on the number
        of threads.

    Raises:
        ValueError: a shape, dtype, device or value is not as above.

    Work: 2 n m out_h out_w kh kw flop; reads grad and x once.
    """
    return call(
        torch.ops.crest.depthwise_conv2d_grad_weight.default,
        grad,
        x,
        pair(kernel_size),
        pair(stride),
        pair(padding),
        pair(dilation),
    )


@torch.library.register_fake("crest::depthwise_conv2d_grad_weight")
def _fake(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    return grad.new_empty((grad.shape[1], 1, *kernel_size))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, _, *ctx.where = inputs
    ctx.save_for_backward(grad, x)


def _backward(ctx: Any, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    needs_grad, needs_x, *_ = ctx.needs_input_grad
    return (
        torch.ops.crest.depthwise_conv2d(x, grad_weight, None, *ctx.where) if needs_grad else None,
        torch.ops.crest.depthwise_conv2d_grad_x(grad, grad_weight, x.shape[1:], *ctx.where) if needs_x else None,
        None,
        None,
        None,
        None,
    )


torch.library.register_autograd("crest::depthwise_conv2d_grad_weight", _backward, setup_context=_setup_context)
