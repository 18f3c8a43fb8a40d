"""Zeros around images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext.reference import same_padding


class SamePad2d(nn.Module):
    """Zeros around x as TensorFlow's SAME has them: an odd one below and at the right. Without parameters.

    Args:
        kernel_size, stride: of the convolution behind it, two ints; its own padding is 0.
    """

    def __init__(self, kernel_size: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        top, bottom, left, right = same_padding(x, self.kernel_size, self.stride, (1, 1))
        return F.pad(x, (left, right, top, bottom))

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}"
