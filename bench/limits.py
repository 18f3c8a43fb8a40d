"""What this machine can do at most: torch's own loops and product, timed beside the benches that state their share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

# Less memory than this may come out of a cache, so that a share of the memory's bandwidth would say nothing.
CACHED_BYTES = 1 << 26

Probe = tuple[float, Callable[[], Any]]  # work of one call in billions, and the call


@functools.cache
def bandwidth() -> dict[str, Probe]:
    """GB/s on arrays larger than a cache; a byte read and a byte written count one each. The best is the limit."""
    a, b = torch.ones(2, CACHED_BYTES // 2)
    return {
        "read GB/s": (a.nbytes / 1e9, a.sum),
        "update GB/s": (2 * a.nbytes / 1e9, lambda: a.mul_(1.0)),  # reads an array and writes it
        "triad GB/s": (3 * a.nbytes / 1e9, lambda: a.add_(b, alpha=1e-9)),  # reads two and writes one of them
    }


@functools.cache
def arithmetic() -> dict[str, Probe]:
    """GFLOP/s of the float32 product of two (1024, 1024) matrices."""
    a, b = torch.ones(2, 1024, 1024)
    return {"matmul GFLOP/s": (2 * 1024**3 / 1e9, lambda: a @ b)}
