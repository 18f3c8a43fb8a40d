"""MobileNet-v1 1.0-224 by `pack`, whole and with 90 % zeros in its pointwise layers, and by engines."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import crest_ext
import peers
from crest_ext.models import create_model


@pytest.mark.parametrize("zeros", [0.0, 0.9])
def bench_mobilenet(benchmark: Any, zeros: float) -> None:
    if not benchmark.enabled:
        pytest.skip("takes longer to measure than a smoke test may: tests/rewrite/test_pack.py packs a small one")
    model = create_model("mobilenet_v1").eval().requires_grad_(False)
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and (".pw" in name or name == "fc"):
            layer.weight.mul_(torch.rand_like(layer.weight) >= zeros)
    x = torch.randn(1, 3, 224, 224)
    peers.compare_packed(
        benchmark,
        crest_ext.pack(model, x),
        by_torch(model),
        x,
        group="MobileNet-v1 1.0-224, float32, 1 image",
        case=f"{zeros:.0%} zeros in the pointwise layers and fc",
        headline=f"MobileNet-v1 1.0-224, {zeros:.0%} zeros, 1 image",
        rounds=15,
    )


def by_torch(model: nn.Module) -> nn.Module:
    """The same on torch's own depthwise convolutions, each behind its padding."""
    model = copy.deepcopy(model)
    for block in model.children():
        if isinstance(conv := getattr(block, "dw", [None])[0], nn.Conv2d):
            twin = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, groups=conv.groups, bias=False)
            twin.weight = conv.weight
            even = conv.stride[0] == 2  # and so is each size here: all of the padding is below and at the right
            block.dw[0] = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1) if even else 1), twin)
    return model
