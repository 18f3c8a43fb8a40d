"""A linear layer that skips the weights a mask drops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crest_ext.ops._autocast import register_autocast
from crest_ext.ops._grad import call


def masked_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, straight_through: bool = False
) -> Tensor:
    """Linear layer that skips the weights a mask drops: x (weight where mask)^T + bias.

    Args:
        x: (..., k); float32, float64, bfloat16 or float16. A NaN or an infinity in x reaches every output whose
            weight there is kept; whether it reaches the others of its row is not specified (a dense product would
            multiply it by zero). Other rows never see it.
        weight: (m, k); dtype of x. What a dropped weight holds, NaN and infinity included, contributes nothing.
        mask: (m, k); bool, False drops the weight.
        bias: (m,); dtype of x.
        straight_through: the gradient of weight is the full grad^T x (True: what network surgery needs for a dropped
            weight to come back) or that at the kept positions and zero elsewhere (False).

    Returns:
        (..., m); dtype of x. Sums are kept in float32 (float64 for float64). Under autocast, arguments are cast as
        F.linear casts its own.

    Raises:
        ValueError: a shape, dtype or device is not as above.

    Work: 2 n nnz(mask) flop; reads weight and mask once. On the CPU few rows of x, and up to 32 with a dense mask, take
        one fused pass; others take a sparse kernel or, for dense masks, torch's product with weight where mask,
        whichever was measured to be faster.
    Source: Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, eq. 1 and 2.
    """
    return call(torch.ops.crest.masked_linear.default, x, weight, mask, bias, straight_through)


@torch.library.register_fake("crest::masked_linear")
def _fake(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, straight_through: bool = False
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
    x, weight, mask, _, ctx.straight_through = inputs
    grad_x, grad_weight, *_ = ctx.needs_input_grad
    ctx.save_for_backward(x if grad_weight else None, weight if grad_x else None, mask)


def _matrix(t: Tensor) -> Tensor:
    return t.flatten(0, -2) if t.dim() > 1 else t.unsqueeze(0)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
    x, weight, mask = ctx.saved_tensors
    needs_x, needs_weight, _, *rest = ctx.needs_input_grad  # as long as the arguments that were given
    needs_bias = any(rest)
    grad_x = grad_weight = grad_bias = None
    if needs_x:
        grad_x = call(torch.ops.crest.masked_linear_grad_x.default, grad, weight, mask)
    if needs_weight and ctx.straight_through:
        grad_weight = _matrix(grad).t() @ _matrix(x)
    elif needs_weight:
        grad_weight = call(torch.ops.crest.masked_linear_grad_weight.default, grad, x, mask)
    if needs_bias:
        grad_bias = _matrix(grad).sum(0)
    return grad_x, grad_weight, None, grad_bias, None


torch.library.register_autograd("crest::masked_linear", _backward, setup_context=_setup_context)
register_autocast("masked_linear")
