"""The gradient of masked_linear with respect to weight, at the kept positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crest_ext.ops._grad import call


def masked_linear_grad_weight(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Gradient of `masked_linear` with respect to weight: grad^T x where mask, else 0, computed only where mask.

    Args:
        grad: (..., m); float32, float64, bfloat16 or float16.
        x: (..., k); dtype of grad, and its shape but for the last dimension.
        mask: (m, k); bool.

    Returns:
        (m, k); dtype of grad. Sums are kept in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device is not as above.

    Work: 2 n nnz(mask) flop (a sampled dense-dense product); reads mask once, writes the result once.
    """
    return call(torch.ops.crest.masked_linear_grad_weight.default, grad, x, mask)


@torch.library.register_fake("crest::masked_linear_grad_weight")
def _fake(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return grad.new_empty(mask.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_weight: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    grad, x, mask = ctx.saved_tensors
    needs_grad, needs_x, _ = ctx.needs_input_grad
    return (
        torch.ops.crest.masked_linear(x, grad_weight, mask) if needs_grad else None,
        torch.ops.crest.masked_linear_grad_x(grad, grad_weight, mask) if needs_x else None,
        None,
    )


torch.library.register_autograd("crest::masked_linear_grad_weight", _backward, setup_context=_setup_context)
