"""The mask update alone."""

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

LAYERS = {"LeNet-300-100 fc1": (300, 784), "AlexNet conv2": (256, 48, 5, 5), "AlexNet fc7": (4096, 4096)}


def logical(weight: Tensor, mask: Tensor, low: float, high: float) -> None:
    size = weight.abs()
    mask.logical_and_(size >= low).logical_or_(size >= high)


@pytest.mark.parametrize("layer", LAYERS)
def bench_prune_splice(benchmark: Any, layer: str, compiled: Callable[..., Any]) -> None:
    shape = LAYERS[layer]
    weight, mask = torch.randn(shape) * 0.02, torch.rand(shape) < 0.1
    masks = {name: mask.clone() for name in ("torch eager, where", "torch eager, logical", "torch.compile")}
    steps = dict(zip(masks, (reference.prune_splice_, logical, compiled(logical)), strict=True))
    others = {
        name: step if isinstance(step, str) else partial(step, weight, masks[name], 0.018, 0.022)
        for name, step in steps.items()
    }
    compare(
        benchmark,
        partial(crest_ext.prune_splice_, weight, mask, 0.018, 0.022),
        others,
        group="prune_splice_, float32",
        case=f"{layer} {shape}",
        rounds=7 if mask.numel() > 1 << 20 else 30,
        nbytes=6 * mask.numel(),
    )
    for name, other in masks.items():
        assert isinstance(others[name], str) or torch.equal(mask, other)
