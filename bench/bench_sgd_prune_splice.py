"""One optimizer step with its mask update: fused, against torch eager in place and torch.compile of the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import crest_ext
from crest_ext import reference
from timing import compare

LAYERS = {"LeNet-300-100 fc1": (300, 784), "AlexNet fc6": (4096, 9216)}
LR, MOMENTUM, DECAY, LOW, HIGH = 0.01, 0.9, 5e-4, 0.018, 0.022
NUMBERS = (LR, MOMENTUM, DECAY, LOW, HIGH)


def where(w: Tensor, g: Tensor, b: Tensor, m: Tensor) -> None:
    reference.sgd_prune_splice_(w, g, b, m, *NUMBERS)


def logical(w: Tensor, g: Tensor, b: Tensor, m: Tensor) -> None:
    """The mask in logical ops in place: the fastest eager form we know."""
    b.mul_(MOMENTUM).add_(g).add_(w, alpha=DECAY)
    w.sub_(b, alpha=LR)
    size = w.abs()
    m.logical_and_(size >= LOW).logical_or_(size >= HIGH)


def floats(w: Tensor, g: Tensor, b: Tensor, m: Tensor) -> None:
    """A float mask, 28 bytes a weight instead of 22: what torch.compile makes the fastest code of."""
    b.mul_(MOMENTUM).add_(g).add_(w, alpha=DECAY)
    w.sub_(b, alpha=LR)
    size = w.abs()
    m.copy_(torch.where(size >= HIGH, 1.0, torch.where(size >= LOW, m, 0.0)))


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("layer", LAYERS)
def bench_sgd_prune_splice(benchmark: Any, layer: str, threads: int, compiled: Callable[..., Any]) -> None:
    m, k = LAYERS[layer]
    weight, grad, mask = torch.randn(m, k) * 0.02, torch.randn(m, k) * 1e-3, torch.rand(m, k) < 0.1

    def state(mask_dtype: torch.dtype = torch.bool) -> tuple[Tensor, ...]:
        return weight.clone(), grad, torch.zeros(m, k), mask.to(mask_dtype, copy=True)

    ours = state()
    peers = {
        "torch eager, where": (where, state()),
        "torch eager, logical": (logical, state()),
        "torch.compile, bool mask": (compiled(logical), state()),
        "torch.compile, float mask": (compiled(floats), state(torch.float32)),
    }
    crest_ext.sgd_prune_splice_(*ours, *NUMBERS)
    for step, theirs in peers.values():  # a step of each: in `compare` they take different numbers of them
        if isinstance(step, str):
            continue
        step(*theirs)
        for got, expected in zip(ours[:3], theirs[:3], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
        # Compilers contract products differently, so a weight may land on the other side of a threshold.
        assert (ours[3] != theirs[3].bool()).sum() <= 1e-4 * m * k
    compare(
        benchmark,
        partial(crest_ext.sgd_prune_splice_, *ours, *NUMBERS),
        {name: step if isinstance(step, str) else partial(step, *args) for name, (step, args) in peers.items()},
        group="sgd_prune_splice_, float32",
        case=f"{layer} {m, k}, {threads} thread{'s'[: threads > 1]}",
        headline=f"SGD step with mask update, {m * k / 1e6:.1f} M weights" if m * k > 1 << 20 and threads == 1 else "",
        rounds=15 if m * k > 1 << 20 else 30,
        nbytes=22 * m * k,
    )
