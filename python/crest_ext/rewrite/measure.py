"""Times of functions side by side, and whether they compute the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from crest_ext.rewrite.unchanged import unchanged

BUDGET = 0.2  # seconds to measure each layer, and the whole


def medians(*functions: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of two functions, called in turns: a machine that slows down meanwhile slows both."""
    times: tuple[list[float], ...] = ([], [])
    end = time.perf_counter() + BUDGET
    while len(times[0]) < 6 or (time.perf_counter() < end and len(times[0]) < 200):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def seconds(one: nn.Module, two: nn.Module, args: tuple[Any, ...]) -> tuple[float, float]:
    with torch.inference_mode(), unchanged(one), unchanged(two):
        return medians(lambda: one(*args), lambda: two(*args))


def alike(expected: Any, got: Any, dtype: torch.dtype) -> bool:
    """Whether two results have the same structure, and numbers but for rounding, that of packed values too."""
    (ours, structure), (theirs, other) = (tree_flatten(result) for result in (got, expected))
    if structure != other:
        return False
    share = 1e-3 if dtype == torch.float32 else 0.1

    def near(a: Any, b: Any) -> bool:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return type(a) is type(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return not a.is_floating_point() or bool((a - b).nan_to_num().norm() <= share * b.nan_to_num().norm() + 1e-6)

    return all(map(near, ours, theirs))
