"""Arguments for every op: what the tests of correctness, gradients, registration and tracing run on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from crest_ext import pack_separable_conv2d, pack_sparse, pack_sparse_conv2d, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Make = Callable[..., Tensor]
GROUPS = ["filter", "channel", "shape", "kernel", "layer", "row", "column"]
# Around every register width (4, 8, 16), and nothing at all.
SIZES = [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 100]


def tensor(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(device, dtype)


def some(*shape: int, device: str, density: float = 0.5) -> Tensor:
    return torch.rand(*shape).lt(density).to(device)


def apply_mask(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for n in SIZES:
        yield tensor(n, dtype=dtype, device=device), some(n, device=device)
    for straight_through in (False, True):
        yield tensor(3, 5, 7, dtype=dtype, device=device), some(3, 5, 7, device=device), straight_through
    yield tensor(9, 6, dtype=dtype, device=device).t(), some(9, 6, device=device).t()


# Conv2d and Linear weights: one filter, one input, runs and rows around the registers; nothing at all.
GROUPED = [
    *((5, 3, 3, 3), (1, 4, 3, 3), (4, 1, 5, 5), (4, 7, 1, 1), (2, 2, 33), (9, 17)),
    *((1, 9), (7, 1), (2, 0), (0, 3), (3, 2, 0, 3)),
]


def group_norms(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for shape in GROUPED:
        for groups in GROUPS:
            weight = tensor(*shape, dtype=dtype, device=device)
            yield weight + weight.sign(), groups  # away from 0, where there is no gradient
    yield tensor(3, 4, 5, dtype=dtype, device=device).permute(2, 1, 0), "channel"


def group_soft_threshold_(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for weight, groups in list(group_norms(dtype, device))[:-1]:
        norms = reference.group_norms(weight.double(), groups)
        yield weight, groups, norms.median().item() * 0.99 if norms.numel() else 0.5


def sparse_group_soft_threshold_(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for weight, groups, threshold in group_soft_threshold_(dtype, device):
        yield weight, groups, threshold / 2, 1.37


# (n, m, k, density): few rows; then sparse and dense with a panel's narrow, middle and full width; nothing at all.
LINEAR = [
    (1, 3, 5, 0.5),
    (7, 5, 33, 0.3),
    (17, 6, 20, 0.2),
    (20, 3, 40, 0.4),
    (35, 5, 17, 0.1),
    (18, 4, 9, 0.9),
    (0, 3, 4, 0.5),
    (18, 0, 3, 0.5),
    (18, 3, 0, 0.5),
]


def masked_linear(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for n, m, k, density in LINEAR:
        x, weight, bias = (tensor(*shape, dtype=dtype, device=device) for shape in ((n, k), (m, k), (m,)))
        yield x, weight, some(m, k, device=device, density=density)
        yield x, weight, some(m, k, device=device, density=density), bias, n == 7
    x, weight = tensor(4, 3, 2, dtype=dtype, device=device).permute(2, 1, 0), tensor(4, 5, dtype=dtype, device=device)
    yield x, weight.t(), some(4, 5, device=device).t()


def masked_linear_grad_x(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for n, m, k, density in LINEAR:
        grad, weight = tensor(n, m, dtype=dtype, device=device), tensor(m, k, dtype=dtype, device=device)
        yield grad, weight, some(m, k, device=device, density=density)
    grad, weight = (
        tensor(5, 3, 2, dtype=dtype, device=device).permute(2, 1, 0),
        tensor(4, 5, dtype=dtype, device=device),
    )
    yield grad, weight.t(), some(4, 5, device=device).t()


def masked_linear_grad_weight(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for n, m, k, density in LINEAR:
        grad, x = tensor(n, m, dtype=dtype, device=device), tensor(n, k, dtype=dtype, device=device)
        yield grad, x, some(m, k, device=device, density=density)
    grad, x = (tensor(size, 3, 2, dtype=dtype, device=device).permute(2, 1, 0) for size in (5, 4))
    yield grad, x, some(4, 5, device=device).t()


def prune_splice_(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for n in SIZES:
        yield tensor(n, dtype=dtype, device=device), some(n, device=device), 0.5, 1.0
    yield tensor(9, 6, dtype=dtype, device=device).t(), some(6, 9, device=device), 0.75, 0.75


def sgd_prune_splice_(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for n in SIZES:
        for update_mask in (True, False):
            weight, grad, buffer = (tensor(n, dtype=dtype, device=device) for _ in range(3))
            yield weight, grad, buffer, some(n, device=device), 0.1, 0.9, 0.01, 0.5, 1.0, update_mask


# (n, c, multiplier, (h, w), kernel, stride, padding, dilation): tuned kernels, with and without every border, across
# several tiles, bands and registers; then any kernel; nothing at all.
DEPTHWISE = [
    (1, 2, 1, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 3, 1, (30, 17), (3, 3), (1, 1), (0, 2, 1, 0), (1, 1)),
    (1, 18, 1, (9, 16), (3, 3), (2, 2), (0, 1, 0, 1), (1, 1)),
    (1, 2, 1, (5, 141), (3, 3), (2, 2), (1, 1), (1, 1)),
    (2, 3, 1, (8, 21), (5, 5), (1, 1), (2, 2), (1, 1)),
    (1, 9, 1, (11, 19), (5, 5), (2, 2), (2, 1, 1, 2), (1, 1)),
    (1, 20, 1, (8, 37), (3, 3), (2, 2), (1, 1), (1, 1)),
    (1, 17, 1, (6, 75), (5, 5), (2, 2), (2, 2), (1, 1)),
    (1, 1, 1, (6, 33), (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 8, 1, (3, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 19, 1, (7, 15), (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 12, 1, (9, 19), (3, 3), (2, 2), (1, 1), (1, 1)),
    (1, 5, 1, (6, 12), (5, 5), (1, 1), (2, 2), (1, 1)),
    (1, 4, 1, (1, 1), (3, 3), (1, 1), (4, 4), (1, 1)),
    (1, 2, 3, (6, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 2, 2, (9, 7), (2, 3), (2, 1), (1, 0), (1, 2)),
    (1, 1, 1, (9, 8), (3, 3), (1, 1), (2, 2), (2, 2)),
    (1, 1, 1, (9, 13), (3, 2), (3, 2), (1, 2, 3, 0), (2, 3)),
    (1, 2, 1, (8, 8), (7, 7), (1, 1), (3, 3), (1, 1)),
    (0, 3, 1, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
]


def depthwise(dtype: torch.dtype, device: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, tuple[Any, ...]]]:
    """x, weight, bias, grad and (stride, padding, dilation), in both memory formats."""
    for n, c, multiplier, (h, w), (kh, kw), stride, padding, dilation in DEPTHWISE:
        if dtype == torch.float64 and n * c * h * w > 200:
            continue  # gradients are checked number by number
        m, pads = c * multiplier, padding if len(padding) == 4 else (padding[0], *padding, padding[1])
        out_h = (h + pads[0] + pads[1] - (kh - 1) * dilation[0] - 1) // stride[0] + 1
        out_w = (w + pads[2] + pads[3] - (kw - 1) * dilation[1] - 1) // stride[1] + 1
        shapes = ((n, c, h, w), (m, 1, kh, kw), (m,), (n, m, out_h, out_w))
        x, weight, bias, grad = (tensor(*shape, dtype=dtype, device=device) for shape in shapes)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x, grad = (t.contiguous(memory_format=memory_format) for t in (x, grad))
            yield x, weight, bias, grad, (stride, padding, dilation)


def depthwise_conv2d(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    activations = itertools.cycle(["relu", "none", "relu6"])
    for x, weight, bias, _, where in depthwise(dtype, device):
        yield x, weight, None, *where
        yield x, weight, bias, *where, next(activations)


def depthwise_conv2d_grad_x(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for x, weight, _, grad, where in depthwise(dtype, device):
        yield grad, weight, tuple(x.shape[1:]), *where


def depthwise_conv2d_grad_weight(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for x, weight, _, grad, where in depthwise(dtype, device):
        yield grad, x, tuple(weight.shape[2:]), *where


def depthwise_conv2d_grads(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    for x, weight, _, grad, where in depthwise(dtype, device):
        yield grad, x, weight, *where


# (n, c, m, (h, w), kernel, stride, padding, dilation): tiles of pixels, registers and panels of outputs, blocks of
# channels, each whole and in part; tuned depthwise kernels and any other; several images in a tile; nothing at all.
SEPARABLE = [
    (1, 32, 64, (14, 14), (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 70, 40, (7, 7), (3, 3), (2, 2), (0, 1, 0, 1), (1, 1)),
    (3, 17, 7, (5, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 130, 33, (16, 15), (5, 5), (2, 2), (2, 2), (1, 1)),
    (1, 3, 97, (6, 8), (2, 3), (1, 2), (1, 0, 0, 2), (2, 1)),
    (2, 64, 16, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    (0, 3, 4, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
]


def separable_conv2d(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    if dtype != torch.float32:
        return
    activations = itertools.cycle(["relu", "none", "relu6", "relu6", "relu"])
    for n, c, m, size, kernel, *where in SEPARABLE:
        shapes = ((n, c, *size), (c, 1, *kernel), (m, c, 1, 1), (c,), (m,))
        x, depthwise, pointwise, inner, outer = (tensor(*shape, dtype=dtype, device=device) for shape in shapes)
        packed = pack_separable_conv2d(depthwise, pointwise / c**0.5)
        yield x, *packed, None, None, *where
        last = x.contiguous(memory_format=torch.channels_last)
        yield last, *packed, inner, outer, *where, next(activations), next(activations)


# (n, c, m, (h, w), kernel, stride, padding, dilation): pixels, registers and panels of outputs, whole and in part; rows
# and columns that meet nothing but padding; any kernel; nothing at all.
STEM = [
    (1, 3, 32, (16, 30), (3, 3), (2, 2), (0, 1, 0, 1), (1, 1)),
    (2, 3, 24, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 1, 97, (7, 29), (5, 5), (1, 1), (0, 0), (1, 1)),
    (1, 3, 40, (23, 31), (11, 11), (4, 4), (2, 2), (1, 1)),
    (1, 5, 7, (6, 8), (2, 3), (1, 3), (4, 0, 1, 5), (2, 1)),
    (1, 2, 16, (1, 1), (1, 1), (1, 1), (3, 4), (1, 1)),
    (0, 3, 4, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
]


def stem_conv2d(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    if dtype != torch.float32:
        return
    activations = itertools.cycle(["relu", "none", "relu6"])
    for n, c, m, size, kernel, *where in STEM:
        shapes = ((n, c, *size), (m, c, *kernel), (m,))
        x, weight, bias = (tensor(*shape, dtype=dtype, device=device) for shape in shapes)
        weight /= (c * kernel[0] * kernel[1]) ** 0.5
        yield x, weight, None, *where
        last = x.contiguous(memory_format=torch.channels_last)
        for channels_last in (True, False):
            yield last, weight, bias, *where, next(activations), channels_last


# (n, m, k, density): one row of x, a panel of each width and several; the edges of slices, blocks and tiles; nothing.
PACKED = [
    (1, 16, 128, 0.2),
    (2, 17, 129, 0.1),
    (5, 300, 40, 0.3),
    (9, 33, 260, 0.05),
    (20, 5, 17, 1.0),
    (70, 9, 131, 0.1),
    (1, 3, 5, 0.0),
    (0, 3, 4, 0.5),
    (3, 0, 4, 0.5),
    (3, 4, 0, 0.5),
]


def sparse_linear(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    if dtype != torch.float32:
        return  # of x; see test_sparse_linear for weights in half precision
    for n, m, k, density in PACKED:
        x, weight, bias = (tensor(*shape, dtype=dtype, device=device) for shape in ((n, k), (m, k), (m,)))
        packed = pack_sparse(weight * some(m, k, device=device, density=density))
        yield x, *packed
        yield x, *packed, bias, "relu"
    x = tensor(130, 3, 2, dtype=dtype, device=device).permute(2, 1, 0)
    yield x, *pack_sparse(tensor(130, 4, dtype=dtype, device=device).t()), tensor(4, dtype=dtype, device=device)


# x, weight, options: of 1x1 with whole registers and without; borders; strides; groups; a kernel beyond a tile of 128.
OPTIONS = ("stride", "padding", "dilation", "groups")
CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 5, 8, 8), (6, 5, 1, 1), {}),
    ((1, 40, 3, 5), (7, 40, 1, 1), {"stride": 2}),
    ((2, 280, 21, 13), (8, 140, 1, 1), {"groups": 2}),  # planes that end within a register, and two tiles of the weight
    ((3, 130, 7, 7), (5, 130, 1, 1), {}),  # three images in a plane
    ((1, 3, 1, 5), (2, 3, 1, 1), {"padding": 1}),  # a row, whose outputs are three
    ((1, 3, 1, 16), (2, 3, 1, 1), {"stride": (3, 1), "padding": (1, 0)}),  # a row of padding alone
    ((2, 3, 9, 7), (4, 3, 3, 3), {"padding": 1}),
    ((1, 4, 11, 11), (6, 2, 5, 5), {"padding": 2, "groups": 2}),
    ((3, 2, 13, 10), (3, 2, 3, 2), {"stride": (2, 3), "padding": (1, 0), "dilation": (1, 2)}),
    ((1, 3, 23, 23), (5, 3, 11, 11), {"stride": 4}),
    ((1, 20, 6, 6), (9, 20, 3, 3), {"padding": 3, "dilation": 2}),
    ((2, 6, 4, 4), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    ((2, 3, 4, 1), (1, 3, 4, 1), {}),
    ((1, 24, 9, 9), (64, 24, 3, 3), {"padding": 1}),  # this and the next: so many weights that lanes are put apart
    ((2, 16, 11, 9), (256, 16, 3, 3), {"stride": 2, "padding": 1}),
]


def sparse_conv2d(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    if dtype != torch.float32:
        return  # of x; see test_sparse_conv2d for weights in half precision
    for x_shape, weight_shape, options in CONVOLUTIONS:
        weight = tensor(*weight_shape, dtype=dtype, device=device) * some(*weight_shape, device=device, density=0.3)
        x, bias = tensor(*x_shape, dtype=dtype, device=device), tensor(weight_shape[0], dtype=dtype, device=device)
        rest = [options.get(o, d) for o, d in zip(OPTIONS, (1, 0, 1, 1), strict=True)]
        packed = pack_sparse_conv2d(weight)
        yield x, *packed, None, *rest
        x = x.contiguous(memory_format=torch.channels_last)
        yield x, *packed, bias, *rest, "relu"
        yield x, *packed, bias, *rest, "relu", torch.rand_like(torch.ops.crest.sparse_conv2d(x, *packed, bias, *rest))
    yield (
        tensor(0, 2, 5, 5, dtype=dtype, device=device),
        *pack_sparse_conv2d(tensor(3, 2, 3, 3, dtype=dtype, device=device)),
        None,
        [1, 1],
        [0, 0],
        [1, 1],
    )


def singular_value_threshold(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    if dtype not in (torch.float32, torch.float64):
        return
    for shape in ((1, 1), (9, 1), (2, 3, 17, 20), (40, 31), (100, 120), (0, 3, 2), (3, 0)):
        a = tensor(*shape, dtype=dtype, device=device)
        for threshold in (0.5, 0.8 * sum(shape[-2:]) ** 0.5):
            yield a, threshold
    yield tensor(9, 6, dtype=dtype, device=device).t()[::2], 1.0


def local_response_norm(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    if dtype != torch.float32:
        return
    for shape in ((2, 5, 3, 3), (1, 9, 33), (1, 1, 2, 2, 5), (1, 3, 1030), (0, 3, 4), (2, 0, 3), (1, 2, 0, 3)):
        for size in (1, 4, 5):
            yield tensor(*shape, dtype=dtype, device=device), size, 0.5
    yield tensor(6, 4, 3, dtype=dtype, device=device).permute(2, 1, 0) * 40, 3, 1e-4, 0.75, 2.0


# (shape, kernel, stride, padding, dilation, ceil_mode): the networks' windows, in rows of less than a register and of
# several; windows that overlap, that leave gaps, that end in the padding or lie in it; nothing at all.
POOLS = [
    ((2, 3, 8, 8), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((1, 2, 24, 24), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((1, 3, 27, 55), (3, 3), (2, 2), (0, 0), (1, 1), False),
    ((2, 1, 13, 83), (3, 3), (2, 2), (1, 1), (1, 1), True),
    ((1, 2, 6, 19), (3, 3), (1, 1), (1, 1), (1, 1), False),
    ((2, 2, 9, 37), (2, 3), (1, 2), (1, 0), (2, 1), False),
    ((1, 3, 11, 40), (5, 5), (3, 2), (2, 2), (1, 3), True),
    ((1, 1, 10, 20), (5, 1), (3, 3), (2, 0), (1, 1), True),
    ((1, 2, 7, 34), (4, 1), (2, 1), (2, 0), (2, 5), False),
    ((3, 2, 2, 3), (3, 4), (3, 1), (1, 2), (1, 1), True),
    ((1, 1, 1, 70), (1, 70), (1, 70), (0, 0), (1, 1), False),
    ((0, 2, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False),
]


def max_pool2d(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    if dtype != torch.float32:
        return
    for shape, *where in POOLS:
        yield tensor(*shape, dtype=dtype, device=device), *where
    yield tensor(9, 8, 2, 3, dtype=dtype, device=device).permute(2, 3, 1, 0), (2, 2), (2, 2), (0, 0), (1, 1), False


def packed_sequential(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    if dtype != torch.float32:
        return
    x, kernels = (tensor(*shape, dtype=dtype, device=device) for shape in ((2, 4, 9, 8), (6, 2, 3, 2)))
    weight, *biases = (tensor(*shape, dtype=dtype, device=device) for shape in ((5, 120), (6,), (5,)))
    conv = pack_sparse_conv2d(kernels * some(6, 2, 3, 2, device=device))
    linear = pack_sparse(weight * some(5, 120, device=device))
    steps = [4, *conv.weight_shape, 1, 2, 1, 1, 1, 1, 2, 1, 0, 0, 2, 3, 2, 2, 1, 1, 0, 1, 1, 0]
    yield x, [*conv[:3], biases[0]], [*steps, 0]
    steps_beside = [4, *conv.weight_shape, 1, 2, 1, 1, 1, 1, 2]
    yield x, [*conv[:3], *conv[:3], biases[0]], [8, *steps_beside, 0, 1, 0, 9, *steps_beside, 1, 1, 1]
    yield x, [*conv[:3], biases[0], *linear[:5]], [*steps, 1, 1, -1, 3, 5, 120, 0, 1]
    yield x[:0], [*conv[:3], biases[0], *linear[:5], biases[1]], [*steps, 1, -3, -1, 3, 5, 120, 1, 0]
    yield x, [], [1, 2, 3]
    shapes = (5, 4, 3, 3), (5,), (5, 1, 3, 3), (5, 1, 3, 3), (7, 5, 1, 1)
    stem, first, depthwise, *separable = (tensor(*shape, dtype=dtype, device=device) for shape in shapes)
    steps = [7, 1, 2, *[-1] * 4, 1, 1, 1, 1, 1, 5, 1, 1, 1, 0, 2, 1, 1, 2, 0, 2]
    yield x, [stem, first, depthwise], steps
    steps = [*steps, 6, 7, 2, 1, *[-1] * 4, 1, 1, 1, 0, 1, 0]
    yield x, [stem, first, depthwise, *pack_separable_conv2d(*separable)[:2], first], steps


SAMPLES: dict[str, Callable[[torch.dtype, str], Iterator[tuple[Any, ...]]]] = {
    f.__name__: f
    for f in (
        apply_mask,
        group_norms,
        group_soft_threshold_,
        depthwise_conv2d,
        depthwise_conv2d_grad_x,
        depthwise_conv2d_grad_weight,
        depthwise_conv2d_grads,
        local_response_norm,
        masked_linear,
        masked_linear_grad_x,
        masked_linear_grad_weight,
        max_pool2d,
        packed_sequential,
        prune_splice_,
        separable_conv2d,
        sgd_prune_splice_,
        singular_value_threshold,
        sparse_group_soft_threshold_,
        sparse_linear,
        sparse_conv2d,
        stem_conv2d,
    )
}

# Terms of the longest sum in an op's samples: what its rounding errors grow with.
LONGEST_SUM = {
    "group_norms": 100,
    "group_soft_threshold_": 100,
    "depthwise_conv2d": 49,
    "depthwise_conv2d_grad_x": 49,
    "depthwise_conv2d_grad_weight": 510,
    "depthwise_conv2d_grads": 510,
    "local_response_norm": 5,
    "masked_linear": 40,
    "masked_linear_grad_x": 40,
    "masked_linear_grad_weight": 40,
    "packed_sequential": 100,
    "separable_conv2d": 160,
    "singular_value_threshold": 400,  # and their eigenvectors
    "sparse_group_soft_threshold_": 100,
    "sparse_linear": 130,
    "sparse_conv2d": 363,
    "stem_conv2d": 363,
}

# Without a gradient, though they write nothing.
INFERENCE = {"local_response_norm", "max_pool2d", "separable_conv2d", "singular_value_threshold"}
INFERENCE |= {"packed_sequential", "sparse_linear", "sparse_conv2d", "stem_conv2d"}
