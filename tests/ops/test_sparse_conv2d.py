"""What the generic tests of test_all.py cannot say of sparse_conv2d, and the packing of its weight."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import crest_ext
from crest_ext import _C, PackedSparseConv2d, pack_sparse_conv2d, reference, sparse_conv2d, unpack_sparse_conv2d


def sparse(*shape: int, density: float = 0.2) -> Tensor:
    return torch.where(torch.rand(shape) < density, torch.randn(shape), 0)


def check(x: Tensor, weight: Tensor, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    """Against the dense convolution in float64, within what float32 rounds in sums of as many terms."""
    bias, packed, rounded = torch.randn(len(weight)), pack_sparse_conv2d(weight, dtype), weight.to(dtype).double()
    terms = F.conv2d(x.double().abs(), rounded.abs(), bias.double().abs(), **options)
    slack = torch.finfo().eps * (2 + rounded.count_nonzero((1, 2, 3)))[:, None, None] * terms
    for activation, beside in itertools.product(reference.ACTIVATIONS, (False, True)):
        expected = F.conv2d(x.double(), rounded, bias.double(), **options)
        addend = torch.randn_like(expected).float() if beside else None
        got = sparse_conv2d(x, *packed, bias, **options, activation=activation, addend=addend)
        expected = expected if addend is None else expected + addend
        expected = reference.activate(expected, activation)
        assert got.dtype == torch.float32 and got.shape == expected.shape and got.is_contiguous()
        more = 0 if addend is None else torch.finfo().eps * (expected.abs() + addend.abs())
        assert ((got - expected).abs() <= slack + more).all()


def one(w: Tensor) -> Tensor:
    kept = torch.zeros_like(w)
    kept[3, 5, 2, 0] = w[3, 5, 2, 0]
    return kept


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": torch.zeros_like,
    "everything": lambda w: w,
    "one weight": one,
    "one filter": lambda w: w * (torch.arange(len(w)) == 4)[:, None, None, None],
    "one full filter": lambda w: torch.where(torch.arange(len(w))[:, None, None, None] == 4, w, w * (w > 1.5)),
    "one channel": lambda w: w * (torch.arange(w.shape[1]) == 19)[:, None, None],
    "the middle": lambda w: w * torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    "empty filters and channels": lambda w: w * (torch.arange(len(w)) % 3 > 0)[:, None, None, None] * (w > 0),
    "denormals": lambda w: torch.where(torch.rand_like(w) < 0.1, w * 1e-39, 0),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str, isa: str) -> None:
    check(torch.randn(2, 20, 9, 7), PATTERNS[pattern](torch.randn(9, 20, 3, 3)), padding=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((1, 96, 27, 27), (256, 48, 5, 5), {"padding": 2, "groups": 2}),
        ((2, 64, 13, 13), (150, 64, 3, 3), {"padding": 1}),
        ((1, 128, 14, 14), (130, 128, 1, 1), {}),
        ((3, 32, 16, 16), (64, 32, 1, 1), {}),
        ((1, 3, 67, 67), (24, 3, 11, 11), {"stride": 4}),
        ((1, 16, 40, 56), (24, 16, 1, 1), {"stride": 2}),
        ((2, 16, 57, 57), (24, 16, 1, 1), {"stride": 2}),
        ((1, 8, 38, 70), (12, 8, 3, 3), {"stride": 2, "padding": 1}),
    ],
    ids=str,
)
def test_real_layers(
    shape: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype, isa: str
) -> None:
    check(torch.randn(shape), sparse(*weight, density=0.1), dtype, **options)


pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(0, 3),
    per_group=st.integers(1, 4),
    filters=st.integers(1, 4),
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=pair,
    dilation=pair,
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    density=st.floats(0, 1),
    isa=st.data(),
)
def test_any_shape(
    n: int,
    per_group: int,
    filters: int,
    groups: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    density: float,
    isa: Any,
) -> None:
    size = tuple(max(s, (k - 1) * d + 1 - 2 * p) for s, k, d, p in zip(size, kernel, dilation, padding, strict=True))
    before = _C.active_isa()
    _C.set_active_isa(isa.draw(st.sampled_from(_C.available_isas())))
    try:
        weight = sparse(filters * groups, per_group, *kernel, density=density)
        pack_sparse_conv2d(weight).check()
        x = torch.randn(n, per_group * groups, *size)
        check(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    finally:
        _C.set_active_isa(before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_is_not_finite(kernel: int, value: float, isa: str) -> None:
    """It reaches exactly the outputs that a kept weight connects to it."""
    weight, x = sparse(7, 5, kernel, kernel, density=0.3), torch.randn(2, 5, 8, 8)
    packed, padding = pack_sparse_conv2d(weight), kernel // 2
    clean = sparse_conv2d(x, *packed, padding=padding)
    x[1, 2, 4, 3] = value
    touched = torch.zeros_like(x)
    touched[1, 2, 4, 3] = 1
    reached = F.conv2d(touched, (weight != 0).float(), padding=padding) > 0
    got = sparse_conv2d(x, *packed, padding=padding)
    assert not got[reached].isfinite().any()
    assert torch.equal(got[~reached], clean[~reached])
    # A ReLU keeps a NaN, as torch's does.
    assert torch.equal(sparse_conv2d(x, *packed, padding=padding, activation="relu").isnan(), got.isnan())


@pytest.mark.parametrize("kernel", [1, 3])
def test_columns_past_sixteen_bits(kernel: int, isa: str) -> None:
    check(torch.randn(1, 70_001 // kernel**2, 4, 5), sparse(3, 70_001 // kernel**2, kernel, kernel, density=0.01))


def test_threads_agree() -> None:
    """Each sum is made by one thread, in one order."""
    before = torch.get_num_threads()
    x, packed = torch.randn(2, 40, 30, 30), pack_sparse_conv2d(sparse(50, 40, 3, 3))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(sparse_conv2d(x, *packed, padding=1))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_packing_and_back(dtype: torch.dtype) -> None:
    weight = sparse(9, 30, 3, 3)
    weight[0, 0, 0] = torch.tensor([-0.0, float("nan"), 1e-42])
    packed = pack_sparse_conv2d(weight, dtype)
    packed.check()
    expected = weight.to(dtype)
    torch.testing.assert_close(unpack_sparse_conv2d(packed), expected + 0.0, rtol=0, atol=0, equal_nan=True)
    assert len(packed.values) == int((expected != 0).sum())
    assert packed.nbytes == len(packed.values) * (packed.values.itemsize + 1) + 4 * len(packed.starts)


def test_refuses_to_pack() -> None:
    for weight, rule in (
        (torch.zeros(3, 3), "weight must have 4 dimensions, got (3, 3)"),
        (torch.zeros(3, 0, 1, 1), "weight must not be empty, got (3, 0, 1, 1)"),
        (torch.zeros(1, 1, 1, 1, dtype=torch.int32), "weight must be floating, got torch.int32"),
    ):
        with pytest.raises(ValueError, match=f"^pack_sparse_conv2d: {re.escape(rule)}$"):
            pack_sparse_conv2d(weight)
    with pytest.raises(ValueError, match=r"^pack_sparse_conv2d: dtype must be float32, bfloat16 or float16, got torch"):
        pack_sparse_conv2d(torch.ones(1, 1, 1, 1), torch.float64)


PACKED = pack_sparse_conv2d(torch.ones(4, 20, 3, 3))  # 180 columns: two tiles


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"weight_shape": (4, 20, 3)}, "weight_shape must be 4 positive numbers, got (4, 20, 3)"),
        ({"weight_shape": (4, 20, 0, 3)}, "weight_shape must be 4 positive numbers, got (4, 20, 0, 3)"),
        ({"columns": PACKED.columns[1:]}, "columns must have shape (720,), got (719,)"),
        ({"starts": PACKED.starts[1:]}, "starts must have shape (9,), got (8,)"),
        ({"values": PACKED.values.double()}, "values must be float32, bfloat16 or float16, got torch.float64"),
        ({"columns": PACKED.columns.int()}, "columns must be torch.uint8, got torch.int32"),
        ({"starts": PACKED.starts.long()}, "starts must be torch.int32, got torch.int64"),
        ({"starts": PACKED.starts + 1}, "starts must ascend from 0 to 720"),
        ({"starts": PACKED.starts.flip(0)}, "starts must ascend from 0 to 720"),
        ({"starts": torch.tensor([0] + 8 * [720]).int()}, "starts must give a cell at most 128 non-zeros"),
        ({"columns": PACKED.columns + 60}, "columns must lie within their tiles"),
    ],
)
def test_check_refuses(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=f"^PackedSparseConv2d: {re.escape(rule)}$"):
        PACKED._replace(**change).check()


X = torch.zeros(1, 20, 5, 5)


def call(x: Tensor = X, packed: PackedSparseConv2d = PACKED, **options: Any) -> None:
    sparse_conv2d(x, *packed, **options)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"x": torch.zeros(20, 5, 5)}, "x must have 4 dimensions, got (20, 5, 5)"),
        ({"packed": PACKED._replace(weight_shape=(4, 20, 3))}, "weight_shape must have 4 numbers, got 3"),
        ({"packed": PACKED._replace(weight_shape=(4, 20, 3, 0))}, "weight_shape must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"padding": (0, -1)}, "padding must be at least 0, got -1"),
        ({"dilation": (1, 0)}, "dilation must be at least 1, got 0"),
        ({"groups": 3}, "groups must divide the 4 filters, got 3"),
        ({"groups": 2}, "x must have 40 channels, got (1, 20, 5, 5)"),
        ({"x": torch.zeros(1, 20, 2, 9)}, "x must be at least as large as the kernel, got (1, 20, 2, 9)"),
        ({"dilation": 3}, "x must be at least as large as the kernel, got (1, 20, 5, 5)"),
        ({"x": torch.zeros(1, 20, 5, 5).double()}, "x must be float32, got float64"),
        (
            {"packed": PACKED._replace(values=PACKED.values.double())},
            "values must be float32, bfloat16 or float16, got",
        ),
        ({"packed": PACKED._replace(values=PACKED.values[None])}, "values must have 1 dimension, got (1, 720)"),
        ({"packed": PACKED._replace(columns=PACKED.columns.int())}, "columns must be uint8, got int32"),
        ({"packed": PACKED._replace(columns=PACKED.columns[1:])}, "columns must have 720 elements, got 719"),
        ({"packed": PACKED._replace(starts=PACKED.starts.long())}, "starts must be int32, got int64"),
        ({"packed": PACKED._replace(starts=PACKED.starts[1:])}, "starts must have 9 elements, got 8"),
        ({"bias": torch.zeros(3)}, "bias must have shape (4,), got (3,)"),
        ({"bias": torch.zeros(4).double()}, "bias must have the dtype of x, float32, got float64"),
        ({"activation": "tanh"}, "activation must be none, relu or relu6, got tanh"),
        ({"addend": torch.zeros(4, 3, 3)}, "addend must have shape (1, 4, 3, 3), got (4, 3, 3)"),
        ({"addend": torch.zeros(1, 4, 1, 1)}, "addend must have shape (1, 4, 3, 3), got (1, 4, 1, 1)"),
        ({"addend": torch.zeros(1, 4, 3, 3).half()}, "addend must have the dtype of x, float32, got float16"),
    ],
)
def test_messages(arguments: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=f"^sparse_conv2d: {re.escape(rule)}"):
        call(**arguments)


def test_has_no_gradient() -> None:
    with pytest.raises(ValueError, match=r"^sparse_conv2d: x must not require a gradient, for there is none"):
        call(torch.zeros(1, 20, 5, 5, requires_grad=True))
    addend = torch.zeros(1, 4, 3, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"^sparse_conv2d: addend must not require a gradient, for there is none"):
        call(addend=addend)
    with torch.no_grad():
        call(torch.zeros(1, 20, 5, 5, requires_grad=True), addend=addend)
    assert crest_ext.sparse_conv2d is sparse_conv2d
