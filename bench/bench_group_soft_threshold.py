"""Norms of groups of weights, and the proximal step that takes them to zero."""

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

# layer, its shape, the groups; the last: how often memory is read or written per number.
CASES = {
    "LeNet-5 conv2": ((50, 20, 5, 5), "filter", 2),
    "VGG-16 conv5": ((512, 512, 3, 3), "shape", 3),
    "AlexNet fc6, rows": ((4096, 9216), "row", 2),
    "AlexNet fc6, columns": ((4096, 9216), "column", 3),
}


def eager_norms(weight: Tensor, groups: str) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=0 if groups in ("shape", "column") else tuple(range(1, weight.dim())))


@pytest.mark.parametrize("case", CASES)
def bench_group_norms(benchmark: Any, case: str, compiled: Callable[..., Any]) -> None:
    shape, groups, _ = CASES[case]
    weight = torch.randn(shape) * 0.02
    norms = compiled(eager_norms)
    compare(
        benchmark,
        partial(crest_ext.group_norms, weight, groups),
        {
            "torch eager, vector_norm": partial(eager_norms, weight, groups),
            "torch.compile": norms if isinstance(norms, str) else partial(norms, weight, groups),
        },
        group="group_norms, float32",
        case=f"{case} {shape}",
        rounds=7 if weight.numel() > 1 << 20 else 30,
        nbytes=4 * weight.numel(),
    )
    torch.testing.assert_close(crest_ext.group_norms(weight, groups), eager_norms(weight, groups))


@pytest.mark.parametrize("l1", [0.0, 1e-5])
@pytest.mark.parametrize("case", CASES)
def bench_group_soft_threshold(benchmark: Any, case: str, l1: float, compiled: Callable[..., Any]) -> None:
    shape, groups, passes = CASES[case]
    weight = torch.randn(shape) * 0.02
    weights = {name: weight.clone() for name in ("torch eager", "torch.compile")}
    eager = reference.sparse_group_soft_threshold_ if l1 else reference.group_soft_threshold_
    more = (1e-5, l1) if l1 else (1e-5,)
    steps = dict(zip(weights, (eager, compiled(eager)), strict=True))
    others = {
        name: step if isinstance(step, str) else partial(step, weights[name], groups, *more)
        for name, step in steps.items()
    }
    step = crest_ext.sparse_group_soft_threshold_ if l1 else crest_ext.group_soft_threshold_
    ours = partial(step, weight, groups, *more)
    ours()
    for name, other in others.items():  # a step of each: in `compare` they take different numbers of them
        if callable(other):
            other()
            torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-6)
    compare(
        benchmark,
        ours,
        others,
        group=f"{'sparse_' if l1 else ''}group_soft_threshold_, float32",
        case=f"{case} {shape}",
        rounds=7 if weight.numel() > 1 << 20 else 30,
        nbytes=4 * passes * weight.numel(),
    )
