"""A depthwise and a pointwise convolution as one layer, for inference."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from crest_ext.nn.depthwise import DepthwiseConv2d, pads
from crest_ext.nn.sparse import effective
from crest_ext.ops import PackedSeparableConv2d, pack_separable_conv2d, separable_conv2d, unpack_separable_conv2d


class SeparableConv2d(nn.Module):
    """Depthwise and pointwise convolution with their activations on `separable_conv2d`, x float32.

    The packed weights are buffers, which copy, save, move and compile; it has no parameters. The result is in
    torch.channels_last, which the next one of these takes without a copy.

    Args:
        packed: the weights, by `pack_separable_conv2d`.
        depthwise_bias: (c,); float32.
        bias: (m,); float32.
        stride, dilation: of the depthwise convolution, two ints.
        padding: of it, two or four ints or "same", as `DepthwiseConv2d` has it.
        depthwise_activation, activation: "none", "relu" or "relu6".
    """

    depthwise: Tensor
    pointwise: Tensor
    depthwise_bias: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        packed: PackedSeparableConv2d,
        depthwise_bias: Tensor | None = None,
        bias: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, ...] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        depthwise_activation: str = "none",
        activation: str = "none",
    ) -> None:
        super().__init__()
        self.register_buffer("depthwise", packed.depthwise)
        self.register_buffer("pointwise", packed.pointwise)
        self.register_buffer("depthwise_bias", None if depthwise_bias is None else depthwise_bias.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.out_channels, self.stride, self.padding, self.dilation = packed.out_channels, stride, padding, dilation
        self.depthwise_activation, self.activation = depthwise_activation, activation

    @staticmethod
    def refusal(depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> str | None:
        """Why two convolutions, one behind the other, cannot be one of these; None if they can."""
        c = depthwise.in_channels
        if depthwise.groups != c or depthwise.out_channels != c or depthwise.padding_mode != "zeros":
            return "the first is not depthwise"
        if getattr(depthwise, "activation", "none") != "none":
            return "the first has an activation of its own"
        plain = pointwise.groups == 1 and set(pointwise.kernel_size + pointwise.stride) == {1}
        padded = pointwise.padding not in ((0, 0), "same", "valid")
        if not plain or padded or pointwise.in_channels != c:
            return "the second is not pointwise"
        return None

    @classmethod
    def from_conv2d(
        cls,
        depthwise: nn.Conv2d,
        pointwise: nn.Conv2d,
        depthwise_activation: str = "none",
        activation: str = "none",
    ) -> SeparableConv2d:
        """What two convolutions compute, one behind the other; a hook on them is not taken along.

        Raises:
            ValueError: the first is not depthwise, with as many outputs, or has an activation; the second is not
                pointwise.
        """
        if reason := cls.refusal(depthwise, pointwise):
            raise ValueError(f"SeparableConv2d: must be a depthwise and a pointwise convolution; {reason}")
        first = depthwise if isinstance(depthwise, DepthwiseConv2d) else DepthwiseConv2d.from_conv2d(depthwise)
        (weight, bias), (second, second_bias) = effective(depthwise), effective(pointwise)
        return cls(
            pack_separable_conv2d(weight, second),
            bias,
            second_bias,
            cast("tuple[int, int]", depthwise.stride),
            first.padding,
            cast("tuple[int, int]", depthwise.dilation),
            depthwise_activation,
            activation,
        ).train(depthwise.training)

    def packed(self) -> PackedSeparableConv2d:
        return PackedSeparableConv2d(self.depthwise, self.pointwise, self.out_channels)

    def effective_weights(self) -> tuple[Tensor, Tensor]:
        """(c, 1, kh, kw) and (m, c, 1, 1)."""
        return unpack_separable_conv2d(self.packed())

    def forward(self, input: Tensor) -> Tensor:
        padding = pads(self.padding, input, self.depthwise.shape[:2], self.stride, self.dilation)
        return separable_conv2d(
            input,
            *self.packed(),
            self.depthwise_bias,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.depthwise_activation,
            self.activation,
        )

    def extra_repr(self) -> str:
        kh, kw, c = self.depthwise.shape
        shown = f"{c}, {self.out_channels}, kernel_size=({kh}, {kw}), stride={self.stride}, padding={self.padding}"
        return f"{shown}, depthwise_activation={self.depthwise_activation}, activation={self.activation}"
