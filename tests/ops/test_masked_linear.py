"""What the generic tests of test_all.py cannot say of masked_linear and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import crest_ext
from crest_ext import _C, reference

# One (n, density) for each way a call can go: few rows, and those up to 32 with dense masks, are fused; others go to
# the sparse kernel with a panel's widths (16, 32, 64, several) or, with dense masks, to torch's product.
REGIMES = [
    (1, 0.5),
    (2, 0.1),
    (16, 1.0),
    (17, 0.1),
    (32, 0.7),
    (40, 0.3),
    (64, 0.1),
    (270, 0.05),
    (33, 0.0),
    (20, 0.9),
    (70, 1.0),
]
regimes = pytest.mark.parametrize(("n", "density"), REGIMES)
OPS = ["masked_linear", "masked_linear_grad_x", "masked_linear_grad_weight"]


def arguments(
    op: str, n: int, m: int, k: int, density: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    x, grad, weight = torch.randn(n, k, dtype=dtype), torch.randn(n, m, dtype=dtype), torch.randn(m, k, dtype=dtype)
    mask = torch.rand(m, k).lt(density)
    return {
        "masked_linear": (x, weight, mask, torch.randn(m, dtype=dtype)),
        "masked_linear_grad_x": (grad, weight, mask),
        "masked_linear_grad_weight": (grad, x, mask),
    }[op]


def check(op: str, args: tuple[Tensor, ...]) -> None:
    """Ours against the reference in float64."""
    got = getattr(crest_ext, op)(*args)
    expected = getattr(reference, op)(*(a.double() if a.is_floating_point() else a for a in args))
    assert got.dtype == args[0].dtype
    # Products are of order 1, so that partial sums reach the root of `terms`, and each addition rounds one.
    terms = args[0].shape[0] if op == "masked_linear_grad_weight" else args[0].shape[-1]
    eps = torch.finfo(torch.float32 if got.element_size() == 2 else got.dtype).eps
    torch.testing.assert_close(
        got.double(), expected, rtol=2 * torch.finfo(got.dtype).eps, atol=2 * eps * max(terms, 16)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", OPS)
@regimes
def test_equals_reference_over_tiles(op: str, n: int, density: float, dtype: torch.dtype, isa: str) -> None:
    """More rows and columns than a block of the kernels has, and neither a multiple of anything."""
    check(op, arguments(op, n, 131, 587, density, dtype))


@pytest.mark.parametrize("k", [8192, 8191])
def test_a_gradient_larger_than_the_caches(k: int) -> None:
    """It is written past them where its rows begin at cache lines: not so with an odd number of columns."""
    check("masked_linear_grad_weight", arguments("masked_linear_grad_weight", 33, 1030, k, 0.05))


sizes = st.integers(0, 40)


@settings(max_examples=60, deadline=None)
@given(op=st.sampled_from(OPS), n=st.integers(0, 90), m=sizes, k=sizes, density=st.floats(0, 1), isa=st.data())
def test_any_shape(op: str, n: int, m: int, k: int, density: float, isa: Any) -> None:
    before = _C.active_isa()
    _C.set_active_isa(isa.draw(st.sampled_from(_C.available_isas())))
    try:
        check(op, arguments(op, n, m, k, density))
    finally:
        _C.set_active_isa(before)


@regimes
def test_dropped_weights_are_never_seen(n: int, density: float, isa: str) -> None:
    x, weight, mask, bias = arguments("masked_linear", n, 37, 150, density)
    grad = torch.randn(n, 37)
    holes = weight.clone()
    holes[~mask] = torch.tensor([float("nan"), float("inf"), -float("inf")]).repeat(37 * 50)[: int((~mask).sum())]
    assert torch.equal(crest_ext.masked_linear(x, holes, mask, bias), crest_ext.masked_linear(x, weight, mask, bias))
    assert torch.equal(
        crest_ext.masked_linear_grad_x(grad, holes, mask), crest_ext.masked_linear_grad_x(grad, weight, mask)
    )


@regimes
def test_nan_in_x_reaches_kept_weights_and_no_other_row(n: int, density: float, isa: str) -> None:
    x, weight, mask, bias = arguments("masked_linear", n, 37, 150, density)
    expected = crest_ext.masked_linear(x, weight, mask, bias)
    x[n // 2, 7] = float("nan")
    got = crest_ext.masked_linear(x, weight, mask, bias)
    assert got[n // 2, mask[:, 7]].isnan().all()
    others = torch.arange(n) != n // 2
    assert torch.equal(got[others], expected[others])


@regimes
def test_dropped_gradients_are_zero(n: int, density: float, isa: str) -> None:
    grad, x, mask = arguments("masked_linear_grad_weight", n, 37, 150, density)
    x[0, 3] = float("nan")
    assert crest_ext.masked_linear_grad_weight(grad, x, mask)[~mask].eq(0).all()


@regimes
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_results(n: int, density: float, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        for op in OPS:
            torch.set_num_threads(threads)
            check(op, arguments(op, n, 300, 700, density))
    finally:
        torch.set_num_threads(before)


@regimes
def test_views(n: int, density: float, isa: str) -> None:
    """Transposed, strided and expanded arguments give what their contiguous copies give."""
    for op in OPS:
        args = arguments(op, n, 12, 30, density)
        expected = getattr(crest_ext, op)(*args)
        for view in (
            lambda a: a.t().contiguous().t() if a.dim() == 2 else a,
            lambda a: a.repeat(2, *[1] * (a.dim() - 1))[: a.shape[0]],
            lambda a: torch.stack([a, a], -1)[..., 0],
        ):
            assert torch.equal(getattr(crest_ext, op)(*map(view, args)), expected)


def test_batches() -> None:
    x, weight, mask, bias = arguments("masked_linear", 24, 5, 7, 0.3)
    flat = crest_ext.masked_linear(x, weight, mask, bias)
    assert torch.equal(crest_ext.masked_linear(x.view(2, 3, 4, 7), weight, mask, bias), flat.view(2, 3, 4, 5))
    torch.testing.assert_close(crest_ext.masked_linear(x[0], weight, mask, bias), flat[0])
    assert crest_ext.masked_linear(x.view(2, 3, 4, 7)[:, :0], weight, mask, bias).shape == (2, 0, 4, 5)
    grad = torch.randn(24, 5)
    assert torch.equal(
        crest_ext.masked_linear_grad_weight(grad.view(4, 6, 5), x.view(4, 6, 7), mask),
        crest_ext.masked_linear_grad_weight(grad, x, mask),
    )
    assert crest_ext.masked_linear_grad_weight(grad[0], x[0], mask).shape == (5, 7)


def loss(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, straight_through: bool) -> Tensor:
    return crest_ext.masked_linear(x, weight, mask, bias, straight_through).square().sum()


@regimes
def test_second_derivatives(n: int, density: float) -> None:
    x, weight, mask, bias = (
        a.requires_grad_() if a.is_floating_point() else a
        for a in arguments("masked_linear", n, 2, 3, density, torch.float64)
    )
    assert torch.autograd.gradgradcheck(lambda x, w, b: crest_ext.masked_linear(x, w, mask, b), (x, weight, bias))


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("needed", ["x", "weight", "bias"])
def test_only_needed_gradients_are_computed(needed: str, straight_through: bool) -> None:
    x, weight, mask, bias = arguments("masked_linear", 20, 5, 7, 0.3)
    values = {"x": x, "weight": weight, "bias": bias}
    values[needed].requires_grad_()
    with torch.profiler.profile() as profile:
        loss(x, weight, mask, bias, straight_through).backward()
    called = {event.key for event in profile.key_averages()}
    assert ("crest::masked_linear_grad_x" in called) == (needed == "x")
    assert ("crest::masked_linear_grad_weight" in called) == (needed == "weight" and not straight_through)
    assert values[needed].grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, isa: str) -> None:
    """Casts what F.linear casts, to the dtype that is asked for; gradients come back in the dtype of the arguments."""
    x, weight, mask, bias = (
        a.requires_grad_() if a.is_floating_point() else a for a in arguments("masked_linear", 20, 5, 7, 0.3)
    )
    with torch.autocast("cpu", dtype=dtype):
        got = crest_ext.masked_linear(x, weight, mask, bias)
        keywords = torch.ops.crest.masked_linear(x=x, weight=weight, mask=mask, bias=bias)
        assert F.linear(x, weight, bias).dtype == got.dtype == dtype
        assert crest_ext.masked_linear(x.double(), weight.double(), mask, bias.double()).dtype == torch.float64
    assert torch.equal(got, keywords)
    assert torch.equal(got, crest_ext.masked_linear(x.to(dtype), weight.to(dtype), mask, bias.to(dtype)))
    got.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


@pytest.mark.parametrize("n", [3, 20])
def test_compiles_whole_with_gradients(n: int) -> None:
    x, weight, mask, bias = arguments("masked_linear", n, 5, 7, 0.3)
    for straight_through in (False, True):
        grads = []
        for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
            values = [v.detach().requires_grad_() for v in (x, weight, bias)]
            with torch.autocast("cpu", enabled=n == 20):
                f(values[0], values[1], mask, values[2], straight_through).backward()
            grads.append([v.grad for v in values])
        for eager, compiled in zip(*grads, strict=True):
            torch.testing.assert_close(compiled, eager)


def test_exports_with_a_dynamic_batch() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(5, 7))
            self.register_buffer("mask", torch.rand(5, 7) < 0.3)

        def forward(self, x: Tensor) -> Tensor:
            return crest_ext.masked_linear(x, self.weight, self.mask)

    layer = Layer()
    program = torch.export.export(layer, (torch.randn(4, 7),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for n in (2, 16, 17, 100):
        x = torch.randn(n, 7)
        assert torch.equal(program.module()(x), layer(x))


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(*shape, dtype=dtype, device=device)


kept = zeros(5, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("", (zeros(()), zeros(5, 4), kept), r"x must have at least 1 dimension, got \(\)"),
        ("", (zeros(2, 4), zeros(4), kept), r"weight must have 2 dimensions, got \(4,\)"),
        ("", (zeros(2, 4), zeros(5, 3), kept), r"weight must have shape \(m, 4\), got \(5, 3\)"),
        ("", (zeros(2, 4), zeros(5, 4), kept.t()), r"mask must have the shape of weight, \(5, 4\), got \(4, 5\)"),
        ("", (zeros(2, 4), zeros(5, 4), kept, zeros(5, 1)), r"bias must have shape \(5,\), got \(5, 1\)"),
        ("", (zeros(2, 4), zeros(5, 4), kept, zeros(4)), r"bias must have shape \(5,\), got \(4,\)"),
        ("", (zeros(2, 4).int(), zeros(5, 4), kept), r"x must be float32, float64, bfloat16 or float16, got int32"),
        ("", (zeros(2, 4), zeros(5, 4).double(), kept), r"weight must have the dtype of x, float32, got float64"),
        ("", (zeros(2, 4), zeros(5, 4), kept.float()), r"mask must be bool, got float32"),
        ("", (zeros(2, 4), zeros(5, 4), kept, zeros(5).half()), r"bias must have the dtype of x, float32, got float16"),
        ("_grad_x", (zeros(()), zeros(5, 4), kept), r"grad must have at least 1 dimension, got \(\)"),
        ("_grad_x", (zeros(2, 5), zeros(5), kept), r"weight must have 2 dimensions, got \(5,\)"),
        ("_grad_x", (zeros(2, 5), zeros(4, 4), kept), r"weight must have shape \(5, k\), got \(4, 4\)"),
        ("_grad_x", (zeros(2, 5), zeros(5, 3), kept), r"mask must have the shape of weight, \(5, 3\), got \(5, 4\)"),
        ("_grad_x", (zeros(2, 5).bool(), zeros(5, 4), kept), r"grad must be float32, .* or float16, got bool"),
        (
            "_grad_x",
            (zeros(2, 5), zeros(5, 4).half(), kept),
            r"weight must have the dtype of grad, float32, got float16",
        ),
        ("_grad_x", (zeros(2, 5), zeros(5, 4), kept.int()), r"mask must be bool, got int32"),
        ("_grad_weight", (zeros(()), zeros(4), kept), r"grad must have at least 1 dimension, got \(\)"),
        ("_grad_weight", (zeros(2, 5), zeros(4), kept), r"x must have 2 dimensions like grad, got \(4,\)"),
        ("_grad_weight", (zeros(2, 5), zeros(2, 4), kept[0]), r"mask must have 2 dimensions, got \(4,\)"),
        ("_grad_weight", (zeros(2, 5), zeros(3, 4), kept), r"x must have shape \(2, k\), got \(3, 4\)"),
        ("_grad_weight", (zeros(6, 2, 5), zeros(6, 3, 4), kept), r"x must have shape \(6, 2, k\), got \(6, 3, 4\)"),
        ("_grad_weight", (zeros(2, 5), zeros(2, 3), kept), r"mask must have shape \(5, 3\), got \(5, 4\)"),
        ("_grad_weight", (zeros(2, 5).int(), zeros(2, 4), kept), r"grad must be float32, .* or float16, got int32"),
        (
            "_grad_weight",
            (zeros(2, 5), zeros(2, 4).half(), kept),
            r"x must have the dtype of grad, float32, got float16",
        ),
        ("_grad_weight", (zeros(2, 5), zeros(2, 4), kept.int()), r"mask must be bool, got int32"),
    ],
)
def test_errors(op: str, args: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^masked_linear{op}: {message}$"):
        getattr(crest_ext, f"masked_linear{op}")(*args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((zeros(4), zeros(5, 3, dtype=torch.int32), kept[:, :2]), "weight must have shape"),  # rank, shape,
        ((zeros(2, 4), zeros(5, 4).double(), kept.t()), "mask must have the shape"),  # then dtype
    ],
)
def test_shapes_are_checked_before_dtypes(args: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^masked_linear: {message}"):
        crest_ext.masked_linear(*args)
