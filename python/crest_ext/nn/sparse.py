"""Linear and Conv2d on packed sparse weights, for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crest_ext.nn.masked import MaskedConv2d, MaskedLinear
from crest_ext.nn.packed import Packed
from crest_ext.ops import (
    PackedSparse,
    PackedSparseConv2d,
    pack_sparse,
    pack_sparse_conv2d,
    sparse_conv2d,
    sparse_linear,
    unpack_sparse,
    unpack_sparse_conv2d,
)


class SparseLinear(Packed):
    """torch.nn.Linear on a packed weight: activation(x weight^T + bias), x float32. See `Packed`.

    Args:
        packed: the weight, by `pack_sparse`; checked.
        bias: (m,); float32.
        activation: "none", "relu" or "relu6".

    Raises:
        ValueError: the packed weight, the bias or the activation is not as above.
    """

    tensors = ("values", "columns", "rows", "steps", "slices")
    values: Tensor
    columns: Tensor
    rows: Tensor
    steps: Tensor
    slices: Tensor
    bias: Tensor | None

    def __init__(self, packed: PackedSparse, bias: Tensor | None = None, activation: str = "none") -> None:
        super().__init__(packed, bias, packed.out_features, activation)
        self.out_features, self.in_features = packed.out_features, packed.in_features

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, dtype: torch.dtype = torch.float32, activation: str = "none"
    ) -> SparseLinear:
        """What a Linear or MaskedLinear computes, on the non-zeros of its weight.

        Args:
            linear: not changed; a hook on it is not taken along.
            dtype: of the packed values; half precision takes 3 bytes a non-zero instead of 5, and rounds.
            activation: applied to the result.
        """
        weight, bias = effective(linear)
        return cls(pack_sparse(weight, dtype), bias, activation)

    def packed(self) -> PackedSparse:
        return PackedSparse(
            self.values, self.columns, self.rows, self.steps, self.slices, self.out_features, self.in_features
        )

    def effective_weight(self) -> Tensor:
        """(out_features, in_features), dense."""
        return unpack_sparse(self.packed())

    @property
    def density(self) -> float:
        return int(self.values.count_nonzero()) / max(self.out_features * self.in_features, 1)

    def forward(self, input: Tensor) -> Tensor:
        own: Any = self._buffers  # where nn.Module looks for attributes at last; they took as long as a small layer
        values, columns, rows, steps, slices = [own[name] for name in self.tensors]
        m, k = self.out_features, self.in_features
        return sparse_linear(input, values, columns, rows, steps, slices, m, k, own["bias"], self.activation)

    def extra_repr(self) -> str:
        shown = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{shown}, activation={self.activation}, density={self.density:.3f}"


class SparseConv2d(Packed):
    """torch.nn.Conv2d, with zero padding, on a packed weight: activation(conv2d(x, weight) + bias), x float32.

    See `Packed`. A second argument is added before the activation.

    Args:
        packed: the weight, by `pack_sparse_conv2d`; checked.
        bias: (m,); float32.
        stride, padding, dilation: rows and columns.
        groups: of channels and filters.
        activation: "none", "relu" or "relu6".

    Raises:
        ValueError: the packed weight, the bias or the activation is not as above.
    """

    tensors = ("values", "columns", "starts")
    values: Tensor
    columns: Tensor
    starts: Tensor
    bias: Tensor | None

    def __init__(
        self,
        packed: PackedSparseConv2d,
        bias: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        activation: str = "none",
    ) -> None:
        super().__init__(packed, bias, packed.weight_shape[0], activation)
        self.weight_shape, self.stride, self.padding = tuple(packed.weight_shape), stride, padding
        self.dilation, self.groups = dilation, groups

    @staticmethod
    def refusal(conv: nn.Conv2d) -> str | None:
        """Why a Conv2d cannot be one of these; None if it can."""
        if conv.padding_mode != "zeros":
            return f"pads with {conv.padding_mode}"
        if isinstance(conv.padding, str) and conv.padding != "valid" and _same(conv) is None:
            return "pads one side more than the other"
        return None

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, dtype: torch.dtype = torch.float32, activation: str = "none") -> SparseConv2d:
        """What a Conv2d or MaskedConv2d computes, on the non-zeros of its weight.

        Args:
            conv: not changed; a hook on it is not taken along.
            dtype: of the packed values; half precision takes 3 bytes a non-zero instead of 5, and rounds.
            activation: applied to the result.

        Raises:
            ValueError: it pads with anything but zeros, or one side more than the other.
        """
        if reason := cls.refusal(conv):
            raise ValueError(f"SparseConv2d: conv must pad with zeros, as much on each side; it {reason}")
        weight, bias = effective(conv)
        padding = conv.padding
        if isinstance(padding, str):
            padding = _same(conv) or (0, 0)
        return cls(
            pack_sparse_conv2d(weight, dtype),
            bias,
            _pair(conv.stride),
            _pair(padding),
            _pair(conv.dilation),
            conv.groups,
            activation,
        )

    def packed(self) -> PackedSparseConv2d:
        return PackedSparseConv2d(self.values, self.columns, self.starts, self.weight_shape)

    def effective_weight(self) -> Tensor:
        """(m, c / groups, kh, kw), dense."""
        return unpack_sparse_conv2d(self.packed())

    @property
    def density(self) -> float:
        m, c, kh, kw = self.weight_shape
        return int(self.values.count_nonzero()) / (m * c * kh * kw)

    def forward(self, input: Tensor, addend: Tensor | None = None) -> Tensor:
        """addend is of the result's shape, or either is one image for all of the other; added before the activation."""
        if addend is not None and len(addend) != len(input):
            n = max(len(addend), len(input))
            input, addend = input.expand(n, -1, -1, -1), addend.expand(n, -1, -1, -1)
        own: Any = self._buffers  # as above
        values, columns, starts = [own[name] for name in self.tensors]
        where = (self.stride, self.padding, self.dilation, self.groups, self.activation)
        return sparse_conv2d(input, values, columns, starts, self.weight_shape, own["bias"], *where, addend)

    def extra_repr(self) -> str:
        shown = f"weight_shape={self.weight_shape}, stride={self.stride}, padding={self.padding}"
        shown += f", dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        return f"{shown}, activation={self.activation}, density={self.density:.3f}"


def effective(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as they act."""
    weight, bias = layer.weight, layer.bias
    if isinstance(layer, (MaskedLinear, MaskedConv2d)):
        weight, bias = layer.effective_weight(), layer.effective_bias()
    return weight, None if bias is None else bias.float()


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]


def _same(conv: nn.Conv2d) -> tuple[int, int] | None:
    """The padding "same" of a Conv2d; None unless it is as much on each side, or padding is "valid"."""
    if conv.padding != "same":
        return None
    reach = [(k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    return None if any(r % 2 for r in reach) else (reach[0] // 2, reach[1] // 2)
