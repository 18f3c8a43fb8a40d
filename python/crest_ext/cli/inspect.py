"""`crest inspect`: what a file's bytes are spent on."""

from __future__ import annotations

from collections import Counter

from crest_ext import report
from crest_ext.cli.common import File, Json
from crest_ext.container import safe_open
from crest_ext.container.codecs import estimate
from crest_ext.container.index import CODECS, Entry, Stream


def inspect(file: File, as_json: Json = False) -> None:
    """The tensors of a file: dtype, shape, density, codec, and bytes.

    Small tensors share bytes: each one's are in proportion to what it would take alone.
    """
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
    report.show(
        report.InspectReport(str(file), size, metadata, tuple(rows), numel, all_kept / n, 8 * size / n), as_json
    )
