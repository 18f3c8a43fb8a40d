"""One tensor with few values: which value each weight takes, and where the values lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crest_ext.methods.code_length import VALUE_BITS, Occupancy, value_bits


def nearest(weights: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
    """(n,) int64: for each weight w, the place of the value c that makes (w - c)^2 + offset least.

    Between two values that is a comparison of w with one bound, so all values together are a sorted list of bounds.

    Args:
        weights: (n,) float64.
        values: (levels,) float64, ascending and different; at least one.
        offsets: (levels,) float64, finite.
    """
    centres, heights = values.tolist(), (values * values + offsets).tolist()
    chosen, lows = [0], [-math.inf]  # values that are nearest somewhere, and from where on
    for k in range(1, len(centres)):
        while True:  # the first is never taken back: far to the left it is the nearest
            low = (heights[k] - heights[chosen[-1]]) / (2 * (centres[k] - centres[chosen[-1]]))
            if low > lows[-1]:
                break
            chosen.pop()
            lows.pop()
        chosen.append(k)
        lows.append(low)
    bounds = torch.tensor(lows[1:], dtype=torch.float64, device=weights.device)
    return torch.tensor(chosen, device=weights.device)[torch.bucketize(weights, bounds)]


class Codebook:
    """The values of a tensor and the one that each of its weights takes: entropy-constrained scalar quantisation.

    A weight w takes the value c, or 0, that makes (w - c)^2 + price * bits(c) least; a value is the mean of its
    weights. Weights that are 0 at the start stay 0. The k-means of Deep Compression is the case of price 0.

    Source: Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", IEEE Trans. ASSP 37(1), 1989.

    Args:
        tensor: (m, ...) the weights; a vector is one row.
        levels: values to start with, beside 0.

    Attributes:
        shape: (m, k) of the tensor as the coder sees it.
        places: (n,) int64, where in the flat tensor a weight may be other than 0.
        latent: (n,) float64, the weights themselves, which training moves.
        index: (n,) int64; 0 for 0, i for values[i - 1].
        values: (levels,) float64, ascending, different, not 0 and in bfloat16's precision.
        unit: mean square of the weights at the start.
    """

    STATE = ("places", "latent", "index", "values", "unit")

    def __init__(self, tensor: Tensor, levels: int) -> None:
        flat = tensor.reshape(-1)
        self.shape = (len(tensor), flat.numel() // len(tensor)) if tensor.dim() > 1 else (1, flat.numel())
        self.places = flat.nonzero().flatten()
        self.latent = flat[self.places].double()
        self.unit = self.latent.square().mean() if len(self.latent) else self.latent.new_ones(())
        # Evenly from the smallest to the largest: k-means from there keeps the rare large weights (Deep Compression,
        # section 3.2).
        ends = (self.latent.min().item(), self.latent.max().item()) if len(self.latent) else (0.0, 0.0)
        self.values = _tidy(torch.linspace(*ends, levels, dtype=torch.float64, device=flat.device))
        self.index = torch.zeros_like(self.places)
        if len(self.values):
            self.index = nearest(self.latent, self.values, torch.zeros_like(self.values)) + 1
        self.average()

    @property
    def counts(self) -> Tensor:
        """(levels,) int64: how many weights take each value."""
        return self.index.bincount(minlength=len(self.values) + 1)[1:]

    def quantised(self) -> Tensor:
        """(n,) float64: what stands for the latent weights."""
        return _with_zero(self.values)[self.index]

    def assign(self, price: float) -> None:
        """Choose a value for each weight, by what the choice of now says about bits.

        Args:
            price: of a bit, in units of `unit`.
        """
        if not len(self.values):
            return
        price *= self.unit.item()
        (rows, columns), kept, bits = self._rows_columns(self.places), self.index > 0, value_bits(self.counts)
        kept_bits = Occupancy(rows[kept], columns[kept], self.shape).kept_bits(rows, columns)
        self.index, _ = _cheapest(self.latent, self.values, price, bits, kept_bits)
        rarest = int(self.counts.argmin())
        few = self.index == rarest + 1
        _, now = _cheapest(self.latent[few], self.values, price, bits, kept_bits[few])
        others = torch.arange(len(self.values), device=few.device) != rarest
        index, then = _cheapest(self.latent[few], self.values[others], price, bits[others], kept_bits[few])
        if (then - now).sum() <= price * VALUE_BITS:  # the value does not pay for its place in the file
            self.index -= (self.index > rarest).long()
            self.index[few] = index
            self.values = self.values[others]

    def average(self) -> None:
        """Move each value to the mean of its weights. Those without weights go, and those that meet become one."""
        counts = self.counts
        sums = self.index.bincount(self.latent, len(counts) + 1)[1:]
        means = _rounded(torch.where(counts > 0, sums / counts.clamp(min=1), 0))
        self.values = _tidy(means)
        place = torch.where(means != 0, torch.searchsorted(self.values, means) + 1, 0)
        self.index = _with_zero(place)[self.index]

    def bits(self) -> float:
        """An estimate of the tensor's bits in a file."""
        rows, columns = self._rows_columns(self.places[self.index > 0])
        m, k = self.shape
        where = Occupancy(rows, columns, self.shape).total_bits(rows, columns) if len(rows) < m * k else 0.0
        counts = self.counts
        return where + (counts * value_bits(counts)).sum().item() + VALUE_BITS * len(counts)

    def _rows_columns(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return places // self.shape[1], places % self.shape[1]


def _cheapest(w: Tensor, values: Tensor, price: float, bits: Tensor, kept_bits: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) each: the index of the cheapest of the values and 0 for the weights w, and its cost.

    Args:
        price: of a bit, in squared distance.
        bits: (levels,) of each value.
        kept_bits: (n,) of being a value and not 0.
    """
    if not len(values):
        return torch.zeros(len(w), dtype=torch.int64, device=w.device), w.square()
    best = nearest(w, values, price * bits)
    cost = (w - values[best]).square() + price * (bits[best] + kept_bits)
    return torch.where(w.square() <= cost, 0, best + 1), torch.minimum(w.square(), cost)


def _with_zero(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values])


def _rounded(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).double()


def _tidy(values: Tensor) -> Tensor:
    """Ascending, different and not 0, in a precision that takes two bytes."""
    values = _rounded(values).unique()
    return values[values != 0]
