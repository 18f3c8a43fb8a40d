"""Conv2d whose channels do not mix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crest_ext.ops import depthwise_conv2d
from crest_ext.ops.depthwise_conv2d import sides
from crest_ext.reference import same_padding


def pads(
    padding: str | tuple[int, ...], x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """A padding in numbers, "same" being TensorFlow's SAME for this x."""
    if not isinstance(padding, str):
        return padding
    return same_padding(x, kernel, stride, dilation) if x.dim() == 4 else (0, 0)  # the op has the message


class DepthwiseConv2d(nn.Conv2d):
    """torch.nn.Conv2d with groups == in_channels, on `depthwise_conv2d`: the same state_dict. ONNX gets torch's own.

    x: (n, channels, h, w), or one image (channels, h, w).

    Args:
        channels: in_channels and groups.
        kernel_size, stride, dilation, bias: as there.
        padding: one int, two, four (top, bottom, left, right), "valid": none, or "same": TensorFlow's SAME, so many
            zeros that the result has ceil(size / stride), an odd one below and at the right; with a stride of 1 as in
            torch.
        multiplier: out_channels / channels.
        activation: "none", "relu" or "relu6", in the same pass.
        factory: device and dtype; padding_mode must be "zeros".

    Raises:
        ValueError: channels or multiplier is not positive, or padding or padding_mode is not as above.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        *,
        multiplier: int = 1,
        activation: str = "none",
        **factory: Any,
    ) -> None:
        if channels < 1 or multiplier < 1:
            raise ValueError(
                f"DepthwiseConv2d: channels and multiplier must be at least 1, got {channels} and {multiplier}"
            )
        if (mode := factory.get("padding_mode", "zeros")) != "zeros":
            raise ValueError(f"DepthwiseConv2d: padding_mode must be zeros, got {mode}")
        pads = (padding, padding) if isinstance(padding, int) else (0, 0) if padding == "valid" else padding
        if pads != "same" and (isinstance(pads, str) or len(pads) not in (2, 4)):
            raise ValueError(f"DepthwiseConv2d: padding must be 1, 2 or 4 ints, 'same' or 'valid', got {padding!r}")
        super().__init__(channels, channels * multiplier, kernel_size, stride, 0, dilation, channels, bias, **factory)
        self.padding, self.activation = pads, activation

    @property
    def channels(self) -> int:
        return self.in_channels

    @property
    def multiplier(self) -> int:
        return self.out_channels // self.in_channels

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, activation: str = "none") -> DepthwiseConv2d:
        """A new module on the Parameter objects of `conv`, so that its optimizer keeps working.

        Raises:
            ValueError: conv mixes channels, or pads with something else than zeros.
        """
        if conv.groups != conv.in_channels:
            raise ValueError(f"DepthwiseConv2d: groups must be in_channels, {conv.in_channels}, got {conv.groups}")
        module = cls(
            conv.in_channels,
            cast("tuple[int, int]", conv.kernel_size),
            cast("tuple[int, int]", conv.stride),
            conv.padding,
            cast("tuple[int, int]", conv.dilation),
            conv.bias is not None,
            multiplier=conv.out_channels // conv.in_channels,
            activation=activation,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        module.weight, module.bias = conv.weight, conv.bias
        return module.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        padding = pads(self.padding, x, self.kernel_size, self.stride, self.dilation)
        # To what has no ops but its own; torch.compile cannot trace the question.
        if not torch.compiler.is_dynamo_compiling() and torch.onnx.is_in_onnx_export():
            top, bottom, left, right = sides(padding)
            padded = F.pad(x, (left, right, top, bottom))
            y = F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
            return y if self.activation == "none" else F.relu(y) if self.activation == "relu" else F.relu6(y)
        return depthwise_conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.activation)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", activation={self.activation}" if self.activation != "none" else "")
