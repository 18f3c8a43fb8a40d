"""How benches take times."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

import limits

Function = Callable[[], Any]


def keep_pages() -> None:
    """Let malloc keep what is freed, as it does in a process that runs one network, where it has a say in that (glibc).

    Results come and go here in an order that makes it give pages back, and each new one costs a fault in the function
    that happens to get it: 400 of them, several times the work of the layer whose result they hold.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, size in ((-1, 1 << 30), (-3, 1 << 25)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, bytes
            mallopt(parameter, size)


class Seconds(float):
    """What a function returns that ran in another process: how long it took there."""


SHORT, LONG = 5e-3, 50e-3  # seconds
IN_A_ROW = 4  # calls of what is short: measured, the last is as fast as further ones


def in_a_row(functions: Iterable[Function]) -> int:
    """Calls of each in every round: a few where the fastest is short, and then of all, so that all meet warm caches.

    In a network a layer finds its kernel's code in cache, and its input, which the layer before has just written. Here
    a first call finds what the other functions left, which costs a small layer several times its work.
    """
    return IN_A_ROW if min(map(_once, functions)) <= SHORT else 1


def timed(function: Function, calls: int) -> float:
    """Seconds of the last of so many calls; or of the first that is so long that caches do not matter to it."""
    for _ in range(calls):
        seconds = _once(function)
        if seconds > LONG:
            break
    return seconds


def _once(function: Function) -> float:
    start = time.perf_counter()
    result = function()
    return result if isinstance(result, Seconds) else time.perf_counter() - start


def interleaved(functions: Mapping[str, Function], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each function, called one after the other in every round.

    Neighbours and clocks slow a machine down for seconds at a time. Interleaved, that meets every function alike,
    so ratios hold where times do not.
    """
    keep_pages()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    calls = in_a_row(functions.values())
    for i in range(warmup + rounds):
        for name, function in functions.items():
            taken = timed(function, calls)
            if i >= warmup:
                seconds[name].append(taken)
    return {name: statistics.median(times) for name, times in seconds.items()}


def compare(
    benchmark: Any,
    crest: Function,
    others: Mapping[str, Function | str],
    *,
    group: str,
    case: str,
    headline: str = "",
    rounds: int = 5,
    nbytes: int = 0,
    flops: int = 0,
    **more: Any,
) -> None:
    """Time ours against the alternatives, `timed` and interleaved as in `interleaved`, and store all in its JSON.

    pytest-benchmark times one function per test. It calls `setup` before each round and leaves it out of the time:
    there the alternatives run, and are timed by the clock it uses itself. So its own statistics are of ours, and
    extra_info["others"] holds the medians of the alternatives over the same rounds. bench/results.py reads both.
    What the machine can do at most (bench/limits.py) is measured in these rounds too: a limit from a quieter or a
    busier minute would give a wrong share. With --benchmark-disable each function runs once.

    Args:
        benchmark: pytest-benchmark's fixture.
        crest: our function, without arguments.
        others: the alternatives by name; a string instead of a function says why it cannot run here.
        group: heading of the table.
        case: name of the row: the real layer, its shape, the threads.
        headline: what the row is called in the README, if it stands there.
        rounds: timed rounds; one more, not timed, goes before them.
        nbytes: memory traffic of one call of ours, for GB/s and, beyond caches, the share of the limit.
        flops: work of one call of ours, for GFLOP/s and the share of the limit.
        more: further columns of the row.
    """
    keep_pages()
    probes = limits.arithmetic() if flops else limits.bandwidth() if nbytes > limits.CACHED_BYTES else {}
    functions = {name: f for name, f in others.items() if callable(f)}
    seconds: dict[str, list[float]] = {name: [] for name in (*functions, *probes)}
    calls = in_a_row((crest, *functions.values())) if benchmark.enabled else 1

    def run_others() -> None:
        for name, function in ({name: f for name, (_, f) in probes.items()} | functions).items():
            seconds[name].append(timed(function, calls))
        for _ in range(calls - 1):
            crest()

    benchmark.group = group
    benchmark.pedantic(crest, setup=run_others, rounds=rounds, warmup_rounds=1)
    info = benchmark.extra_info
    info |= {"who": "crest", "case": case, "threads": torch.get_num_threads(), **more}
    info |= {"headline": headline} if headline else {}
    info["not run"] = {name: reason for name, reason in others.items() if isinstance(reason, str)}
    if not benchmark.enabled:
        return
    ours, medians = benchmark.stats.stats.median, {name: statistics.median(t[1:]) for name, t in seconds.items()}
    info["others"] = {name: medians[name] for name in others if name in medians}
    info["limits"] = {name: work / medians[name] for name, (work, _) in probes.items()}
    if nbytes:
        info["GB/s"] = nbytes / ours / 1e9
    if flops:
        info["GFLOP/s"] = flops / ours / 1e9
    if probes:
        info["of limit"] = info["GFLOP/s" if flops else "GB/s"] / max(info["limits"].values())
