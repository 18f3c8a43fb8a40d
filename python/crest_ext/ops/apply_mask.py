"""A weight with dropped entries, and the gradient the method needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crest_ext.ops._grad import call


def apply_mask(weight: Tensor, mask: Tensor, straight_through: bool = False) -> Tensor:
    """Set to zero the weights that a mask drops: weight where mask, else 0.

    Args:
        weight: any shape; float32, float64, bfloat16 or float16.
        mask: shape of weight; bool, False drops the weight (even a NaN or an infinity).
        straight_through: the gradient of weight is the full gradient of the result (True: what network surgery
            needs for a dropped weight to come back) or that gradient times mask (False).

    Returns:
        Tensor like weight.

    Raises:
        ValueError: a shape, dtype or device is not as above.

    Work: reads weight and mask once, writes the result once.
    Source: Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, eq. 1 and 2.
    """
    return call(torch.ops.crest.apply_mask.default, weight, mask, straight_through)


@torch.library.register_fake("crest::apply_mask")
def _fake(weight: Tensor, mask: Tensor, straight_through: bool = False) -> Tensor:
    return weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    _, mask, ctx.straight_through = inputs
    if not ctx.straight_through:
        ctx.save_for_backward(mask)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return grad if ctx.straight_through else apply_mask(grad, *ctx.saved_tensors), None, None


torch.library.register_autograd("crest::apply_mask", _backward, setup_context=_setup_context)
