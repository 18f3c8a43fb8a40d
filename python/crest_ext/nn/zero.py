"""Conv2d without weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ZeroConv2d(nn.Module):
    """What is left of a Conv2d whose weights are all zero: its bias, in an image of the size that it would give.

    Args:
        channels: n, of the Conv2d's filters.
        kernel_size, stride, dilation: of the Conv2d.
        pads: the sums of its padding above and below, and left and right.
        factory: device and dtype.

    Attributes:
        bias: (n,); at first all 0.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...] = (1, 1),
        dilation: tuple[int, ...] = (1, 1),
        pads: tuple[int, ...] = (0, 0),
        **factory: Any,
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, **factory))
        self.kernel_size, self.stride, self.dilation, self.pads = kernel_size, stride, dilation, pads

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, bias: Tensor) -> ZeroConv2d:
        """Of the Conv2d's sizes, with another bias, (n,)."""
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        pads = (top + bottom, left + right)
        module = cls(len(bias), conv.kernel_size, conv.stride, conv.dilation, pads, device="meta")
        module.bias = nn.Parameter(bias, conv.weight.requires_grad)
        return module.train(conv.training)

    @property
    def channels(self) -> int:
        return len(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        of_sides = zip(x.shape[-2:], self.pads, self.kernel_size, self.stride, self.dilation, strict=True)
        sides = [(side + pad - (k - 1) * d - 1) // s + 1 for side, pad, k, s, d in of_sides]
        y = self.bias.to(x.dtype).view(-1, 1, 1).expand(*x.shape[:-3], -1, *sides)
        layered = x.dim() == 4 and x.stride(1) == 1  # in channels_last
        return y.clone(memory_format=torch.channels_last if layered else torch.contiguous_format)

    def extra_repr(self) -> str:
        shown = f"{len(self.bias)}, kernel_size={self.kernel_size}, stride={self.stride}, pads={self.pads}"
        return f"{shown}, dilation={self.dilation}"
