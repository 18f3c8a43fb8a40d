"""A sparse weight, packed once for sparse_linear. csrc/sparse_linear.h describes the layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SLICE, TILE, MOST_BLOCK = 16, 128, 256
VALUES = (torch.float32, torch.bfloat16, torch.float16)


class PackedSparse(NamedTuple):
    """A packed weight (m, k): the arguments of `sparse_linear` after x, in their order."""

    values: Tensor
    columns: Tensor
    rows: Tensor
    steps: Tensor
    slices: Tensor
    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self[:5])

    def check(self) -> None:
        """Whether the kernels may trust these tensors: they follow the indices without looking.

        What `pack_sparse` returns is right; call this once for tensors from anywhere else. `nn.SparseLinear` does,
        when it is constructed and when it loads a state.

        Raises:
            ValueError: a dtype, a shape or an index is not as csrc/sparse_linear.h says.
        """
        steps, slices = self.values.shape[:1].numel(), self.rows.shape[:1].numel()
        blocks, height, tiles = _grid(self.out_features, self.in_features)
        shapes: dict[str, tuple[int, ...]]
        shapes = {"values": (steps, SLICE), "columns": (steps, SLICE), "rows": (slices, SLICE)}
        shapes |= {"steps": (slices + 1,), "slices": (blocks * tiles + 1,)}
        for name, shape in shapes.items():
            tensor: Tensor = getattr(self, name)
            _require(tensor.shape == shape, f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        _require(self.values.dtype in VALUES, f"values must be float32, bfloat16 or float16, got {self.values.dtype}")
        for name in ("columns", "rows", "steps", "slices"):
            wanted, dtype = torch.uint8 if name in ("columns", "rows") else torch.int32, getattr(self, name).dtype
            _require(dtype == wanted, f"{name} must be {wanted}, got {dtype}")
        for name, end in (("steps", steps), ("slices", slices)):
            offsets = getattr(self, name).long()
            ascend = offsets[0] == 0 and offsets[-1] == end and (offsets.diff() >= 0).all()
            _require(bool(ascend), f"{name} must ascend from 0 to {end}")
        _require(not (self.steps.diff() > TILE).any(), f"steps must be at most {TILE} in a slice")
        cells, rows, columns = _cells(self), self.rows.long(), self.columns.long()
        _require(not (rows >= height).any(), f"rows must be below {height}")
        places = (cells[:, None] * MOST_BLOCK + rows).flatten()
        _require(places.unique().numel() == places.numel(), "rows must not repeat one within a cell")
        width = (self.in_features - cells % max(tiles, 1) * TILE).clamp(max=TILE)
        _require(not (columns >= _per_step(self, width)[:, None]).any(), "columns must lie within their tiles")


def pack_sparse(weight: Tensor, dtype: torch.dtype = torch.float32) -> PackedSparse:
    """Pack the non-zeros of a weight for `sparse_linear`. The result depends on the weight alone.

    Args:
        weight: (m, k); floating. -0.0 and what rounds to zero in `dtype` are zeros; a NaN is not.
        dtype: of the packed values: float32, bfloat16 or float16. Half precision is 3 bytes a non-zero instead of 5.

    Raises:
        ValueError: a rank or dtype is not as above.
    """
    _require(weight.dim() == 2, f"weight must have 2 dimensions, got {tuple(weight.shape)}", "pack_sparse")
    _require(weight.is_floating_point(), f"weight must be floating, got {weight.dtype}", "pack_sparse")
    _require(dtype in VALUES, f"dtype must be float32, bfloat16 or float16, got {dtype}", "pack_sparse")
    m, k = weight.shape
    blocks = [pack_block(weight[begin:end], m, dtype) for begin, end in blocks_of_rows(m)]
    return join_blocks(blocks, m, k, dtype, weight.device)


class PackedBlock(NamedTuple):
    """Some rows of a packed weight, with sizes where `PackedSparse` has offsets."""

    values: Tensor
    columns: Tensor
    rows: Tensor
    steps: Tensor
    slices: Tensor


def blocks_of_rows(m: int) -> list[tuple[int, int]]:
    """The first row and the end of each block, which is packed by itself."""
    blocks, height, _ = _grid(m, 0)
    return [(block * height, min((block + 1) * height, m)) for block in range(blocks)]


def pack_block(weight: Tensor, m: int, dtype: torch.dtype) -> PackedBlock:
    """One of `blocks_of_rows(m)`. Memory in proportion to the block's elements is needed here, and nowhere else."""
    _, height, tiles = _grid(m, weight.shape[1])
    dense = weight.detach().to("cpu", dtype)
    pad = (0, tiles * TILE - dense.shape[1], 0, height - dense.shape[0])
    kept = F.pad(dense != 0, pad).view(height, tiles, TILE)

    # Each cell's rows by their non-zeros, the most first, and sixteen of them a slice: (tiles, height / 16).
    counts = kept.sum(-1)
    order = counts.t().argsort(dim=-1, descending=True, stable=True)
    length = counts.t().gather(-1, order)[..., ::SLICE]
    there = length > 0
    rows = order.view(tiles, height // SLICE, SLICE)[there]
    first = torch.zeros_like(length)
    first[there] = _offsets(length[there])[:-1]

    # Each non-zero's place; in the order of `nonzero`, those of one row and tile are neighbours.
    row, tile, column = kept.nonzero(as_tuple=True)
    per_row = counts.flatten()
    nth = torch.arange(len(row)) - (per_row.cumsum(0) - per_row).repeat_interleave(per_row)
    rank = order.argsort(-1)[tile, row]
    place = (first[tile, rank // SLICE] + nth) * SLICE + rank % SLICE

    values = torch.zeros(int(length.sum()), SLICE, dtype=dtype)
    values.view(-1)[place] = dense[row, tile * TILE + column]
    # Padding is 0 times a column that the row dropped: a NaN there would be one in a dense product as well.
    dropped = F.pad(dense != 0, pad, value=True).view_as(kept).byte().argmin(-1).t().gather(-1, order)
    columns = dropped.view(tiles, height // SLICE, SLICE)[there].repeat_interleave(length[there], 0).byte()
    columns.view(-1)[place] = column.byte()
    return PackedBlock(values, columns, rows.byte(), length[there], there.sum(-1))


def join_blocks(blocks: list[PackedBlock], m: int, k: int, dtype: torch.dtype, device: torch.device) -> PackedSparse:
    """All blocks of a weight (m, k), in their order."""
    empty, none = torch.zeros(0, SLICE, dtype=torch.uint8), torch.zeros(0, dtype=torch.long)
    blocks = [PackedBlock(empty.to(dtype), empty, empty, none, none), *blocks]
    values, columns, rows, steps, slices = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    offsets = [_offsets(counts).int().to(device) for counts in (steps, slices)]
    return PackedSparse(values.to(device), columns.to(device), rows.to(device), offsets[0], offsets[1], m, k)


def unpack_sparse(packed: PackedSparse) -> Tensor:
    """The weight (m, k) that was packed, in the dtype of its values."""
    blocks, height, tiles = _grid(packed.out_features, packed.in_features)
    cells, rows = _cells(packed), packed.rows.long()
    row = _per_step(packed, cells[:, None] // max(tiles, 1) * height + rows)
    column = _per_step(packed, cells % max(tiles, 1) * TILE)[:, None] + packed.columns.long()
    weight = packed.values.new_zeros(blocks * height, packed.in_features)
    return weight.index_put_((row, column), packed.values, accumulate=True)[: packed.out_features]


def _require(holds: bool, rule: str, what: str = "PackedSparse") -> None:
    if not holds:
        raise ValueError(f"{what}: {rule}")


def _grid(m: int, k: int) -> tuple[int, int, int]:
    """Blocks, the height of each, and tiles."""
    blocks = _ceil_div(m, MOST_BLOCK)
    height = _ceil_div(_ceil_div(m, blocks), SLICE) * SLICE if blocks else 0
    return blocks, height, _ceil_div(k, TILE)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _offsets(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0))


def _cells(packed: PackedSparse) -> Tensor:
    """The cell of each slice."""
    counts = packed.slices.long().diff()
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def _per_step(packed: PackedSparse, of_slices: Tensor) -> Tensor:
    return of_slices.repeat_interleave(packed.steps.long().diff(), 0)
