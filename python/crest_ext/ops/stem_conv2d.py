"""The convolution that a network begins with, for inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crest_ext.ops._autocast import register_float32
from crest_ext.ops._grad import refuse_gradients
from crest_ext.ops.depthwise_conv2d import Ints, out_size, pair


def stem_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    activation: str = "none",
    channels_last: bool = True,
) -> Tensor:
    """Convolution of an image with few channels, padding, bias and activation in one pass. For inference.

    F.conv2d(x, weight, bias, ..., groups=1), activated.

    Args:
        x: (n, c, h, w); float32; with any strides. c is meant to be 3 or so: it may be larger, but then is slow.
        weight: (m, c, kh, kw); float32.
        bias: (m,); float32.
        stride, padding, dilation, activation: as in `depthwise_conv2d`.
        channels_last: give a result that has its channels last, as `separable_conv2d` takes them without a copy.

    Returns:
        (n, m, out_h, out_w) of `depthwise_conv2d`; float32, in torch.channels_last or contiguous. Sums are kept
        in float32.

    Raises:
        ValueError: a shape, dtype, device or value is not as above, or the kernel does not fit in the padded image; x
            or the weight requires a gradient, and they are enabled.

    Work: 2 n m out_h out_w c kh kw flop; reads x kh / stride times, from cache, and writes the result once.
    Source: Howard et al., "MobileNets: Efficient CNNs for Mobile Vision Applications", 2017, table 1, the first row.
    """
    refuse_gradients("stem_conv2d", x=x, weight=weight, bias=bias)
    return torch.ops.crest.stem_conv2d(
        x, weight, bias, pair(stride), pair(padding), pair(dilation), activation, channels_last
    )


@torch.library.register_fake("crest::stem_conv2d")
def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    activation: str = "none",
    channels_last: bool = True,
) -> Tensor:
    out = out_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    y = x.new_empty((x.shape[0], weight.shape[0], *out))
    return y.to(memory_format=torch.channels_last) if channels_last else y


register_float32("stem_conv2d", 0)
