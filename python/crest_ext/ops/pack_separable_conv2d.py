"""Depthwise and pointwise weights, packed once for separable_conv2d. csrc/separable_conv2d.h describes the layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 32  # outputs: panel_outputs of csrc/separable_conv2d.h


class PackedSeparableConv2d(NamedTuple):
    """The arguments of `separable_conv2d` after x, in their order. They hold no indices: a call checks all of them."""

    depthwise: Tensor
    pointwise: Tensor
    out_channels: int


def pack_separable_conv2d(depthwise: Tensor, pointwise: Tensor) -> PackedSeparableConv2d:
    """Pack the weights of a depthwise and a pointwise convolution for `separable_conv2d`.

    Args:
        depthwise: (c, 1, kh, kw); float32.
        pointwise: (m, c, 1, 1); float32.

    Raises:
        ValueError: a shape or a dtype is not as above, or a weight is empty.
    """
    c, m = depthwise.shape[0], pointwise.shape[0]
    for name, weight, shape in (
        ("depthwise", depthwise, (c, 1, *depthwise.shape[2:])),
        ("pointwise", pointwise, (m, c, 1, 1)),
    ):
        rule = "(c, 1, kh, kw)" if name == "depthwise" else f"(m, {c}, 1, 1)"
        if weight.dim() != 4 or weight.shape != shape:
            raise ValueError(f"pack_separable_conv2d: {name} must have shape {rule}, got {tuple(weight.shape)}")
        if not weight.numel():
            raise ValueError(f"pack_separable_conv2d: {name} must not be empty, got {tuple(weight.shape)}")
        if weight.dtype != torch.float32:
            raise ValueError(f"pack_separable_conv2d: {name} must be float32, got {weight.dtype}")
    panels = F.pad(pointwise.detach().flatten(1), (0, 0, 0, -m % PANEL)).unflatten(0, (-1, PANEL))
    return PackedSeparableConv2d(
        depthwise.detach().squeeze(1).permute(1, 2, 0).contiguous(), panels.transpose(1, 2).contiguous(), m
    )


def unpack_separable_conv2d(packed: PackedSeparableConv2d) -> tuple[Tensor, Tensor]:
    """The weights (c, 1, kh, kw) and (m, c, 1, 1) that were packed."""
    pointwise = packed.pointwise.transpose(1, 2).flatten(0, 1)[: packed.out_channels]
    return packed.depthwise.permute(2, 0, 1).unsqueeze(1), pointwise[:, :, None, None]
