"""The convolution that a network begins with, for inference."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from crest_ext.nn.depthwise import pads
from crest_ext.nn.pad import SamePad2d
from crest_ext.nn.sparse import effective
from crest_ext.ops import stem_conv2d

MOST_CHANNELS = 4  # of x: beyond these, the rows that a result's row is made from would leave the cache


class StemConv2d(nn.Module):
    """A convolution of an image with few channels on `stem_conv2d`, with its padding and activation; x float32.

    The weight and the bias are buffers, which copy, save, move and compile; it has no parameters.

    Args:
        weight: (m, c, kh, kw); float32.
        bias: (m,); float32.
        stride, dilation: two ints.
        padding: two ints, four (top, bottom, left, right), or "same": TensorFlow's SAME.
        activation: "none", "relu" or "relu6".
        channels_last: give the result in torch.channels_last, as `SeparableConv2d` takes it; or else contiguous.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, ...] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        activation: str = "none",
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.activation, self.channels_last = activation, channels_last

    @staticmethod
    def refusal(conv: nn.Conv2d) -> str | None:
        """Why a convolution cannot be one of these; None if it can."""
        if conv.groups != 1 or conv.in_channels > MOST_CHANNELS:
            return f"is no convolution of {MOST_CHANNELS} channels at most"
        if conv.padding_mode != "zeros":
            return "pads with something else than zeros"
        return "has a padding by name" if isinstance(conv.padding, str) else None

    @classmethod
    def from_conv2d(
        cls, conv: nn.Conv2d, activation: str = "none", pad: nn.Module | None = None, channels_last: bool = True
    ) -> StemConv2d:
        """What a convolution computes, behind an nn.ZeroPad2d or a `SamePad2d` if there is one.

        Raises:
            ValueError: the convolution has groups, more than MOST_CHANNELS inputs or padding that is not zeros in
                numbers; or the padding in front of it cannot be taken along.
        """
        if reason := cls.refusal(conv):
            raise ValueError(f"StemConv2d: must be a convolution of an image; it {reason}")
        if pad is not None and not takes_along(pad, conv):
            raise ValueError(f"StemConv2d: pad must be one in front of a convolution without padding, got {pad}")
        padding = cast("tuple[int, ...]", conv.padding)
        if isinstance(pad, nn.ZeroPad2d):
            left, right, top, bottom = pad.padding
            padding = (top, bottom, left, right)
        stride, dilation = cast("tuple[int, int]", conv.stride), cast("tuple[int, int]", conv.dilation)
        around = "same" if type(pad) is SamePad2d else padding
        return cls(*effective(conv), stride, around, dilation, activation, channels_last).train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        padding = pads(self.padding, input, self.weight.shape[2:], self.stride, self.dilation)
        where = self.stride, padding, self.dilation
        return stem_conv2d(input, self.weight, self.bias, *where, self.activation, self.channels_last)

    def extra_repr(self) -> str:
        m, c, kh, kw = self.weight.shape
        shown = f"{c}, {m}, kernel_size=({kh}, {kw}), stride={self.stride}, padding={self.padding}"
        return f"{shown}, activation={self.activation}, channels_last={self.channels_last}"


def takes_along(pad: nn.Module, conv: nn.Conv2d) -> bool:
    """Whether the zeros of a module in front of a convolution can become its own padding."""
    if conv.padding != (0, 0):
        return False
    if type(pad) is SamePad2d:
        return (pad.kernel_size, pad.stride, conv.dilation) == (conv.kernel_size, conv.stride, (1, 1))
    return type(pad) is nn.ZeroPad2d and min(pad.padding) >= 0
