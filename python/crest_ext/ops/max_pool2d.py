"""The largest of each window, for inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crest_ext.ops._grad import refuse_gradients
from crest_ext.ops.depthwise_conv2d import Ints, pair


def max_pool2d(
    x: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest number of each window, NaN where one is. For inference.

    As torch.nn.functional.max_pool2d, which goes through each window number by number on the CPU.

    Args:
        x: (n, c, h, w); float32.
        kernel_size, stride, padding, dilation: one number, or two for height and width; stride is kernel_size if None,
            padding at most half of kernel_size. What is padded never wins.
        ceil_mode: whether a last window may begin inside x or its padding and end beyond.

    Returns:
        (n, c, out_h, out_w), contiguous.

    Raises:
        ValueError: a shape, dtype or value is not as above; x requires a gradient, and they are enabled.

    Work: reads x once, or as often as rows of windows overlap, writes y once; kh + kw comparisons a window and lane.
    """
    refuse_gradients("max_pool2d", x=x)
    kernel = pair(kernel_size)
    step = kernel if stride is None else pair(stride)
    return torch.ops.crest.max_pool2d(x, kernel, step, pair(padding), pair(dilation), ceil_mode)


@torch.library.register_fake("crest::max_pool2d")
def _fake(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    sizes = []
    for size, kernel, step, pad, apart in zip(x.shape[2:], kernel_size, stride, padding, dilation, strict=True):
        room = size + 2 * pad - apart * (kernel - 1) - 1
        windows = (room + (step - 1 if ceil_mode else 0)) // step + 1
        sizes.append(windows - 1 if ceil_mode and (windows - 1) * step >= size + pad else windows)
    return x.new_empty((*x.shape[:2], *sizes))
