"""Layers on packed weights, and what is between them, in one call: a call takes as long as a small layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crest_ext.ops._autocast import register_float32
from crest_ext.ops._grad import refuse_gradients
from crest_ext.reference import packed_sequential as one_by_one


def packed_sequential(x: Tensor, tensors: Sequence[Tensor], steps: Sequence[int]) -> Tensor:
    """Layers one after another, each computed by the op of its name. For inference.

    `nn.PackedSequential` writes the steps of its layers. A step is the number of a kind and then

    ==  ================  ============================================================================================
    0   relu
    1   flatten           start_dim, end_dim
    2   max_pool2d        kernel_size, stride, padding and dilation, two numbers each; ceil_mode
    3   sparse_linear     out_features, in_features; whether there is a bias; activation
    4   sparse_conv2d     weight_shape (four numbers), stride, padding and dilation (two each), groups; bias, activation
                          and whether to add what was kept last, which is kept no longer
    5   depthwise_conv2d  stride, padding (four numbers) and dilation; bias, activation
    6   separable_conv2d  out_channels, stride, padding, dilation; both biases, both activations
    7   stem_conv2d       stride, padding, dilation; bias, activation; channels_last
    8   to keep           the result so far, for a later step
    9   to swap           the result so far and what was kept last
    10  shortcut          stride (two numbers); channels of zeros before x's and behind them
    11  mean              of each channel of images; whether it keeps their two dimensions
    12  linear            whether there is a bias; of a dense weight
    ==  ================  ============================================================================================

    An activation is 0 for none, 1 for relu, 2 for relu6, where its op has it. Four numbers of padding are top, bottom,
    left and right; -1, four times, is TensorFlow's SAME.

    Args:
        x: what the first layer takes.
        tensors: the weights of the layers, in their order, each with its bias behind it if it has one.
        steps: of all layers, one after another; at least one.

    Returns:
        What the last layer gives.

    Raises:
        ValueError: steps that are cut short or of no kind, tensors that are fewer or more than these take, what an op
            refuses; x or one of the tensors requires a gradient, and they are enabled.
    """
    refuse_gradients("packed_sequential", x=x, tensors=tensors)
    return torch.ops.crest.packed_sequential(x, tensors, steps)


@torch.library.register_fake("crest::packed_sequential")
def _fake(x: Tensor, tensors: Sequence[Tensor], steps: Sequence[int]) -> Tensor:
    return torch.empty_like(one_by_one(x, tensors, steps, torch.ops.crest))


register_float32("packed_sequential", 0)
