"""The structs of the dense convolutions and pooling, for drivers that call kernels outside of Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crest_ext import reference
from samples import SAMPLES, depthwise

ACTIVATIONS = list(reference.ACTIVATIONS)


class Call(NamedTuple):
    """A call of a kernel: the arguments of its struct, the result last among the arrays, and what that must be."""

    op: str
    sizes: Sequence[int]
    arrays: list[Tensor | None]
    expected: Tensor  # in float64
    tolerance: Tensor  # what may round of each number: every sum of its products, and what is stored


def stored(t: Tensor, last: bool) -> Tensor:
    """The numbers in the order of memory that x has."""
    return (t.permute(0, 2, 3, 1) if last else t).contiguous()


def slack(dtype: torch.dtype, expected: Tensor, terms: int, sizes: Tensor) -> Tensor:
    """Of sums of so many products, `sizes` being the sums of their absolute values, kept as the kernels keep them."""
    accumulator = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    info = torch.finfo(dtype)
    return (terms + 2) * accumulator.eps * sizes + info.eps * (expected.abs() + info.smallest_normal)


def calls(dtype: torch.dtype) -> Iterator[Call]:
    """The forward pass, the gradient of x (the same kernel) and that of weight, on the samples of all tests."""
    for i, (x, weight, bias, grad, where) in enumerate(depthwise(dtype, "cpu")):
        if not x.numel():
            continue  # nothing is launched
        (n, c, h, w), (m, _, kh, kw), (out_h, out_w) = x.shape, weight.shape, grad.shape[2:]
        stride, padding, dilation = where
        top, left = padding[0], padding[2] if len(padding) == 4 else padding[1]
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        wide = [t.double() for t in (x, weight, bias, grad)]
        sizes_of = [t.abs() for t in wide]

        def result(expected: Tensor, terms: int, sizes: Tensor, last: bool = last) -> tuple[Tensor, Tensor, Tensor]:
            tolerance = slack(dtype, expected, terms, sizes)
            expected, tolerance = stored(expected, last), stored(tolerance, last)
            return torch.full_like(expected, float("nan"), dtype=dtype), expected, tolerance

        y, expected, tolerance = result(
            reference.depthwise_conv2d(*wide[:2], wide[2] if i % 3 else None, *where, ACTIVATIONS[i % 3]),
            kh * kw + 1,
            reference.depthwise_conv2d(*sizes_of[:2], sizes_of[2] if i % 3 else None, *where),
        )
        sizes = (n, c, m, h, w, kh, kw, out_h, out_w, *stride, 1, 1, top, left, *dilation, 0, last, i % 3)
        arrays = [stored(x, last), weight, bias if i % 3 else None, y]
        yield Call("depthwise_conv2d", sizes, arrays, expected, tolerance)

        y, expected, tolerance = result(
            reference.depthwise_conv2d_grad_x(wide[3], wide[1], x.shape[1:], *where),
            kh * kw * m // c,
            reference.depthwise_conv2d_grad_x(sizes_of[3], sizes_of[1], x.shape[1:], *where),
        )
        offset = [(k - 1) * d - before for k, d, before in zip((kh, kw), dilation, (top, left), strict=True)]
        sizes = (n, m, c, out_h, out_w, kh, kw, h, w, 1, 1, *stride, *offset, *dilation, 1, last, 0)
        yield Call("depthwise_conv2d", sizes, [stored(grad, last), weight, None, y], expected, tolerance)

        y, expected, tolerance = result(
            reference.depthwise_conv2d_grad_weight(wide[3], wide[0], (kh, kw), *where),
            n * out_h * out_w,
            reference.depthwise_conv2d_grad_weight(sizes_of[3], sizes_of[0], (kh, kw), *where),
            last=False,
        )
        sizes = (n, c, m // c, h, w, kh, kw, out_h, out_w, *stride, top, left, *dilation, last)
        yield Call("depthwise_conv2d_grad_weight", sizes, [stored(grad, last), stored(x, last), y], expected, tolerance)


def separable_calls() -> Iterator[Call]:
    """Of separable_conv2d, whose tiles have two rows."""
    for x, first, second, m, inner, outer, *where in SAMPLES["separable_conv2d"](torch.float32, "cpu"):
        if not x.numel():
            continue
        (stride, padding, dilation), names = where[:3], where[3:] or ["none", "none"]
        wide = [None if t is None else t.double() for t in (x, first, second, inner, outer)]
        sizes_of = [None if t is None else t.abs() for t in wide]
        expected = stored(reference.separable_conv2d(*wide[:3], m, *wide[3:], *where), True)
        terms = stored(reference.separable_conv2d(*sizes_of[:3], m, *sizes_of[3:], *where[:3]), True)
        (n, c, h, w), (kh, kw, _), (_, out_h, out_w, _) = x.shape, first.shape, expected.shape
        top, left = padding[0], padding[2] if len(padding) == 4 else padding[1]
        acts = [ACTIVATIONS.index(name) for name in names]
        sizes = (n, c, c, h, w, kh, kw, out_h, out_w, *stride, 1, 1, top, left, *dilation, 0, 1, acts[0], m, acts[1], 2)
        arrays = [stored(x, True), first, inner, second, outer, torch.full_like(expected, float("nan")).float()]
        yield Call("separable_conv2d", sizes, arrays, expected, slack(torch.float32, expected, c + kh * kw, terms))


def pool_calls() -> Iterator[Call]:
    """Of max_pool2d, which rounds nothing."""
    for x, *where in SAMPLES["max_pool2d"](torch.float32, "cpu"):
        if not x.numel():
            continue
        kernel, stride, padding, dilation, _ = where
        expected = reference.max_pool2d(x.double(), *where)
        sizes = (x.shape[0] * x.shape[1], *x.shape[2:], *kernel, *expected.shape[2:], *stride, *padding, *dilation)
        y = torch.full_like(expected, float("nan")).float()
        yield Call("max_pool2d", sizes, [x.contiguous(), y], expected, torch.zeros_like(expected))


def stem_calls() -> Iterator[Call]:
    """Of stem_conv2d, at the strides that x has."""
    for x, weight, bias, *where in SAMPLES["stem_conv2d"](torch.float32, "cpu"):
        if not x.numel():
            continue
        (stride, padding, dilation), (name, last) = where[:3], where[3:] or ["none", True]
        wide = [None if t is None else t.double() for t in (x, weight, bias)]
        y = reference.stem_conv2d(*wide, *where)
        terms = stored(reference.stem_conv2d(*(None if t is None else t.abs() for t in wide), *where[:3]), last)
        (n, c, h, w), (m, _, kh, kw), (out_h, out_w), expected = x.shape, weight.shape, y.shape[2:], stored(y, last)
        top, left = padding[0], padding[2] if len(padding) == 4 else padding[1]
        steps = x.stride()
        sizes = (n, c, m, h, w, kh, kw, out_h, out_w, *steps, *stride, top, left, *dilation, last)
        sizes += (ACTIVATIONS.index(name),)
        memory = x.permute(0, 2, 3, 1) if x.stride(1) == 1 else x
        arrays = [memory, weight, bias, torch.full_like(expected, float("nan")).float()]
        yield Call("stem_conv2d", sizes, arrays, expected, slack(torch.float32, expected, c * kh * kw, terms))
