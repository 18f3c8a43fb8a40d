"""What the generic tests of test_all.py cannot say of stem_conv2d."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_ext import _C, reference, stem_conv2d

few = st.integers(1, 3)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape(data: Any) -> None:
    draw, before = data.draw, _C.active_isa()
    n, c, m = draw(st.integers(0, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 70))
    kernel, stride = draw(st.tuples(st.integers(1, 6), st.integers(1, 6))), draw(st.tuples(few, few))
    dilation, pads = draw(st.sampled_from([(1, 1), (1, 1), (2, 3)])), draw(st.tuples(*[st.integers(0, 7)] * 4))
    least = [(k - 1) * d + 1 - a - b for k, d, a, b in zip(kernel, dilation, pads[::2], pads[1::2], strict=True)]
    h, w = (draw(st.integers(max(size, 1), max(size, 1) + 20)) for size in least)
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w + 2)[..., 1:-1]  # rows that are not side by side
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    args = x, torch.randn(m, c, *kernel), draw(st.sampled_from([None, torch.randn(m)]))
    where = stride, pads, dilation, draw(st.sampled_from(["none", "relu", "relu6"])), draw(st.booleans())
    _C.set_active_isa(draw(st.sampled_from(_C.available_isas())))
    try:
        got = stem_conv2d(*args, *where)
    finally:
        _C.set_active_isa(before)
    expected = reference.stem_conv2d(*(None if t is None else t.double() for t in args), *where)
    memory_format = torch.channels_last if where[-1] else torch.contiguous_format
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-6 * args[1][0].numel() ** 0.5)


def test_threads_agree() -> None:
    """Each sum is made by one thread, in one order."""
    before = torch.get_num_threads()
    x, weight = torch.randn(2, 3, 64, 64), torch.randn(32, 3, 3, 3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(stem_conv2d(x, weight, padding=1))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_pixels(value: float, channels_last: bool, isa: str) -> None:
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(40, 3, 3, 3)
    clean = stem_conv2d(x, weight, padding=1, activation="relu", channels_last=channels_last)
    x[1, 1, 4, 5] = value
    got = stem_conv2d(x, weight, padding=1, activation="relu", channels_last=channels_last)
    near = torch.zeros(2, 1, 9, 9, dtype=torch.bool)
    near[1, :, 3:6, 4:7] = True
    assert torch.equal(got[~near.expand_as(got)], clean[~near.expand_as(clean)])
    assert torch.equal(got.isnan(), reference.stem_conv2d(x, weight, padding=(1, 1), activation="relu").isnan())


X, WEIGHT = torch.zeros(2, 3, 5, 6), torch.ones(40, 3, 3, 3)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"x": X[0]}, "x must have 4 dimensions, got (3, 5, 6)"),
        ({"x": X[:, :0]}, "x must have channels, got (2, 0, 5, 6)"),
        ({"x": X.double()}, "x must be float32, got float64"),
        ({"weight": WEIGHT[0]}, "weight must have 4 dimensions, got (3, 3, 3)"),
        ({"weight": WEIGHT[:, :2]}, "weight must have shape (m, 3, kh, kw), got (40, 2, 3, 3)"),
        ({"weight": WEIGHT[:0]}, "weight must have shape (m, 3, kh, kw), got (0, 3, 3, 3)"),
        ({"weight": WEIGHT.half()}, "weight must have the dtype of x, float32, got float16"),
        ({"bias": torch.zeros(4)}, "bias must have shape (40,), got (4,)"),
        ({"bias": torch.zeros(40).half()}, "bias must have the dtype of x, float32, got float16"),
        ({"stride": 0}, "stride must be at least 1, got (0, 0)"),
        ({"padding": (1, 1, 1)}, "padding must be 2 or 4 ints, got (1, 1, 1)"),
        ({"dilation": 3}, "weight must fit in the padded image, (5, 6), got a kernel that spans (7, 7)"),
        ({"activation": "gelu"}, "activation must be none, relu or relu6, got gelu"),
        (
            {"x": X.clone().requires_grad_()},
            "x must not require a gradient, for there is none; use torch.no_grad()",
        ),
    ],
)
def test_errors(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=f"^stem_conv2d: {re.escape(rule)}$"):
        stem_conv2d(**{"x": X, "weight": WEIGHT, **change})
