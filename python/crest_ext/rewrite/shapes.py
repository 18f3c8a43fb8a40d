"""Convolutions without shapes that are zero in all filters: the part of `shrink` that narrows the lowered matrix."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from crest_ext.nn import LoweredConv2d
from crest_ext.rewrite.hand_over import Take

# To gather a row of the lowered matrix takes about as long as the products of so many filters with it: measured with
# AVX-512 on the layers of LeNet-5, ConvNet, ResNet-20, AlexNet and VGG-16, for the slowest batch and memory format.
FILTERS_A_GATHER = 256


def drop_shapes(conv: nn.Module) -> tuple[nn.Conv2d, Take] | None:
    """What computes the same in less work, and how its weight was cut; None if there is no such thing.

    A Conv2d with a smaller window, where the outer rows and columns of the window are zero and its padding is the same
    on both sides then. Else a LoweredConv2d, where so few shapes are left that it pays.
    """
    if type(conv) is not nn.Conv2d or conv.groups > 1:
        return None
    kept = (conv.weight.detach() != 0).any(0)
    if kept.all() or not kept.any():
        return None
    rows, columns = _used(kept.any(2).any(0)), _used(kept.any(1).any(0))
    padding = _padding(conv, rows, columns)
    whole = kept if padding is None else kept[:, rows, columns]
    if int(kept.sum()) * (conv.out_channels + FILTERS_A_GATHER) < whole.numel() * conv.out_channels:
        chosen = kept.flatten()
        return LoweredConv2d.from_conv2d(conv, kept), lambda t: t.flatten(1)[:, chosen.to(t.device), None, None]
    if padding is None or whole.numel() == kept.numel():
        return None
    return _cropped(conv, rows, columns, padding), lambda t: t[:, :, rows, columns]


def _used(any_of: Tensor) -> slice:
    places = any_of.nonzero()
    return slice(int(places[0]), int(places[-1]) + 1)


def _padding(conv: nn.Conv2d, rows: slice, columns: slice) -> tuple[int, int] | None:
    """That of the window cut to these; None where it is not as much on both sides."""
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    (kh, kw), (dh, dw) = conv.kernel_size, conv.dilation
    top, bottom = top - dh * rows.start, bottom - dh * (kh - rows.stop)
    left, right = left - dw * columns.start, right - dw * (kw - columns.stop)
    return (top, left) if top == bottom >= 0 and left == right >= 0 else None


def _cropped(conv: nn.Conv2d, rows: slice, columns: slice, padding: tuple[int, int]) -> nn.Conv2d:
    weight = conv.weight.detach()[:, :, rows, columns]
    window = (weight.shape[2], weight.shape[3])
    other = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        window,
        cast("tuple[int, int]", conv.stride),
        padding,
        cast("tuple[int, int]", conv.dilation),
        bias=False,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    other.weight = nn.Parameter(weight.contiguous(memory_format=_format(conv.weight)), conv.weight.requires_grad)
    other.bias = conv.bias
    return other.train(conv.training)


def _format(weight: Tensor) -> torch.memory_format:
    layered = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if layered else torch.contiguous_format
