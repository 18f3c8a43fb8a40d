"""What the generic tests of test_all.py cannot say of max_pool2d."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_ext import _C, max_pool2d


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape(data: Any) -> None:
    def two(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, dilation = two(1, 6), two(1, 4), two(1, 3)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    least = [max((k - 1) * d + 1 - 2 * p, 1) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    h, w = (size + data.draw(st.integers(0, 40)) for size in least)
    x, before = torch.randn(data.draw(st.integers(0, 3)), 2, h, w), _C.active_isa()
    where = kernel, stride, padding, dilation, data.draw(st.booleans())
    _C.set_active_isa(data.draw(st.sampled_from(_C.available_isas())))
    try:
        got = max_pool2d(x, *where)
    finally:
        _C.set_active_isa(before)
    assert torch.equal(got, F.max_pool2d(x, *where)) and got.is_contiguous()


def test_nan_wins_and_infinity_counts(isa: str) -> None:
    x = torch.full((1, 1, 20, 45), -torch.inf)
    x[..., 3, 5], x[..., 9, 30], x[..., 9, 31], x[..., 15, 44] = torch.nan, torch.inf, torch.nan, 1.0
    for kernel, stride, padding in itertools.product((2, 3, 5), (1, 2, 3), (0, 1)):
        expected = F.max_pool2d(x, kernel, stride, padding)
        torch.testing.assert_close(max_pool2d(x, kernel, stride, padding), expected, rtol=0, atol=0, equal_nan=True)


def test_stride_is_the_kernel_by_default() -> None:
    x = torch.randn(1, 2, 9, 10)
    assert torch.equal(max_pool2d(x, (2, 3)), F.max_pool2d(x, (2, 3)))


X = torch.zeros(2, 4, 5, 6)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"x": X[0]}, "x must have 4 dimensions, got (4, 5, 6)"),
        ({"x": X.double()}, "x must be float32, got float64"),
        ({"kernel_size": 0}, "kernel_size must be at least 1, got (0, 0)"),
        ({"kernel_size": (1, 2, 3)}, "kernel_size must be 2 ints, got (1, 2, 3)"),
        ({"stride": (1, 0)}, "stride must be at least 1, got (1, 0)"),
        ({"padding": -1}, "padding must be at least 0, got (-1, -1)"),
        ({"dilation": 0}, "dilation must be at least 1, got (0, 0)"),
        ({"padding": (0, 2)}, "padding must be at most half of kernel_size, (3, 3), got (0, 2)"),
        ({"dilation": 3}, "x must be as large as a window, (7, 7) with padding (0, 0), got (2, 4, 5, 6)"),
        ({"x": X[:, :, :0]}, "x must be as large as a window, (3, 3) with padding (0, 0), got (2, 4, 0, 6)"),
        ({"x": X.clone().requires_grad_()}, "x must not require a gradient, for there is none; use torch.no_grad()"),
    ],
)
def test_errors(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=f"^max_pool2d: {re.escape(rule)}$"):
        max_pool2d(**{"x": X, "kernel_size": 3, **change})
