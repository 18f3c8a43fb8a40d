"""What the command line reports: dataclasses that are a table for people and JSON for programs."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from crest_ext.models import LayerCost
from crest_ext.rewrite import PackedLayer
from crest_ext.train import PhaseResult, Trial


class Report(ABC):
    """A dataclass."""

    @abstractmethod
    def table(self) -> Any:
        """What to print of it."""

    def json(self) -> str:
        return json.dumps(asdict(self), indent=2)  # type: ignore[call-overload]


def show(report: Report, as_json: bool) -> None:
    """Print to standard output: JSON and nothing else, or the table."""
    console = Console()
    if as_json:
        console.out(report.json(), highlight=False)
    else:
        console.print(report.table())


def grid(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> Table:
    """The first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def times(a: float, b: float) -> str:
    return f"{a / b:.1f}x" if b else "inf"


@dataclass(frozen=True)
class TrainReport(Report):
    """Phases run, and the file written. Errors are fractions of the test samples, times seconds."""

    out: str
    bytes: int
    phases: tuple[PhaseResult, ...]

    def table(self) -> Group:
        rows = [
            (p.name, p.iterations, percent(p.error), f"{p.kept:,}", times(p.total, p.kept), f"{p.seconds:.1f}")
            for p in self.phases
        ]
        columns = ("phase", "iterations", "test error", "parameters", "fewer", "seconds")
        return Group(grid(columns, rows), Text(f"{self.out}: {self.bytes:,} bytes"))


@dataclass(frozen=True)
class SearchReport(Report):
    """Students tried, the best first. Errors are fractions of the validation samples."""

    storage: str
    trials: tuple[Trial, ...]

    def table(self) -> Group:
        drawn = list(dict.fromkeys(name for trial in self.trials for name in trial.drawn))
        rows = [
            (
                t.number,
                "no width" if t.error is None else percent(t.error),
                *(f"{t.drawn[name]:.4g}" if name in t.drawn else "" for name in drawn),
            )
            for t in self.trials
        ]
        return Group(grid(("trial", "validation error", *drawn), rows), Text(self.storage))


@dataclass(frozen=True)
class EvalReport(Report):
    file: str
    error: float  # fraction of the test samples
    kept: int
    total: int
    bytes: int

    def table(self) -> Table:
        row = (self.file, percent(self.error), f"{self.kept:,} of {self.total:,}", f"{self.bytes:,}")
        return grid(("file", "test error", "parameters", "bytes"), [row])


@dataclass(frozen=True)
class ConvertReport(Report):
    source: str
    target: str
    tensors: int
    elements: int
    source_bytes: int
    target_bytes: int

    def table(self) -> Table:
        sizes = f"{self.source_bytes:,}", f"{self.target_bytes:,}", times(self.source_bytes, self.target_bytes)
        columns = ("written", "tensors", "elements", "bytes before", "bytes", "smaller")
        return grid(columns, [(self.target, self.tensors, f"{self.elements:,}", *sizes)])


@dataclass(frozen=True)
class TensorReport:
    name: str
    dtype: str
    shape: tuple[int, ...]
    density: float  # elements that are not 0
    codec: str
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class InspectReport(Report):
    file: str
    bytes: int
    metadata: dict[str, str]
    tensors: tuple[TensorReport, ...]
    elements: int
    density: float
    bits_per_weight: float  # of the whole file

    def table(self) -> Group:
        rows: list[tuple[object, ...]] = [
            (t.name, t.dtype, _shape(t.shape), percent(t.density), t.codec, f"{t.bytes:,}", f"{t.bits_per_weight:.2f}")
            for t in self.tensors
        ]
        rows.append(
            (
                "the file",
                "",
                f"{self.elements:,}",
                percent(self.density),
                "",
                f"{self.bytes:,}",
                f"{self.bits_per_weight:.2f}",
            )
        )
        columns = ("tensor", "dtype", "shape", "density", "codec", "bytes", "bits/weight")
        notes = [Text(f"{key}: {value}") for key, value in self.metadata.items()]
        return Group(grid(columns, rows, self.file), *notes)


