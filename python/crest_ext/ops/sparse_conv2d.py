"""A 2d convolution with a packed sparse weight, for inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crest_ext.ops._autocast import register_float32
from crest_ext.ops._grad import refuse_gradients
from crest_ext.ops.depthwise_conv2d import Ints, pair


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    weight_shape: Sequence[int],
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    activation: str = "none",
    addend: Tensor | None = None,
) -> Tensor:
    """Convolution by a weight packed once by `pack_sparse_conv2d`, for inference.

        sparse_conv2d(x, *pack_sparse_conv2d(weight), bias, padding=1)

    It gives activation(conv2d(x, weight) + bias + addend).

    A call checks shapes, dtypes and devices, but not the indices, which it follows without looking: pack them with
    `pack_sparse_conv2d`, or call `PackedSparseConv2d.check` once on what comes from elsewhere.

    Args:
        x: (n, c, h, w); float32. A dropped weight never meets it: a NaN or an infinity in x reaches exactly the
            outputs that a kept weight connects to it, where the dense convolution's 0 * NaN reaches more of them.
        values, columns, starts: the packed weight, see csrc/sparse_conv2d.h.
        weight_shape: (m, c / groups, kh, kw).
        bias: (m,); float32.
        stride, padding, dilation: one number, or one for the rows and one for the columns. Padding is with zeros.
        groups: of channels and filters, as in torch.nn.functional.conv2d.
        activation: "none", "relu" or "relu6".
        addend: (n, m, oh, ow); float32. What the branch beside a residual one gives.

    Returns:
        (n, m, oh, ow); float32. Sums are kept in float32.

    Raises:
        ValueError: a shape, dtype, device or value is not as above; x or addend requires a gradient, and they are
            enabled.

    Work: 2 n oh ow nnz flop. x is padded once a call, and nothing is unrolled (im2col).
    Source: direct sparse convolution: Park, Li, Wen, Tang, Li, Chen, Dubey, "Faster CNNs with Direct Sparse
        Convolutions and Guided Pruning", ICLR 2017, section 2.1.
    """
    refuse_gradients("sparse_conv2d", x=x, values=values, bias=bias, addend=addend)
    return torch.ops.crest.sparse_conv2d(
        x,
        values,
        columns,
        starts,
        weight_shape,
        bias,
        pair(stride),
        pair(padding),
        pair(dilation),
        groups,
        activation,
        addend,
    )


@torch.library.register_fake("crest::sparse_conv2d")
def _fake(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    starts: Tensor,
    weight_shape: Sequence[int],
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    addend: Tensor | None = None,
) -> Tensor:
    n, _, *size = x.shape
    m, _, *kernel = weight_shape
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    out = [(s + 2 * p - r) // t + 1 for s, p, r, t in zip(size, padding, reach, stride, strict=True)]
    return x.new_empty((n, m, *out))


register_float32("sparse_conv2d", 0, 11)
