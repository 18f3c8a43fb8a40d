"""AlexNet at the densities that Dynamic Network Surgery reached, by `pack`, by dense engines and by DeepSparse.

Densities: Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, table 4. Values are random.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import crest_ext
import peers
from crest_ext.models import create_model
from timing import compare

KEPT = {
    "conv1": 0.538,
    "conv2": 0.406,
    "conv3": 0.290,
    "conv4": 0.323,
    "conv5": 0.325,
    "fc6": 0.037,
    "fc7": 0.066,
    "fc8": 0.046,
}


@pytest.mark.parametrize("n", [1, 16])
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def bench_alexnet(benchmark: Any, n: int, threads: int) -> None:
    if not benchmark.enabled:
        pytest.skip("takes longer to measure than a smoke test may: tests/rewrite/test_pack.py packs small networks")
    model = create_model("alexnet").eval().requires_grad_(False)
    for name, kept in KEPT.items():
        weight = model.get_submodule(name).weight
        weight.mul_(torch.rand_like(weight) < kept)
    x = torch.randn(n, 3, 227, 227)
    packed, report = crest_ext.pack(model, x, explain=True)
    compare(
        benchmark,
        partial(packed, x),
        peers.engines(model, x),
        group="AlexNet at Dynamic Network Surgery's densities, float32",
        case=f"{n} image{'s'[: n > 1]}, {threads} thread{'s'[: threads > 1]}",
        headline=f"AlexNet at Dynamic Network Surgery's densities, {n} image{'s'[: n > 1]}" if threads == 1 else "",
        rounds=7,
        **{"sparse layers": sum(layer.kernel != "dense" for layer in report.layers)},
    )
    torch.testing.assert_close(packed(x), model(x), rtol=1e-3, atol=1e-4)
