"""Linear on a packed sparse weight, for inference. Its tensors are buffers: they copy, save, move and compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crest_ext.nn.masked import MaskedLinear
from crest_ext.ops import PackedSparse, pack_sparse, sparse_linear, unpack_sparse

PACKED = ("values", "columns", "rows", "steps", "slices")


class SparseLinear(nn.Module):
    """torch.nn.Linear on a packed weight: activation(x weight^T + bias), x float32. It has no parameters.

    A state_dict holds the packed tensors, and another layer of the same features takes them, however many non-zeros it
    had itself. They are checked then, once: the kernels trust them.

    Args:
        packed: the weight, by `pack_sparse`; checked.
        bias: (m,); float32.
        activation: "none" or "relu".

    Raises:
        ValueError: the packed weight, the bias or the activation is not as above.
    """

    values: Tensor
    columns: Tensor
    rows: Tensor
    steps: Tensor
    slices: Tensor
    bias: Tensor | None

    def __init__(self, packed: PackedSparse, bias: Tensor | None = None, activation: str = "none") -> None:
        super().__init__()
        packed.check()
        if activation not in ("none", "relu"):
            raise ValueError(f"SparseLinear: activation must be none or relu, got {activation}")
        if bias is not None and bias.shape != (packed.out_features,):
            raise ValueError(f"SparseLinear: bias must have shape ({packed.out_features},), got {tuple(bias.shape)}")
        self.out_features, self.in_features, self.activation = packed.out_features, packed.in_features, activation
        for name in PACKED:
            self.register_buffer(name, getattr(packed, name))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

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
        weight: Tensor = linear.effective_weight() if isinstance(linear, MaskedLinear) else linear.weight
        bias = linear.effective_bias() if isinstance(linear, MaskedLinear) else linear.bias
        return cls(pack_sparse(weight, dtype), None if bias is None else bias.float(), activation)

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

    def forward(self, x: Tensor) -> Tensor:
        return sparse_linear(x, *self.packed(), self.bias, self.activation)

    def extra_repr(self) -> str:
        shown = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{shown}, activation={self.activation}, density={self.density:.3f}"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = {name: state_dict[prefix + name] for name in PACKED if prefix + name in state_dict}
        if len(found) == len(PACKED):
            try:
                self.packed()._replace(**found).check()
            except ValueError as error:
                error_msgs.append(f"{prefix.rstrip('.')}: {error}")
                return
            for name, tensor in found.items():
                own: Tensor = getattr(self, name)
                setattr(self, name, torch.empty_like(tensor, device=own.device))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
