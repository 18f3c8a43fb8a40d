"""Which channels of a network can go: the part of `shrink` that decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Use:
    """The one call of a layer; n outputs, c inputs, g groups."""

    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    groups: int
    ins: Tensor  # (c,); ids
    outs: Tensor  # (n,); ids
    value: Tensor  # (c,); of an input that is one value, whatever the model's, and folds into the bias; or NaN
    constant: Tensor  # (n,); bool: the output is one value, whatever the model's input
    nonzero: Tensor  # (g, n / g, c / g); bool: the output reads the input
    empty: bool = False  # the layer goes, and constants stand in its place

    def stay(self, live: Tensor) -> tuple[Tensor, Tensor]:
        """(g, c / g) and (g, n / g): the inputs and outputs that stay."""
        return live[self.ins].view(self.groups, -1), live[self.outs].view(self.groups, -1)

    def needs(self, live: Tensor) -> Tensor:
        """Ids of the inputs that are read by outputs that stay, and cannot be folded."""
        if self.empty:
            return self.ins[:0]
        _, outs = self.stay(live)
        return self.ins[(self.nonzero & outs.unsqueeze(2)).any(1).flatten() & self.value.isnan()]

    def lacks(self, live: Tensor, round_to: int | None) -> tuple[Tensor, str] | None:
        """Ids to keep as well, and why: for one output, equal groups, and a multiple of round_to outputs."""
        ins, outs = self.stay(live)
        if self.empty:
            return None if outs.any() else (self.outs[:1], "one must stay")
        groups = ins.any(1) | outs.any(1)
        g, c, n = (max(int(count), 1) for count in (groups.sum(), ins.sum(1).max(), outs.sum(1).max()))
        why = "groups are of equal size" if ins.any() and outs.any() else "one must stay"
        while round_to and g * n % round_to and (n < outs.shape[1] or g < self.groups):
            n, g = (n + 1, g) if n < outs.shape[1] else (n, g + 1)
            why = f"they make a multiple of {round_to}"
        groups = _fill(groups, torch.zeros(self.groups, dtype=torch.long), g)
        more_ins = _fill(ins, self.nonzero.sum(1), c) & groups[:, None] & ~ins
        more_outs = _fill(outs, self.nonzero.sum(2), n) & groups[:, None] & ~outs
        ids = torch.cat([self.ins[more_ins.flatten()], self.outs[more_outs.flatten()]])
        return (ids, why) if len(ids) else None


class Channels:
    """The channels of a network by id, one for what stays or goes as one, and what is known of them.

    Attributes:
        uses: the layers that can be cut, in the order they run.
        by_channel: modules with a parameter a channel, and the ids.
        branches: whether some of these run in training only.
        pinned: ids that stay, and why.
        kept: ids that could go but for this; of those that stay in the end.
        reasons: layers that are left as they are, and why.
    """

    def __init__(self, reasons: dict[nn.Module, str]) -> None:
        self.uses: dict[nn.Module, Use] = {}
        self.by_channel: dict[nn.Module, Tensor] = {}
        self.branches = False
        self.pinned: dict[int, str] = {}
        self.kept: dict[int, str] = {}
        self.reasons = reasons
        self._parent: list[int] = []  # of the forest whose trees stay or go together

    def new(self, count: int) -> Tensor:
        ids = torch.arange(len(self._parent), len(self._parent) + count)
        self._parent.extend(ids.tolist())
        return ids

    def pin(self, ids: Tensor, why: str) -> None:
        for i in ids.tolist():
            self.pinned.setdefault(i, why)

    def keep(self, ids: Tensor, why: str) -> None:
        for i in ids.tolist():
            self.kept.setdefault(i, why)

    def unite(self, a: Tensor, b: Tensor) -> None:
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            self._parent[self._root(j)] = self._root(i)

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i

    def solve(self, round_to: int | None, depth: bool) -> Tensor:
        """bool by id: what stays; the fewest channels that leave every layer whole, or with depth, empty."""
        uses = list(self.uses.values())
        roots = torch.tensor([self._root(i) for i in range(len(self._parent))], dtype=torch.long)
        live = torch.zeros(len(roots), dtype=torch.bool)
        live[roots[torch.tensor(list(self.pinned), dtype=torch.long)]] = True
        before = -1
        while before != (before := int(live.sum())):
            live = live[roots]
            for use in reversed(uses):
                live[roots[use.needs(live)]] = True
        for use in uses if depth else ():
            use.empty = type(use.layer) is nn.Conv2d and not (live[use.outs] & ~use.constant).any()
        while True:
            lacking = (use.lacks(live, round_to) for use in reversed(uses))
            ids, why = next(filter(None, lacking), (None, ""))
            if ids is None:
                break
            self.keep(ids, why)
            live[roots[ids]] = True  # and nothing that they need: they are constants, or nothing reads them
            live = live[roots]
        self.pinned, self.kept = _shared(self.pinned, roots), _shared(self.kept, roots)
        return live


def _fill(live: Tensor, readers: Tensor, count: int) -> Tensor:
    """What is live along the last dimension, and of the rest, those with the fewest readers first, up to count."""
    order = torch.where(live, -1, readers).argsort(dim=-1, stable=True)[..., :count]
    return live.scatter(-1, order, True)


def _shared(reasons: dict[int, str], roots: Tensor) -> dict[int, str]:
    """The reasons of some channels as those of all that stay with them."""
    trees: Iterable[int] = roots.tolist()
    known = {int(roots[i]): why for i, why in reasons.items()}
    return {i: known[root] for i, root in enumerate(trees) if root in known}
