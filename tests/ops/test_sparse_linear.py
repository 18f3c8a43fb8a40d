"""What the generic tests of test_all.py cannot say of sparse_linear, and the packing of its weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import crest_ext
from crest_ext import _C, PackedSparse, pack_sparse, reference, sparse_linear, unpack_sparse

# Without panels; then the widths of a panel, full and not; several panels.
ROWS = [1, 2, 3, 9, 17, 64, 150]
rows = pytest.mark.parametrize("n", ROWS)


def sparse(m: int, k: int, density: float) -> Tensor:
    return torch.where(torch.rand(m, k) < density, torch.randn(m, k), 0)


def check(weight: Tensor, n: int, dtype: torch.dtype = torch.float32) -> None:
    """Against the dense product in float64, within what float32 rounds in sums of as many terms."""
    x, bias, packed = torch.randn(n, weight.shape[1]), torch.randn(weight.shape[0]), pack_sparse(weight, dtype)
    rounded = weight.to(dtype).double()
    terms = x.double().abs() @ rounded.abs().t() + bias.double().abs()
    slack = torch.finfo().eps * (2 + rounded.count_nonzero(1)) * terms
    for activation in reference.ACTIVATIONS:
        got = sparse_linear(x, *packed, bias, activation)
        expected = F.linear(x.double(), rounded, bias.double())
        expected = reference.activate(expected, activation)
        assert got.dtype == torch.float32 and got.shape == expected.shape
        assert ((got - expected).abs() <= slack).all()


def only(w: Tensor, *, row: int = 0, column: int = 0) -> Tensor:
    kept = torch.zeros_like(w, dtype=torch.bool)
    kept[slice(row, row + 1) if row else ..., slice(column, column + 1) if column else ...] = True
    return torch.where(kept, w, 0)


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": torch.zeros_like,
    "everything": lambda w: w,
    "one weight": lambda w: only(w, row=5, column=200),
    "one row": lambda w: only(w, row=7),
    "one column": lambda w: only(w, column=130),
    "empty rows and columns": lambda w: w * (torch.arange(37)[:, None] % 3 > 0) * (torch.arange(261) % 5 > 0),
    "a diagonal": lambda w: w * torch.eye(*w.shape),
    "a full row among sparse ones": lambda w: torch.where(torch.rand_like(w) < 0.02, w, only(w, row=3)),
    "denormals": lambda w: torch.where(torch.rand_like(w) < 0.1, w * 1e-39, 0),
}


@rows
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str, n: int, isa: str) -> None:
    check(PATTERNS[pattern](torch.randn(37, 261)), n)


@rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_several_blocks(n: int, dtype: torch.dtype, isa: str) -> None:
    check(sparse(600, 300, 0.1), n, dtype)


@rows
def test_columns_past_sixteen_bits(n: int, isa: str) -> None:
    check(sparse(20, 70_001, 0.01), n)


sizes = st.integers(0, 300)


@settings(max_examples=80, deadline=None)
@given(n=st.integers(0, 80), m=sizes, k=sizes, density=st.floats(0, 1), isa=st.data())
def test_any_shape(n: int, m: int, k: int, density: float, isa: Any) -> None:
    before = _C.active_isa()
    _C.set_active_isa(isa.draw(st.sampled_from(_C.available_isas())))
    try:
        weight = sparse(m, k, density)
        pack_sparse(weight).check()
        check(weight, n)
    finally:
        _C.set_active_isa(before)


@rows
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite(n: int, value: float, isa: str) -> None:
    """Each output is the dense product's, or that without dropped weights; other rows of x never see it."""
    weight = sparse(37, 261, 0.1)
    packed, x = pack_sparse(weight), torch.randn(n, 261)
    clean = sparse_linear(x, *packed)
    x[n // 2, ::50] = value
    got = sparse_linear(x, *packed)
    dense = x[n // 2] @ weight.t()
    kept = torch.where(weight != 0, weight * x[n // 2], 0).sum(1)
    one = got[n // 2]
    assert (one.isnan() & dense.isnan() | torch.isclose(one, kept, atol=1e-4, equal_nan=True)).all()
    assert not one[kept.isfinite() & weight[:, ::50].any(1)].isfinite().any()
    others = torch.arange(n) != n // 2
    assert torch.equal(got[others], clean[others])


@rows
def test_not_finite_weights(n: int, isa: str) -> None:
    weight, x = sparse(20, 150, 0.2), torch.randn(n, 150).abs()
    weight[3, 7], weight[4, 8] = float("nan"), float("inf")
    y = sparse_linear(x, *pack_sparse(weight), activation="relu")
    assert y[:, 3].isnan().all()
    assert y[:, 4].isposinf().all()
    assert y[:, torch.arange(20).sub(3.5).abs() > 1].isfinite().all()


@rows
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_results(n: int, threads: int) -> None:
    packed, x, before = pack_sparse(sparse(1100, 300, 0.2)), torch.randn(n, 300), torch.get_num_threads()
    torch.set_num_threads(1)
    expected = sparse_linear(x, *packed)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(sparse_linear(x, *packed), expected)
    finally:
        torch.set_num_threads(before)


@rows
def test_views(n: int, isa: str) -> None:
    packed, x, bias = pack_sparse(sparse(40, 150, 0.2)), torch.randn(n, 150), torch.randn(40)
    expected = sparse_linear(x, *packed, bias)
    strided = [torch.stack([t, t], -1)[..., 0] for t in packed[:5]]
    assert torch.equal(sparse_linear(x.t().contiguous().t(), *packed, bias.repeat(2)[40:]), expected)
    assert torch.equal(sparse_linear(x, *strided, 40, 150, bias), expected)


def test_batches() -> None:
    packed, x = pack_sparse(sparse(5, 7, 0.5)), torch.randn(24, 7)
    flat = sparse_linear(x, *packed)
    assert torch.equal(sparse_linear(x.view(2, 3, 4, 7), *packed), flat.view(2, 3, 4, 5))
    torch.testing.assert_close(sparse_linear(x[0], *packed), flat[0])
    assert sparse_linear(x.view(2, 3, 4, 7)[:, :0], *packed).shape == (2, 0, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("m", "k"), [(0, 4), (4, 0), (1, 1), (16, 128), (17, 129), (300, 784), (513, 40)])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_packing(m: int, k: int, density: float, dtype: torch.dtype) -> None:
    weight = sparse(m, k, density)
    packed = pack_sparse(weight, dtype)
    packed.check()
    assert torch.equal(unpack_sparse(packed), weight.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(packed[:5], pack_sparse(weight, dtype)[:5], strict=True))
    # What is padded is little where slices can be even.
    if density == 0.05 and m == 300:
        assert packed.values.numel() < 1.15 * weight.count_nonzero()
        assert packed.nbytes < (packed.values.itemsize + 2.2) * weight.count_nonzero()


def test_packing_drops_negative_zero_and_underflow_and_keeps_nan() -> None:
    weight = torch.tensor([[-0.0, 1e-9, float("nan"), 1.0]])
    assert int(pack_sparse(weight).values.count_nonzero()) == 3
    assert int(pack_sparse(weight, torch.float16).values.count_nonzero()) == 2
    with pytest.raises(ValueError, match=r"^pack_sparse: weight must have 2 dimensions, got \(3,\)$"):
        pack_sparse(torch.ones(3))
    with pytest.raises(ValueError, match=r"^pack_sparse: weight must be floating, got torch.int64$"):
        pack_sparse(torch.ones(3, 3).long())
    with pytest.raises(
        ValueError, match=r"^pack_sparse: dtype must be float32, bfloat16 or float16, got torch.float64$"
    ):
        pack_sparse(torch.ones(3, 3), torch.float64)


def put(t: Tensor, at: int, value: int) -> Tensor:
    changed = t.clone()
    changed.view(-1)[at] = value
    return changed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("values", lambda t: t[:, :8], r"values must have shape \(\d+, 16\), got \(\d+, 8\)"),
        ("values", lambda t: t.double(), r"values must be float32, bfloat16 or float16, got torch.float64"),
        ("values", lambda t: t[0, 0], r"values must have shape .*"),
        ("columns", lambda t: t[1:], r"columns must have shape \(\d+, 16\), got \(\d+, 16\)"),
        ("columns", lambda t: t.int(), r"columns must be torch.uint8, got torch.int32"),
        ("columns", lambda t: put(t, 0, 128), "columns must lie within their tiles"),
        ("columns", lambda t: put(t, -1, 44), "columns must lie within their tiles"),  # 172 = 128 + 44
        ("rows", lambda t: put(t, 3, 160), "rows must be below 160"),
        ("rows", lambda t: put(t, 3, int(t.view(-1)[2])), "rows must not repeat one within a cell"),
        ("rows", lambda t: t[:-1], "steps must have shape .*"),
        ("steps", lambda t: t.long(), "steps must be torch.int32, got torch.int64"),
        ("steps", lambda t: put(t, 1, int(t[2]) + 1), r"steps must ascend from 0 to \d+"),
        ("steps", lambda t: put(t, -1, 2**31 - 1), r"steps must ascend from 0 to \d+"),
        ("steps", lambda t: put(t, 0, -1), r"steps must ascend from 0 to \d+"),
        ("slices", lambda t: put(t, 1, -5), r"slices must ascend from 0 to \d+"),
        ("slices", lambda t: put(t, -1, 1000), r"slices must ascend from 0 to \d+"),
        ("slices", lambda t: t[:-1], r"slices must have shape \(5,\), got \(4,\)"),
        ("out_features", lambda _: 700, r"slices must have shape \(7,\), got \(5,\)"),
        ("in_features", lambda _: 100, r"slices must have shape \(3,\), got \(5,\)"),
        ("in_features", lambda _: 140, "columns must lie within their tiles"),
    ],
)
def test_what_check_refuses(name: str, change: Any, message: str) -> None:
    packed = pack_sparse(sparse(300, 172, 0.3))
    with pytest.raises(ValueError, match=f"^PackedSparse: {message}$"):
        packed._replace(**{name: change(getattr(packed, name))}).check()


def test_check_refuses_a_slice_of_more_steps_than_a_tile_has_columns() -> None:
    packed = pack_sparse(torch.ones(16, 128))
    twice = [torch.cat([t, t]) for t in packed[:2]]
    with pytest.raises(ValueError, match=r"^PackedSparse: steps must be at most 128 in a slice$"):
        PackedSparse(*twice, packed.rows, packed.steps * 2, packed.slices, 16, 128).check()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_check_lets_pass_is_safe(data: Any) -> None:
    """Bytes changed at random: refused, or a result without a crash."""
    torch.manual_seed(0)
    packed = pack_sparse(sparse(70, 140, 0.1))
    name = data.draw(st.sampled_from(["columns", "rows", "steps", "slices"]))
    tensor = getattr(packed, name).clone()
    raw = tensor.view(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    changed = packed._replace(**{name: tensor})
    try:
        changed.check()
    except ValueError:
        return
    weight = unpack_sparse(changed)
    for n in (1, 20):
        x = torch.randn(n, 140)
        torch.testing.assert_close(sparse_linear(x, *changed), x @ weight.t(), rtol=1e-4, atol=1e-4)


x, good = torch.zeros(2, 40), pack_sparse(torch.ones(20, 40))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(()), *good), r"x must have at least 1 dimension, got \(\)"),
        ((x[:, :39], *good), r"x must have shape \(\.\.\., 40\), got \(2, 39\)"),
        ((x.double(), *good), "x must be float32, got float64"),
        ((x, good[0][:, :3], *good[1:]), r"values must have shape \(steps, 16\), got \(80, 3\)"),
        ((x, good[0].double(), *good[1:]), "values must be float32, bfloat16 or float16, got float64"),
        ((x, good[0].int(), *good[1:]), "values must be float32, float64, bfloat16 or float16, got int32"),
        ((x, good[0], good[1][1:], *good[2:]), r"columns must have 80 rows, got \(79, 16\)"),
        ((x, good[0], good[1].int(), *good[2:]), "columns must be uint8, got int32"),
        ((x, *good[:2], good[2][0], *good[3:]), r"rows must have 2 dimensions, got \(16,\)"),
        ((x, *good[:2], good[2][:, :3], *good[3:]), r"rows must have 16 columns, got \(2, 3\)"),
        ((x, *good[:3], good[3][1:], *good[4:]), r"steps must have 3 elements, got \(2,\)"),
        ((x, *good[:4], good[4].long(), *good[5:]), "slices must be int32, got int64"),
        ((x, *good[:5], 400, 40), r"slices must have 3 elements, got \(2,\)"),
        ((x, *good[:5], -1, 40), "out_features and in_features must not be negative, got -1 and 40"),
        ((x, *good, torch.zeros(19)), r"bias must have shape \(20,\), got \(19,\)"),
        ((x, *good, torch.zeros(20).half()), "bias must have the dtype of x, float32, got float16"),
        ((x, *good, None, "gelu"), "activation must be none, relu or relu6, got gelu"),
    ],
)
def test_errors(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^sparse_linear: {message}$"):
        crest_ext.sparse_linear(*args)


def test_has_no_gradient() -> None:
    wanted = x.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"^sparse_linear: x must not require a gradient, for there is none; .*$"):
        sparse_linear(wanted, *good)
    with torch.no_grad():
        assert not sparse_linear(wanted, *good).requires_grad


def test_exports_with_a_dynamic_batch() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sparse_linear(x, *good, None, "relu")

    program = torch.export.export(Layer(), (torch.randn(4, 40),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for n in (2, 16, 17, 100):
        x = torch.randn(n, 40)
        assert torch.equal(program.module()(x), sparse_linear(x, *good, None, "relu"))
