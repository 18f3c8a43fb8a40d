"""The way around a residual block that gives smaller images and more channels, without parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Shortcut(nn.Module):
    """Each stride-th row and column of images (n, c, h, w), and channels of zeros before and behind theirs.

    Args:
        stride: of rows and of columns.
        before: channels.
        behind: channels.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 3.3, option A.
    """

    def __init__(self, stride: tuple[int, int], before: int, behind: int) -> None:
        super().__init__()
        self.stride, self.before, self.behind = stride, before, behind

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride[0], :: self.stride[1]], (0, 0, 0, 0, self.before, self.behind))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, behind={self.behind}"
