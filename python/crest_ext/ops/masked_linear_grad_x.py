"""The gradient of masked_linear with respect to x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crest_ext.ops._grad import call


def masked_linear_grad_x(grad: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Gradient of `masked_linear` with respect to x: grad (weight where mask).

    Args:
        grad: (..., m); float32, float64, bfloat16 or float16.
        weight: (m, k); dtype of grad. What a dropped weight holds contributes nothing.
        mask: (m, k); bool.

    Returns:
        (..., k); dtype of grad. Sums are kept in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device is not as above.

    Work: 2 n nnz(mask) flop; reads weight and mask once.
    """
    return call(torch.ops.crest.masked_linear_grad_x.default, grad, weight, mask)


@torch.library.register_fake("crest::masked_linear_grad_x")
def _fake(grad: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], weight.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    """The three ops are the partial derivatives of one trilinear form, so each is made of the other two."""
    grad, weight, mask = ctx.saved_tensors
    needs_grad, needs_weight, _ = ctx.needs_input_grad
    return (
        torch.ops.crest.masked_linear(grad_grad, weight, mask) if needs_grad else None,
        torch.ops.crest.masked_linear_grad_weight(grad, grad_grad, mask) if needs_weight else None,
        None,
    )


torch.library.register_autograd("crest::masked_linear_grad_x", _backward, setup_context=_setup_context)
