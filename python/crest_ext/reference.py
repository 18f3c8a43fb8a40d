"""What each op computes, in a few lines of plain torch. Tests and benches compare the kernels with these."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {"none": lambda y: y, "relu": F.relu, "relu6": F.relu6}  # in the order of csrc/activation.h


def apply_mask(weight: Tensor, mask: Tensor, straight_through: bool = False) -> Tensor:
    masked = torch.where(mask, weight, 0)
    return weight + (masked - weight).detach() if straight_through else masked


def group_norms(weight: Tensor, groups: str, keepdim: bool = False) -> Tensor:
    rest = list(range(2, weight.dim()))
    over = {"channel": [0, *rest], "shape": [0], "column": [0], "kernel": rest, "layer": [0, 1, *rest]}
    dims = over.get(groups, [1, *rest])  # filter, row
    return torch.linalg.vector_norm(weight, dim=dims, keepdim=keepdim) if dims else weight.abs()


def group_soft_threshold_(weight: Tensor, groups: str, threshold: float) -> None:
    norms = group_norms(weight, groups, keepdim=True)
    weight.mul_(torch.where(norms <= threshold, 0, 1 - threshold / norms))


def sparse_group_soft_threshold_(weight: Tensor, groups: str, threshold: float, l1: float) -> None:
    weight.copy_(torch.sign(weight) * (weight.abs() - l1).clamp(min=0))
    group_soft_threshold_(weight, groups, threshold)


def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    return F.local_response_norm(x, size, alpha, beta, k)


def max_pool2d(x: Tensor, *args: Any) -> Tensor:
    return F.max_pool2d(x, *args)


def same_padding(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """TensorFlow's SAME for this x: (top, bottom, left, right)."""
    sizes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
    high, wide = (torch.sym_max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in sizes)
    return high // 2, high - high // 2, wide // 2, wide - wide // 2


# As csrc/packed_sequential.cpp reads them.
RELU, FLATTEN, MAX_POOL2D, SPARSE_LINEAR, SPARSE_CONV2D, DEPTHWISE_CONV2D, SEPARABLE_CONV2D, STEM_CONV2D = range(8)
KEEP, SWAP, SHORTCUT, MEAN, LINEAR = range(8, 13)
SAME = (-1, -1, -1, -1)


def packed_sequential(x: Tensor, tensors: Sequence[Tensor], steps: Sequence[int], ops: Any = None) -> Tensor:
    """By calls of `ops`, which has functions of these names; here, the references."""
    if ops is None:
        ops, tensors = sys.modules[__name__], [t.to(x.dtype) if t.is_floating_point() else t for t in tensors]
    rest, numbers = iter(tensors), iter(steps)
    kept: list[Tensor] = []

    def take(count: int) -> list[int]:
        return [next(numbers) for _ in range(count)]

    def packed(count: int) -> list[Tensor]:
        return [next(rest) for _ in range(count)]

    def bias() -> Tensor | None:
        return next(rest) if next(numbers) else None

    def activation() -> str:
        return list(ACTIVATIONS)[next(numbers)]

    def where(kernel: Sequence[int]) -> tuple[Sequence[int], ...]:
        stride, padding, dilation = take(2), take(4), take(2)
        return stride, same_padding(x, kernel, stride, dilation) if tuple(padding) == SAME else padding, dilation

    for kind in numbers:
        if kind == RELU:
            x = x.relu()
        elif kind == KEEP:
            kept.append(x)
        elif kind == SWAP:
            x, kept[-1] = kept[-1], x
        elif kind == SHORTCUT:
            stride, channels = take(2), take(2)
            x = F.pad(x[:, :, :: stride[0], :: stride[1]], (0, 0, 0, 0, *channels))
        elif kind == MEAN:
            x = x.mean((2, 3), keepdim=bool(next(numbers)))
        elif kind == LINEAR:
            x = F.linear(x, next(rest), bias())
        elif kind == FLATTEN:
            x = x.flatten(*take(2))
        elif kind == MAX_POOL2D:
            x = ops.max_pool2d(x, *(take(2) for _ in range(4)), bool(next(numbers)))
        elif kind == SPARSE_LINEAR:
            size = take(2)
            x = ops.sparse_linear(x, *packed(5), *size, bias(), activation())
        elif kind == SPARSE_CONV2D:
            shape, *around, groups = take(4), take(2), take(2), take(2), next(numbers)
            args = *packed(3), shape, bias(), *around, groups, activation()
            x = ops.sparse_conv2d(x, *args, kept.pop() if next(numbers) else None)
        elif kind == SEPARABLE_CONV2D:
            m, (depthwise, pointwise) = next(numbers), packed(2)
            at, biases = where(depthwise.shape[:2]), (bias(), bias())
            x = ops.separable_conv2d(x, depthwise, pointwise, m, *biases, *at, activation(), activation())
        else:
            (weight,) = packed(1)
            at, b, act = where(weight.shape[2:]), bias(), activation()
            if kind == DEPTHWISE_CONV2D:
                x = ops.depthwise_conv2d(x, weight, b, *at, act)
            else:
                x = ops.stem_conv2d(x, weight, b, *at, act, bool(next(numbers)))
    return x


