"""Residual networks with zeros in all but their first layer by `pack`, and by engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import crest_ext
import peers
from crest_ext.models import create_model
from resnet50 import resnet50

NETWORKS = {"ResNet-50": (resnet50, 224), "ResNet-20": (lambda: create_model("resnet20").eval(), 32)}


@pytest.mark.parametrize("zeros", [0.8, 0.9])
@pytest.mark.parametrize("network", NETWORKS)
def bench_resnet(benchmark: Any, network: str, zeros: float) -> None:
    if not benchmark.enabled:
        pytest.skip("takes longer to measure than a smoke test may: tests/rewrite/test_additions.py packs small blocks")
    create, size = NETWORKS[network]
    model = create().requires_grad_(False)
    _, *others = (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    for layer in others:  # scaled, so that numbers stay of one size from layer to layer
        layer.weight.mul_((torch.rand_like(layer.weight) >= zeros) / (1 - zeros) ** 0.5)
    x = torch.randn(1, 3, size, size)
    peers.compare_packed(
        benchmark,
        crest_ext.pack(model, x),
        model,
        x,
        group="residual networks, float32, 1 image",
        case=f"{network} of {size}x{size}, {zeros:.0%} zeros in all layers but the first",
        headline=f"{network}, {zeros:.0%} zeros, 1 image of {size}x{size}",
        rounds=9 if size > 32 else 30,
    )
