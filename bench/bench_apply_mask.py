"""A masked weight for a convolution or a dense product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import crest_ext
from timing import compare

LAYERS = {"LeNet-5 conv2": (50, 20, 5, 5), "AlexNet conv2": (256, 48, 5, 5), "AlexNet fc7": (4096, 4096)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def bench_apply_mask(benchmark: Any, layer: str, dtype: torch.dtype, compiled: Callable[..., Any]) -> None:
    shape = LAYERS[layer]
    weight, mask = torch.randn(shape).to(dtype), torch.rand(shape) < 0.1
    product = compiled(torch.mul)
    others = {
        "weight * mask": partial(torch.mul, weight, mask),
        "torch.where": partial(torch.where, mask, weight, 0),
        "torch.compile": product if isinstance(product, str) else partial(product, weight, mask),
    }
    compare(
        benchmark,
        partial(crest_ext.apply_mask, weight, mask),
        others,
        group=f"apply_mask, {str(dtype).removeprefix('torch.')}",
        case=f"{layer} {shape}",
        rounds=7 if mask.numel() > 1 << 20 else 30,
        nbytes=(2 * weight.itemsize + 1) * mask.numel(),
    )
    for other in others.values():
        assert isinstance(other, str) or torch.equal(crest_ext.apply_mask(weight, mask), other())
