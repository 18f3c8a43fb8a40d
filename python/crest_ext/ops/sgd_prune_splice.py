"""The optimizer step and the mask update of Dynamic Network Surgery, fused."""

from __future__ import annotations

import torch
from torch import Tensor

from crest_ext.ops._grad import tell_of_write


def sgd_prune_splice_(
    weight: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    mask: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    low: float,
    high: float,
    update_mask: bool = True,
) -> None:
    """One step of torch.optim.SGD and then prune_splice_, in one pass over memory.

    momentum_buffer <- momentum * momentum_buffer + grad + weight_decay * weight;
    weight <- weight - lr * momentum_buffer; then the mask as in `prune_splice_`. Dropped weights move too: that is
    how they can come back. A zero momentum_buffer is torch's first step. No dampening, no Nesterov.

    Args:
        weight: any shape; float32, float64, bfloat16 or float16; contiguous; written.
        grad: shape and dtype of weight; the gradient of the masked weight, not multiplied by the mask.
        momentum_buffer: shape and dtype of weight; contiguous; written.
        mask: shape of weight; bool, contiguous; written if update_mask.
        lr: beta of the paper.
        momentum: factor of momentum_buffer.
        weight_decay: factor of weight in the gradient.
        low: a_k of the paper, at most high.
        high: b_k of the paper.
        update_mask: whether to update the mask in this step.

    Raises:
        ValueError: a shape, dtype, device or value is not as above; weight requires a gradient, and they are enabled.

    Work: reads the four tensors once, writes three once: 22 bytes a float32 weight.
    Source: Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, algorithm 1.
    """
    tell_of_write("sgd_prune_splice_", weight=weight, momentum_buffer=momentum_buffer, mask=mask)
    torch.ops.crest.sgd_prune_splice_(
        weight, grad, momentum_buffer, mask, lr, momentum, weight_decay, low, high, update_mask
    )


@torch.library.register_fake("crest::sgd_prune_splice_")
def _fake(
    weight: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    mask: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    low: float,
    high: float,
    update_mask: bool = True,
) -> None:
    return None
