"""What a method has left of a network, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from crest_ext.nn.layers import layers
from crest_ext.nn.masked import Masked


@dataclass(frozen=True)
class LayerSummary:
    """One layer. Parameters outside Linear and Conv2d layers make one such row together."""

    name: str
    kept: int  # weights
    total: int
    biases_kept: int
    biases: int
    threshold: float | None  # None: not part of this run
    note: str  # why the layer is not part of this run, or what is left of its groups

    @property
    def density(self) -> float:
        """Kept weights over all weights, in [0, 1]; biases not counted."""
        return self.kept / self.total if self.total else 1.0


@dataclass(frozen=True)
class Summary:
    """All parameters of a model. `str()` gives a table."""

    layers: tuple[LayerSummary, ...]

    @property
    def kept(self) -> int:
        """Parameters kept, biases included."""
        return sum(row.kept + row.biases_kept for row in self.layers)

    @property
    def total(self) -> int:
        """Parameters of the dense model, biases included."""
        return sum(row.total + row.biases for row in self.layers)

    @property
    def density(self) -> float:
        return self.kept / self.total if self.total else 1.0

    @property
    def compression(self) -> float:
        """Parameters of the dense model over parameters kept; the paper's rate."""
        return self.total / self.kept if self.kept else float("inf")

    def __str__(self) -> str:
        head = ("layer", "kept", "weights", "density", "biases", "threshold", "")
        rows = [
            (
                row.name,
                f"{row.kept:,}",
                f"{row.total:,}",
                f"{row.density:.2%}",
                f"{row.biases_kept:,}/{row.biases:,}" if row.biases else "",
                "" if row.threshold is None else f"{row.threshold:.5f}",
                row.note,
            )
            for row in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = []
        for name, *numbers, note in (head, *rows):
            cells = [n.rjust(w) for n, w in zip(numbers, widths[1:-1], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *cells, note]).rstrip())
        share = f"{self.density:.2%}, {self.compression:.1f}x fewer"
        return "\n".join([*lines, f"{self.kept:,} of {self.total:,} parameters kept ({share})"])


def summarize(
    model: nn.Module,
    thresholds: Mapping[nn.Module, float | None],
    kept: Mapping[Tensor, Tensor] | None = None,
    notes: Mapping[nn.Module, str] | None = None,
) -> Summary:
    """Count what is kept of each Linear and Conv2d, and of the parameters outside them together.

    Args:
        model: any module.
        thresholds: of the layers that take part in a run; None if the method has none.
        kept: masks of parameters, in place of the modules' own.
        notes: of the layers that take part in a run.
    """
    rows, seen = [], set[Tensor]()

    def count(module: nn.Module, name: str, masks: dict[Tensor, Tensor]) -> tuple[int, int]:
        parameter = module._parameters.get(name)
        if parameter is None or parameter in seen:  # a tied one counts once
            return 0, 0
        seen.add(parameter)
        total = parameter.numel()
        return (int(masks[parameter].sum()) if parameter in masks else total), total

    for name, module, reason in layers(model):
        masks = dict(module.masked_parameters()) if isinstance(module, Masked) else {}
        masks |= {p: kept[p] for p in masks if kept and p in kept}
        note = reason or ("masks fixed" if masks else "dense")
        if module in thresholds:
            note = (notes or {}).get(module, "")
        counts = *count(module, "weight", masks), *count(module, "bias", masks)
        rows.append(LayerSummary(name, *counts, thresholds.get(module), note))
    if others := sum(p.numel() for p in model.parameters() if p not in seen):
        rows.append(LayerSummary("(others)", others, others, 0, 0, None, "dense"))
    return Summary(tuple(rows))
