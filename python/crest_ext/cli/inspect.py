"""`crest inspect`: what a file's bytes, or a network's time, are spent on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import torch
import typer

from crest_ext import report
from crest_ext.cli.common import DataName, Json, ModelName, Rows, Shape, make_batch, make_model, prepare
from crest_ext.container import safe_open
from crest_ext.container.codecs import estimate
from crest_ext.container.index import CODECS, Entry, Stream
from crest_ext.models import layer_costs

ROUNDS = 11


def inspect(
    file: Annotated[Path | None, typer.Argument(help="A .crest file; or --model.")] = None,
    model: ModelName = None,
    data: DataName = None,
    shape: Shape = None,
    rows: Rows = 1,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    as_json: Json = False,
) -> None:
    """The tensors of a file: dtype, shape, density, codec, and bytes. With --model, the layers of a network: shape of
    the output, multiply-adds, parameters, bytes in memory, and milliseconds on this machine's CPU.

    Small tensors of a file share bytes: each one's are in proportion to what it would take alone. A layer's time is a
    median of runs in which each layer is timed, the total one of runs without timers: what is computed between layers
    is in the total alone.
    """
    if (file is None) == (model is None):
        raise ValueError(f"inspect: must be given a file or --model, got {'both' if file else 'neither'}")
    if file is not None:
        report.show(_file(file), as_json)
        return
    prepare(0, threads)
    network = make_model(model, None).cpu()
    x = make_batch(network, data, None, shape, rows)
    layers, seconds = layer_costs(network, x, ROUNDS)
    tensors = [*network.parameters(), *network.buffers()]
    found = report.NetworkReport(
        str(model),
        tuple(x.shape),
        torch.get_num_threads(),
        ROUNDS,
        layers,
        sum(layer.multiply_adds or 0 for layer in layers),
        sum(p.numel() for p in network.parameters()),
        sum(t.nbytes for t in tensors),
        seconds,
    )
    report.show(found, as_json)


def _file(file: Path) -> report.InspectReport:
    tensors: list[tuple[Entry, int, int]] = []  # and what is not 0, and bytes alone
    shared: Counter[tuple[Stream, ...]] = Counter()
    with safe_open(file) as opened:
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            entry, tensor = opened.entry(name), opened.get_tensor(name)
            shares = entry.numel < sum(stream.numel for stream in entry.streams)
            alone = estimate(tensor)[1] if shares else entry.length
            tensors.append((entry, int(tensor.count_nonzero()), alone))
            shared[entry.streams] += alone
        metadata = opened.metadata()
    rows = []
    for entry, kept, alone in tensors:
        dtype, n = str(entry.dtype).removeprefix("torch."), max(entry.numel, 1)
        size = entry.length * alone // max(shared[entry.streams], 1)
        row = (entry.name, dtype, entry.shape, kept / n, CODECS[entry.codec], size, 8 * size / n)
        rows.append(report.TensorReport(*row))
    numel, all_kept = sum(entry.numel for entry, _, _ in tensors), sum(kept for _, kept, _ in tensors)
    size, n = file.stat().st_size, max(numel, 1)
    return report.InspectReport(str(file), size, metadata, tuple(rows), numel, all_kept / n, 8 * size / n)
