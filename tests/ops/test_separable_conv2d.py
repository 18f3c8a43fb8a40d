"""What the generic tests of test_all.py cannot say of separable_conv2d, and the packing of its weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crest_ext import _C, pack_separable_conv2d, reference, separable_conv2d, unpack_separable_conv2d

few = st.integers(1, 3)


def close(got: Tensor, x: Tensor, packed: Any, *rest: Any) -> None:
    """Within what float32 rounds in sums of so many products of normal numbers."""
    wide = [t.double() if isinstance(t, Tensor) else t for t in (x, *packed, *rest)]
    expected = reference.separable_conv2d(*wide)
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-6 * packed.depthwise.numel() ** 0.5)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape(data: Any) -> None:
    draw, before = data.draw, _C.active_isa()
    n, c, m = draw(st.integers(0, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
    kernel = draw(st.sampled_from([(3, 3), (5, 5)]) | st.tuples(few, few))
    stride = draw(st.sampled_from([(1, 1), (2, 2)]) | st.tuples(few, few))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1)]))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    least = [(k - 1) * d + 1 - a - b for k, d, a, b in zip(kernel, dilation, pads[::2], pads[1::2], strict=True)]
    h, w = (draw(st.integers(max(size, 1), max(size, 1) + 20)) for size in least)
    names = [draw(st.sampled_from(["none", "relu", "relu6"])) for _ in range(2)]
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w).contiguous(
        memory_format=draw(st.sampled_from([torch.channels_last, None])) or torch.contiguous_format
    )
    packed = pack_separable_conv2d(torch.randn(c, 1, *kernel), torch.randn(m, c, 1, 1) / c**0.5)
    biases = [draw(st.sampled_from([None, torch.randn(size)])) for size in (c, m)]
    rest = *biases, stride, pads, dilation, *names
    _C.set_active_isa(draw(st.sampled_from(_C.available_isas())))
    try:
        close(separable_conv2d(x, *packed, *rest), x, packed, *rest)
    finally:
        _C.set_active_isa(before)


def test_several_tiles(isa: str) -> None:
    """Of rows of several images, which do not begin where images do."""
    x = torch.randn(3, 300, 17, 21).contiguous(memory_format=torch.channels_last)
    packed = pack_separable_conv2d(torch.randn(300, 1, 3, 3), torch.randn(50, 300, 1, 1) / 300**0.5)
    rest = torch.randn(300), torch.randn(50), (1, 1), (1, 1), (1, 1), "relu6", "relu"
    close(separable_conv2d(x, *packed, *rest), x, packed, *rest)


def test_threads_agree() -> None:
    """Each sum is made by one thread, in one order."""
    before = torch.get_num_threads()
    x = torch.randn(1, 512, 7, 7)
    packed = pack_separable_conv2d(torch.randn(512, 1, 3, 3), torch.randn(100, 512, 1, 1))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(separable_conv2d(x, *packed, padding=1))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_pixels(value: float, isa: str) -> None:
    x = torch.randn(2, 20, 9, 9)
    packed = pack_separable_conv2d(torch.randn(20, 1, 3, 3), torch.randn(40, 20, 1, 1))
    clean = separable_conv2d(x, *packed, padding=1, depthwise_activation="relu", activation="relu")
    x[1, 3, 4, 5] = value
    got = separable_conv2d(x, *packed, padding=1, depthwise_activation="relu", activation="relu")
    near = torch.zeros(2, 1, 9, 9, dtype=torch.bool)
    near[1, :, 3:6, 4:7] = True
    assert torch.equal(got[~near.expand_as(got)], clean[~near.expand_as(clean)])
    assert got.isnan().any() or value == float("inf")


@pytest.mark.parametrize("m", [1, 32, 33])
def test_packing_and_back(m: int) -> None:
    depthwise, pointwise = torch.randn(5, 1, 3, 2), torch.randn(m, 5, 1, 1)
    packed = pack_separable_conv2d(depthwise, pointwise)
    assert packed.depthwise.shape == (3, 2, 5) and packed.pointwise.shape == (-(-m // 32), 5, 32)
    for got, expected in zip(unpack_separable_conv2d(packed), (depthwise, pointwise), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("depthwise", "pointwise", "rule"),
    [
        (
            torch.zeros(4, 2, 3, 3),
            torch.zeros(5, 4, 1, 1),
            "depthwise must have shape (c, 1, kh, kw), got (4, 2, 3, 3)",
        ),
        (torch.zeros(4, 1, 3), torch.zeros(5, 4, 1, 1), "depthwise must have shape (c, 1, kh, kw), got (4, 1, 3)"),
        (torch.zeros(4, 1, 3, 3), torch.zeros(5, 4, 3, 1), "pointwise must have shape (m, 4, 1, 1), got (5, 4, 3, 1)"),
        (torch.zeros(4, 1, 3, 3), torch.zeros(0, 4, 1, 1), "pointwise must not be empty, got (0, 4, 1, 1)"),
        (torch.zeros(4, 1, 3, 3).double(), torch.zeros(5, 4, 1, 1), "depthwise must be float32, got torch.float64"),
        (torch.zeros(4, 1, 3, 3), torch.zeros(5, 4, 1, 1).half(), "pointwise must be float32, got torch.float16"),
    ],
)
def test_refuses_to_pack(depthwise: Tensor, pointwise: Tensor, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^pack_separable_conv2d: {re.escape(rule)}$"):
        pack_separable_conv2d(depthwise, pointwise)


X, PACKED = torch.zeros(2, 4, 5, 6), pack_separable_conv2d(torch.ones(4, 1, 3, 3), torch.ones(40, 4, 1, 1))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"x": X[0]}, "x must have 4 dimensions, got (4, 5, 6)"),
        ({"depthwise": torch.zeros(3, 3)}, "depthwise must have 3 dimensions, got (3, 3)"),
        ({"pointwise": torch.zeros(4, 32)}, "pointwise must have 3 dimensions, got (4, 32)"),
        ({"x": X[:, :0]}, "x must have channels, got (2, 0, 5, 6)"),
        ({"x": X[:, :3]}, "depthwise must have shape (kh, kw, 3), got (3, 3, 4)"),
        ({"out_channels": 0}, "out_channels must be at least 1, got 0"),
        ({"out_channels": 65}, "pointwise must have shape (3, 4, 32), got (2, 4, 32)"),
        ({"depthwise_bias": torch.zeros(3)}, "depthwise_bias must have shape (4,), got (3,)"),
        ({"bias": torch.zeros(4)}, "bias must have shape (40,), got (4,)"),
        ({"stride": 0}, "stride must be at least 1, got (0, 0)"),
        ({"padding": (1, 1, 1)}, "padding must be 2 or 4 ints, got (1, 1, 1)"),
        ({"dilation": 3}, "weight must fit in the padded image, (5, 6), got a kernel that spans (7, 7)"),
        ({"x": X.double()}, "x must be float32, got float64"),
        ({"depthwise": PACKED.depthwise.half()}, "depthwise must have the dtype of x, float32, got float16"),
        ({"pointwise": PACKED.pointwise.double()}, "pointwise must have the dtype of x, float32, got float64"),
        ({"bias": torch.zeros(40).half()}, "bias must have the dtype of x, float32, got float16"),
        ({"depthwise_activation": "elu"}, "depthwise_activation must be none, relu or relu6, got elu"),
        ({"activation": "gelu"}, "activation must be none, relu or relu6, got gelu"),
        ({"x": X.clone().requires_grad_()}, "x must not require a gradient, for there is none; use torch.no_grad()"),
        (
            {"bias": torch.zeros(40, requires_grad=True)},
            "bias must not require a gradient, for there is none; use torch.no_grad()",
        ),
    ],
)
def test_errors(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=f"^separable_conv2d: {re.escape(rule)}$"):
        separable_conv2d(**{"x": X, **PACKED._asdict(), **change})
