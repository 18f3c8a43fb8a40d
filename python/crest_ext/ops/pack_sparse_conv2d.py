"""A sparse weight, packed once for sparse_conv2d. csrc/sparse_conv2d.h describes the layout."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crest_ext.ops.pack_sparse import TILE, VALUES


class PackedSparseConv2d(NamedTuple):
    """A packed weight (m, c / groups, kh, kw): the arguments of `sparse_conv2d` after x, in their order."""

    values: Tensor
    columns: Tensor
    starts: Tensor
    weight_shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self[:3])

    def check(self) -> None:
        """Whether the kernels may trust these tensors: they follow the indices without looking.

        What `pack_sparse_conv2d` returns is right; call this once for tensors from anywhere else. `nn.SparseConv2d`
        does, when it is constructed and when it loads a state.

        Raises:
            ValueError: a dtype, a shape or an index is not as csrc/sparse_conv2d.h says.
        """
        shape = self.weight_shape
        _require(len(shape) == 4 and min(shape) > 0, f"weight_shape must be 4 positive numbers, got {tuple(shape)}")
        m, k = shape[0], math.prod(shape[1:])
        nnz = self.values.shape[:1].numel()
        sizes = {"values": (nnz,), "columns": (nnz,), "starts": (-(-k // TILE) * m + 1,)}
        for name, size in sizes.items():
            tensor: Tensor = getattr(self, name)
            _require(tensor.shape == size, f"{name} must have shape {size}, got {tuple(tensor.shape)}")
        _require(self.values.dtype in VALUES, f"values must be float32, bfloat16 or float16, got {self.values.dtype}")
        _require(self.columns.dtype == torch.uint8, f"columns must be torch.uint8, got {self.columns.dtype}")
        _require(self.starts.dtype == torch.int32, f"starts must be torch.int32, got {self.starts.dtype}")
        starts = self.starts.long()
        ascend = starts[0] == 0 and starts[-1] == nnz and (starts.diff() >= 0).all()
        _require(bool(ascend), f"starts must ascend from 0 to {nnz}")
        _require(not (starts.diff() > TILE).any(), f"starts must give a cell at most {TILE} non-zeros")
        width = (k - _cells(self) // m * TILE).clamp(max=TILE)
        _require(not (self.columns.long() >= width).any(), "columns must lie within their tiles")
        rises = self.columns.long().diff() > 0
        begins = starts[1:-1]
        rises[begins[(begins > 0) & (begins < nnz)] - 1] = True  # the first of a cell
        _require(bool(rises.all()), "columns must ascend within a cell")


def pack_sparse_conv2d(weight: Tensor, dtype: torch.dtype = torch.float32) -> PackedSparseConv2d:
    """Pack the non-zeros of a weight for `sparse_conv2d`. The result depends on the weight alone.

    Args:
        weight: (m, c / groups, kh, kw); floating. -0.0 and what rounds to zero in `dtype` are zeros; a NaN is not.
        dtype: of the packed values: float32, bfloat16 or float16. Half precision is 3 bytes a non-zero instead of 5.

    Raises:
        ValueError: a rank, a size or a dtype is not as above.
    """
    what = "pack_sparse_conv2d"
    _require(weight.dim() == 4, f"weight must have 4 dimensions, got {tuple(weight.shape)}", what)
    _require(weight.numel() > 0, f"weight must not be empty, got {tuple(weight.shape)}", what)
    _require(weight.is_floating_point(), f"weight must be floating, got {weight.dtype}", what)
    _require(dtype in VALUES, f"dtype must be float32, bfloat16 or float16, got {dtype}", what)
    rows = weight.detach().to(dtype).flatten(1)
    m, k = rows.shape
    cells = F.pad(rows, (0, -k % TILE)).view(m, -1, TILE).transpose(0, 1)  # (tiles, m, TILE)
    kept = cells != 0
    starts = F.pad(kept.sum(-1).flatten().cumsum(0), (1, 0)).int()
    return PackedSparseConv2d(cells[kept], kept.nonzero()[:, 2].byte(), starts, tuple(weight.shape))


def unpack_sparse_conv2d(packed: PackedSparseConv2d) -> Tensor:
    """The weight (m, c / groups, kh, kw) that was packed, in the dtype of its values."""
    m, k = packed.weight_shape[0], math.prod(packed.weight_shape[1:])
    cells = _cells(packed)
    at = (cells % m, cells // m * TILE + packed.columns.long())
    weight = packed.values.new_zeros(m, k).index_put_(at, packed.values, accumulate=True)
    return weight.view(packed.weight_shape)


def _require(holds: bool, rule: str, what: str = "PackedSparseConv2d") -> None:
    if not holds:
        raise ValueError(f"{what}: {rule}")


def _cells(packed: PackedSparseConv2d) -> Tensor:
    """The cell of each non-zero."""
    counts = packed.starts.long().diff()
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
