"""What each op computes, in a few lines of plain torch. Tests and benches compare the kernels with these."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def apply_mask(weight: Tensor, mask: Tensor, straight_through: bool = False) -> Tensor:
    masked = torch.where(mask, weight, 0)
    return weight + (masked - weight).detach() if straight_through else masked


def masked_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, straight_through: bool = False
) -> Tensor:
    return F.linear(x, apply_mask(weight, mask, straight_through), bias)


def masked_linear_grad_x(grad: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return grad @ torch.where(mask, weight, 0)


def masked_linear_grad_weight(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, grad.flatten(0, -2).t() @ x.flatten(0, -2) if grad.dim() > 1 else grad.outer(x), 0)


def prune_splice_(weight: Tensor, mask: Tensor, low: float, high: float) -> None:
    size = weight.abs()
    mask.copy_(torch.where(size < low, False, torch.where(size >= high, True, mask)))


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
    momentum_buffer.mul_(momentum).add_(grad).add_(weight, alpha=weight_decay)
    weight.sub_(momentum_buffer, alpha=lr)
    if update_mask:
        prune_splice_(weight, mask, low, high)


def sparse_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    rows: Tensor,
    steps: Tensor,
    slices: Tensor,
    out_features: int,
    in_features: int,
    bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    blocks, tiles = -(-out_features // 256), -(-in_features // 128)
    weight = x.new_zeros(max(blocks, 1), max(-(-out_features // max(blocks, 1) // 16) * 16, 1), in_features)
    for cell in range(blocks * tiles):
        for s in range(int(slices[cell]), int(slices[cell + 1])):
            for step in range(int(steps[s]), int(steps[s + 1])):
                at = (rows[s].long(), cell % tiles * 128 + columns[step].long())
                weight[cell // tiles].index_put_(at, values[step].to(x.dtype), accumulate=True)
    y = F.linear(x, weight.flatten(0, 1)[:out_features], bias)
    return y.relu() if activation == "relu" else y


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    weight_shape: Sequence[int],
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str = "none",
) -> Tensor:
    weight = x.new_zeros(weight_shape[0], -(-math.prod(weight_shape[1:]) // 128) * 128)
    for cell in range(len(starts) - 1):
        own = slice(int(starts[cell]), int(starts[cell + 1]))
        at = cell // weight_shape[0] * 128 + columns[own].long()
        weight[cell % weight_shape[0]].index_put_((at,), values[own].to(x.dtype), accumulate=True)
    weight = weight[:, : math.prod(weight_shape[1:])].view(*weight_shape)
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y.relu() if activation == "relu" else y
