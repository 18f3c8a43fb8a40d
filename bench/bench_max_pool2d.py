"""The pooling between the layers of LeNet-5 and AlexNet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import crest_ext
import peers
from timing import compare

LAYERS = {
    "LeNet-5 pool1": ((20, 24, 24), 2),
    "LeNet-5 pool2": ((50, 8, 8), 2),
    "AlexNet pool1": ((96, 55, 55), 3),
    "AlexNet pool2": ((256, 27, 27), 3),
    "AlexNet pool5": ((256, 13, 13), 3),
}


@pytest.mark.parametrize("n", [1, 16])
@pytest.mark.parametrize("layer", LAYERS)
def bench_max_pool2d(benchmark: Any, layer: str, n: int, compiled: Callable[..., Any]) -> None:
    shape, kernel = LAYERS[layer]
    x, pool = torch.randn(n, *shape), nn.MaxPool2d(kernel, 2).eval()
    product = compiled(pool)
    others = peers.dense(pool, x)
    others["torch.compile"] = product if isinstance(product, str) else partial(product, x)
    y = crest_ext.max_pool2d(x, kernel, 2)
    compare(
        benchmark,
        partial(crest_ext.max_pool2d, x, kernel, 2),
        others,
        group="max_pool2d, float32",
        case=f"{layer} {tuple(x.shape)}",
        rounds=15,
        nbytes=x.nbytes + y.nbytes,
    )
    assert torch.equal(y, pool(x))
