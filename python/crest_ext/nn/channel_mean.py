"""What a network for images ends in, as a module."""

from __future__ import annotations

from torch import Tensor, nn


class ChannelMean(nn.Module):
    """The mean of each channel of images (n, c, h, w): (n, c), or (n, c, 1, 1) with keepdim."""

    def __init__(self, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), self.keepdim)
