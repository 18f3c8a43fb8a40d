"""The mimic paper's students of 31.6 M parameters, by `pack` and by engines: an MLP, and one to three convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import crest_ext
import peers
from crest_ext.models import create_model
from crest_ext.train import count


@pytest.mark.parametrize("conv_layers", [0, 1, 2, 3])
def bench_shallow(benchmark: Any, conv_layers: int) -> None:
    if not benchmark.enabled:
        pytest.skip("takes longer to measure than a smoke test may: tests/models/test_shallow.py counts its parameters")
    student = create_model("shallow", conv_layers=conv_layers, params=3.16e7).eval().requires_grad_(False)
    x = torch.randn(1, 3, 32, 32)
    peers.compare_packed(
        benchmark,
        crest_ext.pack(student, x),
        student,
        x,
        group="shallow students of the budget 31.6 M, dense, float32, 1 image",
        case=f"{conv_layers} convolutions, {count(student)[0]:,} parameters",
        rounds=15,
    )
