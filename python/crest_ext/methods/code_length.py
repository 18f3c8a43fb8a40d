"""How many bits the container's coder (csrc/codec) needs, estimated while the weights still change.

The coder stores where a tensor is not 0, by classes of rows and columns of about the same density, and then which of
few values stands there, by frequency. Here the rows and columns have densities of their own, and nothing is rounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

VALUE_BITS = 36.0  # of one more value in a file: the word itself, and 4 bits of its frequency
FEWEST = 4  # rows and columns from which on the coder looks at their densities


def value_bits(counts: Tensor) -> Tensor:
    """(levels,) float64: bits of each value among the weights that are not 0.

    Args:
        counts: (levels,) how many weights have it; at least 1 each.
    """
    return (counts.sum() / counts.double()).log2()


class Occupancy:
    """How likely a weight is not 0, by its row and its column.

    The log-odds of a place are those of its row and of its column, less those of the whole tensor.

    Args:
        rows: (n,) int64, of the weights that are not 0.
        columns: (n,) int64.
        shape: (m, k) of the whole tensor.
    """

    def __init__(self, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> None:
        m, k = shape
        density = torch.tensor((len(rows) + 0.5) / (m * k + 1), dtype=torch.float64, device=rows.device)
        self.whole = density.logit()
        self.rows, self.columns = self.whole.expand(m), self.whole.expand(k)
        if min(m, k) >= FEWEST:
            # As if one more weight were spread over all places: an empty row is dear to enter, but not forbidden.
            self.rows = ((rows.bincount(minlength=m) + 1) / (k + 1 / density)).logit()
            self.columns = ((columns.bincount(minlength=k) + 1) / (m + 1 / density)).logit()

    def kept_bits(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(n,) float64: how many bits more it takes to say that these are not 0 than that they are."""
        return (self.whole - self.rows[rows] - self.columns[columns]) / math.log(2)

    def total_bits(self, rows: Tensor, columns: Tensor) -> float:
        """Bits to say where the tensor is 0 and where, here, it is not."""
        all_zero = F.softplus(self.rows[:, None] + self.columns - self.whole).sum().item() / math.log(2)
        return all_zero + self.kept_bits(rows, columns).sum().item()
