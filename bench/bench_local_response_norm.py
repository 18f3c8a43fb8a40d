"""AlexNet's normalization over channels, one image and sixteen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import crest_ext
from timing import compare

LAYERS = {"AlexNet norm1": (96, 55, 55), "AlexNet norm2": (256, 27, 27)}


@pytest.mark.parametrize("n", [1, 16])
@pytest.mark.parametrize("layer", LAYERS)
def bench_local_response_norm(benchmark: Any, layer: str, n: int, compiled: Callable[..., Any]) -> None:
    x = torch.rand(n, *LAYERS[layer])
    product = compiled(partial(F.local_response_norm, size=5))
    others = {
        "torch": partial(F.local_response_norm, x, 5),
        "torch.compile": product if isinstance(product, str) else partial(product, x),
    }
    compare(
        benchmark,
        partial(crest_ext.local_response_norm, x, 5),
        others,
        group="local_response_norm, float32",
        case=f"{layer} {tuple(x.shape)}",
        rounds=15,
        nbytes=2 * x.nbytes,
    )
    for other in others.values():
        if not isinstance(other, str):
            torch.testing.assert_close(crest_ext.local_response_norm(x, 5), other())
