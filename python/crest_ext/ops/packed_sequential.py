"""Layers on packed weights, and what is between them, in one call: a call takes as long as a small layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crest_ext.reference import packed_sequential as one_by_one


def packed_sequential(x: Tensor, tensors: Sequence[Tensor], steps: Sequence[int]) -> Tensor:
    """Layers one after another, each computed by the op of its name. For inference.

    `nn.PackedSequential` writes the steps of its layers. A step is the number of a kind and then

    ==  =============  ===============================================================================================
    0   relu
    1   flatten        start_dim, end_dim
    2   max_pool2d     kernel_size, stride, padding and dilation, two numbers each; ceil_mode
    3   sparse_linear  out_features, in_features; whether there is a bias, whether a relu follows
    4   sparse_conv2d  weight_shape (four numbers), stride, padding and dilation (two each), groups; bias, relu
    ==  =============  ===============================================================================================

    Args:
        x: what the first layer takes.
        tensors: the packed weights of the layers, in their order, each with its bias behind it if it has one.
        steps: of all layers, one after another; at least one.

    Returns:
        What the last layer gives.

    Raises:
        ValueError: steps that are cut short or of no kind, tensors that are fewer or more than these take, what an op
            refuses; x requires a gradient, and they are enabled.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("packed_sequential: x must not require a gradient, for there is none; use torch.no_grad()")
    return torch.ops.crest.packed_sequential(x, tensors, steps)


@torch.library.register_fake("crest::packed_sequential")
def _fake(x: Tensor, tensors: Sequence[Tensor], steps: Sequence[int]) -> Tensor:
    y = one_by_one(x, tensors, steps, torch.ops.crest)
    return y.new_empty(y.shape)
