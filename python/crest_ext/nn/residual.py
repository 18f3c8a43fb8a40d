"""Two paths of layers whose results are added."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from crest_ext.nn.sparse import SparseConv2d


class Residual(nn.Module):
    """A block of a residual network for inference: last(inner(x)) + other(x), and then the activation of `last`.

    Args:
        inner: layers one after another, by name; none for x itself.
        last: of the same path; adds what the other gives.
        other: as `inner`.
    """

    def __init__(self, inner: Mapping[str, nn.Module], last: SparseConv2d, other: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.inner, self.last, self.other = nn.Sequential(OrderedDict(inner)), last, nn.Sequential(OrderedDict(other))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.inner(x), self.other(x))
        return result
