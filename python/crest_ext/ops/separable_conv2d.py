"""A depthwise and a pointwise convolution in one pass, for inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crest_ext.ops._autocast import register_float32
from crest_ext.ops._grad import refuse_gradients
from crest_ext.ops.depthwise_conv2d import Ints, out_size, pair


def separable_conv2d(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    out_channels: int,
    depthwise_bias: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    depthwise_activation: str = "none",
    activation: str = "none",
) -> Tensor:
    """Depthwise convolution, bias, activation, pointwise convolution, bias and activation in one pass. For inference.

        separable_conv2d(x, *pack_separable_conv2d(depthwise_weight, pointwise_weight), padding=1)

    What the depthwise convolution gives for some rows is multiplied while it is in cache, and never written to memory.
    A BatchNorm behind either is folded into its weight and bias beforehand.

    Args:
        x: (n, c, h, w); float32; in torch.channels_last, or else it is copied to that.
        depthwise, pointwise, out_channels: the weights (c, 1, kh, kw) and (m, c, 1, 1), packed by
            `pack_separable_conv2d`.
        depthwise_bias: (c,); float32.
        bias: (m,); float32.
        stride, padding, dilation: of the depthwise convolution, as in `depthwise_conv2d`.
        depthwise_activation, activation: "none", "relu" or "relu6", behind the one and the other.

    Returns:
        (n, m, out_h, out_w) of `depthwise_conv2d`; float32, in torch.channels_last. Sums are kept in float32.

    Raises:
        ValueError: a shape, dtype, device or value is not as above, or the kernel does not fit in the padded image; x
            requires a gradient, and they are enabled.

    Work: 2 n out_h out_w c (kh kw + m) flop; reads x and writes the result once.
    Source: Howard et al., "MobileNets: Efficient CNNs for Mobile Vision Applications", 2017, section 3.1.
    """
    refuse_gradients(
        "separable_conv2d", x=x, depthwise=depthwise, pointwise=pointwise, depthwise_bias=depthwise_bias, bias=bias
    )
    return torch.ops.crest.separable_conv2d(
        x,
        depthwise,
        pointwise,
        out_channels,
        depthwise_bias,
        bias,
        pair(stride),
        pair(padding),
        pair(dilation),
        depthwise_activation,
        activation,
    )


@torch.library.register_fake("crest::separable_conv2d")
def _fake(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    out_channels: int,
    depthwise_bias: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    depthwise_activation: str = "none",
    activation: str = "none",
) -> Tensor:
    out = out_size(x.shape[2:], depthwise.shape[:2], stride, padding, dilation)
    return x.new_empty((x.shape[0], out_channels, *out)).to(memory_format=torch.channels_last)


register_float32("separable_conv2d", 0)
