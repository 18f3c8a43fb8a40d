"""A linear layer on a packed sparse weight, for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from crest_ext.ops._autocast import register_float32
from crest_ext.ops._grad import refuse_gradients


def sparse_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    rows: Tensor,
    steps: Tensor,
    slices: Tensor,
    out_features: int,
    in_features: int,
    bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Linear layer on a weight packed once by `pack_sparse`: activation(x weight^T + bias). For inference.

        sparse_linear(x, *pack_sparse(weight), bias)

    A call checks shapes, dtypes and devices, but not the indices, which it follows without looking: pack them with
    `pack_sparse`, or call `PackedSparse.check` once on what comes from elsewhere.

    Args:
        x: (..., k); float32. Where it holds a NaN or an infinity, each output of that row is what the dense product
            gives, or what it gives without the terms of some dropped weights (which can only be less NaN). Other rows
            of x never see it.
        values, columns, rows, steps, slices: the packed weight (m, k), see csrc/sparse_linear.h.
        out_features: m.
        in_features: k.
        bias: (m,); float32.
        activation: "none", "relu" or "relu6".

    Returns:
        (..., m); float32. Sums are kept in float32.

    Raises:
        ValueError: a shape, dtype, device or value is not as above; x requires a gradient, and they are enabled.

    Work: 2 n nnz flop. One or two rows of x read 5 bytes a non-zero (3 in half precision), and no more than that
        bounds them; more rows are packed into panels first, and from some 32 on multiply-adds bound them.
    Source: the slices are those of SELL-C-sigma: Kreutzer, Hager, Wellein, Fehske, Bishop, "A Unified Sparse Matrix
        Data Format for Efficient General Sparse Matrix-Vector Multiplication", SIAM J. Sci. Comput. 36 (2014).
    """
    refuse_gradients("sparse_linear", x=x, values=values, bias=bias)
    return torch.ops.crest.sparse_linear(
        x, values, columns, rows, steps, slices, out_features, in_features, bias, activation
    )


@torch.library.register_fake("crest::sparse_linear")
def _fake(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    rows: Tensor,
    steps: Tensor,
    slices: Tensor,
    out_features: int,
    in_features: int,
    bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


register_float32("sparse_linear", 0)
