"""Conv2d without weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ZeroConv2d(nn.Module):
    """What is left of a Conv2d whose weights are all zero: its bias, in an image of the size that it would give.

    Attributes:
        bias: (n,).
        kernel_size, stride, dilation: of the Conv2d.
        pads: the sums of its padding above and below, and left and right.
    """

    def __init__(self, conv: nn.Conv2d, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, conv.weight.requires_grad)
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        self.pads = (top + bottom, left + right)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        of_sides = zip(x.shape[-2:], self.pads, self.kernel_size, self.stride, self.dilation, strict=True)
        sides = [(side + pad - (k - 1) * d - 1) // s + 1 for side, pad, k, s, d in of_sides]
        y = self.bias.to(x.dtype).view(-1, 1, 1).expand(*x.shape[:-3], -1, *sides)
        layered = x.dim() == 4 and x.stride(1) == 1  # in channels_last
        return y.clone(memory_format=torch.channels_last if layered else torch.contiguous_format)

    def extra_repr(self) -> str:
        shown = f"{len(self.bias)}, kernel_size={self.kernel_size}, stride={self.stride}, pads={self.pads}"
        return f"{shown}, dilation={self.dilation}"
