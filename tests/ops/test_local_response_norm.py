from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from crest_ext import local_response_norm


@pytest.mark.usefixtures("isa")
def test_what_is_not_a_number() -> None:
    """As torch, where a square is infinite or the sum negative."""
    x = torch.tensor([1.0, torch.inf, 0.5, torch.nan, -1e30, 2.0, 3.0]).expand(2, 5, 7).clone()
    x[:, 3] = 0.25
    for k in (1.0, -100.0):
        torch.testing.assert_close(
            local_response_norm(x, 3, 1.0, 0.75, k), F.local_response_norm(x, 3, 1.0, 0.75, k), equal_nan=True
        )


X = torch.zeros(2, 4, 5)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"x": X[0]}, "x must have at least 3 dimensions, got (4, 5)"),
        ({"x": X.half()}, "x must be float32, got float16"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"beta": 0.5}, "beta must be 0.75, got 0.5"),
        ({"x": X.clone().requires_grad_()}, "x must not require a gradient, for there is none; use torch.no_grad()"),
    ],
)
def test_errors(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=f"^local_response_norm: {re.escape(rule)}$"):
        local_response_norm(**{"x": X, "size": 3, **change})