def masked_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, straight_through: bool = False
) -> Tensor:
    return F.linear(x, apply_mask(weight, mask, straight_through), bias)


def masked_linear_grad_x(grad: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return grad @ torch.where(mask, weight, 0)


def masked_linear_grad_weight(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, grad.flatten(0, -2).t() @ x.flatten(0, -2) if grad.dim() > 1 else grad.outer(x), 0)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    activation: str = "none",
) -> Tensor:
    top, bottom, left, right = padding if len(padding) == 4 else (padding[0], *padding, padding[1])
    padded = F.pad(x, (left, right, top, bottom))
    y = F.conv2d(padded, weight, bias, tuple(stride), 0, tuple(dilation), x.shape[1] // weight.shape[1])
    return activate(y, activation)


depthwise_conv2d = conv2d


def stem_conv2d(*args: Any, **options: Any) -> Tensor:
    return conv2d(*args[:7], **options)  # the eighth is a memory format


def activate(y: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation](y)


def depthwise_conv2d_grad_x(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    x = grad.new_zeros((grad.shape[0], *size), requires_grad=True)
    with torch.enable_grad():
        y = depthwise_conv2d(x, weight, None, stride, padding, dilation)
    return torch.autograd.grad(y, x, grad)[0]


def depthwise_conv2d_grad_weight(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    weight = grad.new_zeros((grad.shape[1], 1, *kernel_size), requires_grad=True)
    with torch.enable_grad():
        y = depthwise_conv2d(x, weight, None, stride, padding, dilation)
    return torch.autograd.grad(y, weight, grad)[0]


def depthwise_conv2d_grads(grad: Tensor, x: Tensor, weight: Tensor, *where: Sequence[int]) -> tuple[Tensor, Tensor]:
    return (
        depthwise_conv2d_grad_x(grad, weight, x.shape[1:], *where),
        depthwise_conv2d_grad_weight(grad, x, weight.shape[2:], *where),
    )


def separable_conv2d(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    out_channels: int,
    depthwise_bias: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    depthwise_activation: str = "none",
    activation: str = "none",
) -> Tensor:
    weight, where = depthwise.permute(2, 0, 1).unsqueeze(1), (stride, padding, dilation)
    between = depthwise_conv2d(x, weight, depthwise_bias, *where, depthwise_activation)
    y = F.conv2d(between, pointwise.transpose(1, 2).flatten(0, 1)[:out_channels, :, None, None], bias)
    return activate(y, activation)


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
    return activate(y, activation)


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
    addend: Tensor | None = None,
) -> Tensor:
    weight = x.new_zeros(weight_shape[0], -(-math.prod(weight_shape[1:]) // 128) * 128)
    for cell in range(len(starts) - 1):
        own = slice(int(starts[cell]), int(starts[cell + 1]))
        at = cell // weight_shape[0] * 128 + columns[own].long()
        weight[cell % weight_shape[0]].index_put_((at,), values[own].to(x.dtype), accumulate=True)
    weight = weight[:, : math.prod(weight_shape[1:])].view(*weight_shape)
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    y = y if addend is None else y + addend
    return activate(y, activation)


def singular_value_threshold(a: Tensor, threshold: float) -> Tensor:
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    return (u * (s - threshold).clamp(min=0).unsqueeze(-2)) @ vh