@dataclass(frozen=True)
class NetworkReport(Report):
    """What a network costs, layer by layer. Times are seconds, medians of so many rounds."""

    model: str
    input: tuple[int, ...]
    threads: int
    rounds: int
    layers: tuple[LayerCost, ...]
    multiply_adds: int
    parameters: int
    bytes: int  # of all parameters and buffers
    seconds: float

    def table(self) -> Group:
        rows: list[tuple[object, ...]] = [
            (
                a.name or "itself",
                "" if a.shape is None else _shape(a.shape),
                "" if a.multiply_adds is None else f"{a.multiply_adds:,}",
                f"{a.parameters:,}",
                f"{a.bytes:,}",
                "" if a.seconds is None else _ms(a.seconds),
            )
            for a in self.layers
        ]
        total = f"{self.multiply_adds:,}", f"{self.parameters:,}", f"{self.bytes:,}", _ms(self.seconds)
        rows.append(("the whole model", "", *total))
        columns = ("layer", "output", "multiply-adds", "parameters", "bytes", "ms")
        closing = (
            f"Input {_shape(self.input)}, {self.threads} thread(s), median of {self.rounds} runs. The whole model is "
        )
        closing += "timed without timers in it, and with what is computed between layers."
        return Group(grid(columns, rows, self.model), Text(closing))


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


@dataclass(frozen=True)
class BenchReport(Report):
    """What `pack` measured. Times are seconds, 0 where not measured."""

    file: str
    rows: int  # samples
    threads: int
    layers: tuple[PackedLayer, ...]
    dense: float
    packed: float
    reason: str

    def table(self) -> Table:
        rows: list[tuple[object, ...]] = [
            (a.name, a.rows, percent(a.density), a.kernel, _ms(a.dense), _ms(a.sparse), a.reason) for a in self.layers
        ]
        rows.append(("the whole model", self.rows, "", "", _ms(self.dense), _ms(self.packed), self.reason))
        columns = ("layer", "rows", "density", "kernel", "dense, ms", "sparse, ms", "why")
        return grid(columns, rows, f"{self.file}, {self.threads} thread(s)")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds else "-"


BATCH = 64


@dataclass(frozen=True)
class Side:
    """One of the two networks of the demo."""

    parameters: int
    torch_save: int  # bytes
    safetensors: int
    safetensors_gzip: int
    crest: int
    error: float  # fraction of the test samples
    latency: float  # seconds for one sample, median
    batch_latency: float  # and for BATCH of them


@dataclass(frozen=True)
class DemoReport(Report):
    dense: Side
    compressed: Side
    seconds: float
    threads: int

    def table(self) -> Group:
        a, b = self.dense, self.compressed
        rows: list[tuple[str, ...]] = [
            ("parameters", f"{a.parameters:,}", f"{b.parameters:,}", times(a.parameters, b.parameters) + " fewer")
        ]
        for name, label in (
            ("torch_save", "torch.save, bytes"),
            ("safetensors", "safetensors, bytes"),
            ("safetensors_gzip", "safetensors + gzip, bytes"),
            ("crest", ".crest, bytes"),
        ):
            x, y = getattr(a, name), getattr(b, name)
            rows.append((label, f"{x:,}", f"{y:,}", times(x, y) + " smaller"))
        rows.append(("test error", percent(a.error), percent(b.error), f"{100 * (b.error - a.error):+.2f} points"))
        for name, label in (("latency", "latency of one digit"), ("batch_latency", f"latency of {BATCH} digits")):
            x, y = getattr(a, name), getattr(b, name)
            rows.append((label, f"{1e3 * x:.3f} ms", f"{1e3 * y:.3f} ms", times(x, y) + " as fast"))
        closing = f"Dense by torch.save, {a.torch_save:,} bytes; compressed as .crest, {b.crest:,} bytes: "
        closing += f"{times(a.torch_save, b.crest)} smaller. {self.seconds:.0f} s, {self.threads} thread(s)."
        return Group(grid(("", "dense", "compressed", ""), rows), Text(closing))


@dataclass(frozen=True)
class DoctorReport(Report):
    versions: dict[str, str | None]  # None: not installed
    isas: tuple[str, ...]
    active_isa: str
    cuda_build: bool
    gpus: tuple[str, ...]
    threads: int
    checks: dict[str, bool]  # apply_mask equals torch, by instruction set

    @property
    def healthy(self) -> bool:
        return all(self.checks.values())

    def table(self) -> Table:
        rows: list[tuple[str, str]] = [(name, version or "not installed") for name, version in self.versions.items()]
        rows.append(
            ("instruction sets", ", ".join(f"{isa} (active)" if isa == self.active_isa else isa for isa in self.isas))
        )
        rows.append(("CUDA kernels", "in this build" if self.cuda_build else "not in this build"))
        rows.append(("GPUs torch sees", ", ".join(self.gpus) or "none"))
        rows.append(("threads", str(self.threads)))
        rows += [(f"apply_mask, {isa}", "equals torch" if ok else "WRONG") for isa, ok in self.checks.items()]
        table = grid(("", ""), rows)
        table.show_header = False
        return table
