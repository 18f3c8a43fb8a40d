"""Every CUDA kernel, run on the CPU, equals plain torch and shows no fault: all dtypes, odd shapes, thread orders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from host import DTYPES, FORWARD, RANDOM, REVERSE, Case, Driver
from torch import Tensor

import crest_ext
from crest_ext import reference
from depthwise import ACTIVATIONS, Call, calls, pool_calls, separable_calls, stem_calls
from samples import CONVOLUTIONS, OPTIONS, SAMPLES
from spectra import of_spectrum

NAN = float("nan")
# Around packs of 2, 4 and 8, a warp, the small blocks' 2 x 32 threads with packs, and a block of 256.
LENGTHS = [1, 2, 3, 4, 7, 8, 9, 31, 32, 33, 63, 65, 127, 129, 257, 600, 2049]
# n: both kinds of masked_linear, the edges of tiles. m, k: the edges of tiles and slices, packs or not, no inputs.
PRODUCTS = [
    *((1, m, k) for m, k in [(1, 1), (3, 0), (9, 8), (17, 33), (5, 264)]),
    *((n, 10, 40) for n in (2, 7, 8, 9)),
    *((n, m, k) for n in (9, 32, 33) for m, k in [(1, 1), (64, 32), (65, 31), (12, 100), (68, 36), (3, 0)]),
    (70, 33, 300),
]


@dataclass
class Sample:
    """A case, with what its arrays must be afterwards: exactly, or within a tolerance for each element."""

    case: Case
    # By number of the array, or computed from all arrays as they came out; the others must not change.
    expected: dict[int, Tensor | Callable[..., Tensor]]
    tolerance: dict[int, Tensor] = field(default_factory=dict)


def some(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def mask(*shape: int, density: float = 0.5) -> Tensor:
    return torch.rand(*shape).lt(density)


def rounding(dtype: torch.dtype, expected: Tensor) -> Tensor:
    """What storing a number in `dtype` may add."""
    info = torch.finfo(dtype)
    return expected.abs() * info.eps + info.smallest_normal * info.eps


def apply_mask(dtype: torch.dtype) -> Iterator[Sample]:
    for n in LENGTHS:
        weight, keep = some(n, dtype=dtype), mask(n)
        weight[::3] = NAN
        yield Sample(
            Case("apply_mask", dtype, (n,), [weight, keep, torch.empty_like(weight)]),
            {2: reference.apply_mask(weight, keep)},
        )


def prune_splice(dtype: torch.dtype) -> Iterator[Sample]:
    for n in LENGTHS:
        for low, high in ((0.5, 1.0), (0.75, 0.75)):
            weight, keep = some(n, dtype=dtype), mask(n)
            weight[::5], weight[1::5], weight[2::5] = NAN, low, -high
            expected = keep.clone()
            reference.prune_splice_(weight, expected, low, high)
            yield Sample(Case("prune_splice", dtype, (n,), [weight, keep], (low, high)), {1: expected})


# (outer, count, inner): runs for a warp and for a block, columns of one and several blocks, folded or not; no numbers.
GROUPED = [(1, 9, 3), (1, 3, 1100), (1, 1, 33), (5, 7, 1), (40, 33, 1), (70, 3, 9), (3, 1, 65), (1, 3, 0), (0, 3, 2)]


def grouped(dtype: torch.dtype) -> Iterator[tuple[tuple[int, int, int], Tensor, Tensor]]:
    """Sizes, a weight of them, and room for its sums: the kernels' own, so what is left there is not compared."""
    for sizes in GROUPED:
        weight = some(*sizes, dtype=dtype)
        if sizes[1] > 2 and weight.numel():
            weight[0, 1, 0] = NAN
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        yield sizes, weight, torch.full((4 * sizes[1] * max(sizes[2], 1),), NAN, dtype=wide)


def anything(number: int) -> Callable[..., Tensor]:
    return lambda *arrays: arrays[number]


def group_norms(dtype: torch.dtype) -> Iterator[Sample]:
    for sizes, weight, sums in grouped(dtype):
        expected = weight.double().square().sum((0, 2)).sqrt()
        arrays = [weight, torch.empty(sizes[1], dtype=dtype), sums]
        tolerance = {1: 8 * torch.finfo(sums.dtype).eps * expected + rounding(dtype, expected)}
        yield Sample(Case("group_norms", dtype, sizes, arrays), {1: expected, 2: anything(2)}, tolerance)


def group_soft_threshold(dtype: torch.dtype) -> Iterator[Sample]:
    for sizes, weight, sums in grouped(dtype):
        if not weight.numel():
            continue  # nothing is launched
        for l1 in (0.0, 0.4):
            x = weight.double()
            x = torch.where(x.abs() <= l1, 0, x - l1 * x.sign())
            norms = x.square().sum((0, 2), keepdim=True).sqrt()
            threshold = 1.001 * norms.nan_to_num().median().item()
            expected = x * torch.where(norms <= threshold, 0, 1 - threshold / norms)
            # The factor loses digits where the norm is close to the threshold.
            slack = 32 * torch.finfo(sums.dtype).eps * (weight.double().abs() + 1) + rounding(dtype, expected)
            case = Case("group_soft_threshold", dtype, sizes, [weight, sums], (threshold, l1))
            yield Sample(case, {0: expected, 1: anything(1)}, {0: slack})


def mask_of(keep: Tensor, low: float, high: float, update: bool) -> Callable[..., Tensor]:
    """The updated mask of the weight that was stored: its rounding can move it across a threshold."""

    def mask(stored: Tensor, *_: Tensor) -> Tensor:
        updated = keep.clone()
        if update:
            reference.prune_splice_(stored, updated, low, high)
        return updated

    return mask


def sgd_prune_splice(dtype: torch.dtype) -> Iterator[Sample]:
    low, high = 0.5, 1.0
    for n in LENGTHS:
        for update in (True, False):
            weight, grad, buffer, keep = *(some(n, dtype=dtype) for _ in range(3)), mask(n)
            weight[::7] = NAN
            w, g, b = (a.to(torch.float64, copy=True) for a in (weight, grad, buffer))
            reference.sgd_prune_splice_(w, g, b, keep, 0.1, 0.9, 0.01, low, high, update_mask=False)

            numbers = (0.1, 0.9, 0.01, low, high, float(update))
            case = Case("sgd_prune_splice", dtype, (n,), [weight, grad, buffer, keep], numbers)
            # A few roundings of sums whose terms are about as large as the result or 2.
            slack = {i: 4 * rounding(dtype, x.abs().nan_to_num() + 2) for i, x in ((0, w), (2, b))}
            yield Sample(case, {0: w, 2: b, 3: mask_of(keep, low, high, update)}, slack)


def products(dtype: torch.dtype) -> Iterator[tuple[int, int, int, Tensor]]:
    """(n, m, k) and a mask; the last samples' masks keep nothing, everything, and whole rows."""
    for n, m, k in PRODUCTS:
        yield n, m, k, mask(m, k, density=0.3)
    for keep in (
        torch.zeros(33, 72, dtype=torch.bool),
        torch.ones(33, 72, dtype=torch.bool),
        mask(33, 1).expand(33, 72),
    ):
        for n in (1, 6, 40):
            yield n, 33, 72, keep


def product(op: str, dtype: torch.dtype, sizes: tuple[int, int, int], arrays: list[Tensor | None],
            multiply: Callable[..., Tensor], terms: int) -> Sample:  # fmt: skip
    """The last of `arrays` becomes multiply(the others): sums of `terms` products, kept in float32 or float64."""
    wide = [a.double() if a is not None and a.is_floating_point() else a for a in arrays[:-1]]
    expected = multiply(*wide)
    sizes_of_terms = multiply(*(a.abs() if a is not None and a.is_floating_point() else a for a in wide))
    accumulator = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = (terms + 2) * accumulator.eps * sizes_of_terms + rounding(dtype, expected)
    last = len(arrays) - 1
    return Sample(Case(op, dtype, sizes, arrays), {last: expected}, {last: tolerance})


def masked_linear(dtype: torch.dtype) -> Iterator[Sample]:
    def multiply(x: Tensor, weight: Tensor, keep: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, torch.where(keep, weight, 0), bias)

    for i, (n, m, k, keep) in enumerate(products(dtype)):
        weight, bias = some(m, k, dtype=dtype), some(m, dtype=dtype) if i % 3 else None
        weight[~keep] = NAN
        arrays = [some(n, k, dtype=dtype), weight, keep, bias, torch.empty(n, m, dtype=dtype)]
        yield product("masked_linear", dtype, (n, m, k), arrays, multiply, k)


def masked_linear_grad_x(dtype: torch.dtype) -> Iterator[Sample]:
    def multiply(grad: Tensor, weight: Tensor, keep: Tensor) -> Tensor:
        return grad @ torch.where(keep, weight, 0)

    for n, m, k, keep in [*products(dtype), (9, 0, 5, mask(0, 5))]:
        if k == 0:
            continue  # an empty result: nothing is launched
        weight = some(m, k, dtype=dtype)
        weight[~keep] = NAN
        arrays = [some(n, m, dtype=dtype), weight, keep, torch.empty(n, k, dtype=dtype)]
        yield product("masked_linear_grad_x", dtype, (n, m, k), arrays, multiply, m)


def masked_linear_grad_weight(dtype: torch.dtype) -> Iterator[Sample]:
    def multiply(grad: Tensor, x: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, grad.t() @ x, 0)

    for n, m, k, keep in [*products(dtype), (0, 9, 5, mask(9, 5))]:
        if k == 0:
            continue
        arrays = [some(n, m, dtype=dtype), some(n, k, dtype=dtype), keep, torch.empty(m, k, dtype=dtype)]
        yield product("masked_linear_grad_weight", dtype, (n, m, k), arrays, multiply, n)


# The edges of a slice, a block, a tile; one row of x and several.
PACKED = [(1, 1, 1), (3, 16, 128), (1, 17, 129), (9, 300, 40), (2, 5, 300)]


def sparse_linear(dtype: torch.dtype) -> Iterator[Sample]:
    """`dtype` is that of the weight; x and y are float32."""
    if dtype == torch.float64:
        return
    for i, (n, m, k) in enumerate(PACKED):
        for density in (0.0, 0.1, 1.0):
            weight, activation = torch.where(mask(m, k, density=density), some(m, k, dtype=dtype), 0), i % 3
            *packed, _, _ = crest_ext.pack_sparse(weight, dtype)
            x, bias = torch.randn(n, k), torch.randn(m) if i % 3 else None
            blocks = -(-m // 256)
            sizes = (n, m, k, blocks, -(-m // blocks // 16) * 16, -(-k // 128), activation)
            expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
            expected = reference.activate(expected, ACTIVATIONS[activation])
            terms = x.abs().double() @ weight.abs().double().t() + (0 if bias is None else bias.abs())
            arrays = [x, *packed, bias, torch.empty(n, m)]
            yield Sample(
                Case("sparse_linear", dtype, sizes, arrays), {7: expected}, {7: (k + 3) * torch.finfo().eps * terms}
            )


def depthwise_conv2d(dtype: torch.dtype) -> Iterator[Sample]:
    """With both of its gradients."""
    for call in calls(dtype):
        last = len(call.arrays) - 1
        case = Case(call.op, dtype, [int(size) for size in call.sizes], call.arrays)
        yield Sample(case, {last: call.expected}, {last: call.tolerance})


def local_response_norm(dtype: torch.dtype) -> Iterator[Sample]:
    if dtype != torch.float32:
        return
    for x, size, alpha, *rest in SAMPLES["local_response_norm"](dtype, "cpu"):
        if not x.numel():
            continue
        n, c, beta, k = *x.shape[:2], *(rest or (0.75, 1.0))
        expected = reference.local_response_norm(x.double(), size, alpha, beta, k)
        sizes = (n, c, x.numel() // (n * c), size // 2, (size - 1) // 2)
        arrays = [x.contiguous(), torch.empty(x.shape)]
        case = Case("local_response_norm", dtype, sizes, arrays, (alpha / size, k))
        yield Sample(case, {1: expected}, {1: 8 * torch.finfo().eps * expected.abs()})


def separable_conv2d(dtype: torch.dtype) -> Iterator[Sample]:
    yield from inference(separable_calls(), dtype)


def max_pool2d(dtype: torch.dtype) -> Iterator[Sample]:
    yield from inference(pool_calls(), dtype)


def stem_conv2d(dtype: torch.dtype) -> Iterator[Sample]:
    yield from inference(stem_calls(), dtype)


def inference(found: Iterable[Call], dtype: torch.dtype) -> Iterator[Sample]:
    """Of ops that take float32 and nothing else; the result is the last array."""
    for call in found if dtype == torch.float32 else ():
        case, y = Case(call.op, dtype, [int(size) for size in call.sizes], call.arrays), len(call.arrays) - 1
        yield Sample(case, {y: call.expected}, {y: call.tolerance})


def sparse_conv2d(dtype: torch.dtype) -> Iterator[Sample]:
    """`dtype` is that of the weight; x and y are float32."""
    if dtype == torch.float64:
        return
    for i, (x_shape, weight_shape, options) in enumerate(CONVOLUTIONS):
        weight = torch.where(mask(*weight_shape, density=0.3), some(*weight_shape, dtype=dtype), 0)
        *packed, _ = crest_ext.pack_sparse_conv2d(weight, dtype)
        stride, padding, dilation, groups = (options.get(o, d) for o, d in zip(OPTIONS, (1, 0, 1, 1), strict=True))
        pairs = [
            v for value in (stride, padding, dilation) for v in (value if isinstance(value, tuple) else [value] * 2)
        ]
        x, bias, activation = torch.randn(x_shape), torch.randn(weight_shape[0]) if i % 2 else None, i % 3

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any] = options) -> Tensor:
            return torch.nn.functional.conv2d(x, weight, bias, **options)

        wide = None if bias is None else bias.double()
        expected = convolve(x.double(), weight.double(), wide)
        terms = convolve(x.double().abs(), weight.double().abs(), None if wide is None else wide.abs())
        sizes = (*x_shape, weight_shape[0], *expected.shape[2:], *weight_shape[2:], *pairs, groups, activation)
        addend = torch.randn(expected.shape) if i % 4 > 1 else None
        if addend is not None:
            expected, terms = expected + addend, terms + addend.abs()
        arrays = [x, *packed, bias, torch.empty(expected.shape), addend]
        yield Sample(
            Case("sparse_conv2d", dtype, sizes, arrays),
            {5: reference.activate(expected, ACTIVATIONS[activation])},
            {5: (weight[0].numel() + 3) * torch.finfo().eps * terms},
        )


# (r, c, k) and spectra of a batch: each size of block, tall and wide, in shared memory all, the columns or nothing.
SVDS = [
    ((54, 54, 54), ["all equal"]),
    ((37, 290, 3), ["geometric"]),
    ((130, 33, 30), ["rank 5"]),
    ((36, 38, 7), ["forty equal"]),
    ((40, 23, 23), ["steps of twenty"]),
    ((9, 70, 9), ["steps of twenty", "zero"]),
    ((16, 16, 16), ["rank 5", "geometric", "small"]),
    ((5, 3, 3), ["1/i", "zero", "rank 5"]),
    ((3, 9, 2), ["flat", "all equal", "large"]),
    ((1, 1, 1), ["flat", "zero"]),
]


def truncated_svd(dtype: torch.dtype) -> Iterator[Sample]:
    if dtype not in (torch.float32, torch.float64):
        return
    for (r, c, k), spectra in SVDS:
        yield factors(torch.stack([of_spectrum(r, c, spectrum, dtype) for spectrum in spectra]), k)
    # Exact zeros, and columns of nothing but rounding: their directions are made up.
    holes = some(2, 12, 17, dtype=dtype)
    holes[:, 2:9], holes[1, :, ::2] = 0, 0
    yield factors(torch.cat([holes, torch.ones(1, 12, 17, dtype=dtype)]), 12)


def decomposition(a: Tensor, k: int, sweeps: int = 40) -> Case:
    n, r, c = a.shape
    q = min(r, c)
    factors = [a.new_full((n, *shape), NAN) for shape in ((r, k), (k,), (k, c))]
    work = a.new_full((n * q * (2 * q + 1 + (max(r, c) | 1)),), NAN)
    arrays = [a, *factors, torch.full((n,), -1, dtype=torch.int8), work]
    return Case("truncated_svd", a.dtype, (n, r, c, k, sweeps), arrays)


def factors(a: Tensor, k: int) -> Sample:
    values, eps = torch.linalg.svdvals(a.double()), torch.finfo(a.dtype).eps
    expected: dict[int, Tensor | Callable[..., Tensor]] = {
        0: of_factors,
        1: lambda *arrays: polar(arrays[1]),
        2: values[:, :k],
        3: lambda *arrays: polar(arrays[3]),
        4: torch.zeros(len(a), dtype=torch.int8),
        5: anything(5),
    }
    slack, orthonormal = 16 * eps * values[:, :1], torch.tensor(32 * eps)
    return Sample(decomposition(a, k), expected, {0: slack.unsqueeze(-1), 1: orthonormal, 2: slack, 3: orthonormal})


def polar(u: Tensor) -> Tensor:
    """The orthonormal matrix next to u."""
    left, _, right = torch.linalg.svd(u.double(), full_matrices=False)
    return left @ right


def of_factors(*arrays: Tensor | None) -> Tensor:
    """u diag(s) vh, and of a what is orthogonal to both u and vh: all of a, if these are its factors."""
    a, u, s, vh = (x.double() for x in arrays[:4] if x is not None)
    rest = a - u @ (u.mT @ a)
    return u * s.unsqueeze(-2) @ vh + rest - rest @ vh.mT @ vh


OPS = [apply_mask, prune_splice, sgd_prune_splice, masked_linear, masked_linear_grad_x, masked_linear_grad_weight]
OPS += [group_norms, group_soft_threshold, sparse_linear, sparse_conv2d, depthwise_conv2d, separable_conv2d]
OPS += [local_response_norm, max_pool2d, stem_conv2d, truncated_svd]


def check(driver: Driver, samples: list[Sample]) -> None:
    for sample, arrays in zip(samples, driver(*(s.case for s in samples)), strict=True):
        for i, (before, after) in enumerate(zip(sample.case.arrays, arrays, strict=True)):
            if before is None:
                continue
            expected = sample.expected.get(i, before)
            expected = expected if isinstance(expected, Tensor) else expected(*arrays)
            tolerance = sample.tolerance.get(i, torch.zeros(()))
            where = f"array {i} of {replace(sample.case, arrays=[])}"
            assert torch.equal(after.isnan(), expected.isnan()), where
            excess = (after.double() - expected.double()).abs() - tolerance
            assert not (excess > 0).any(), f"{where}: {excess.nan_to_num().max()} over the tolerance"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_equals_reference(op: Callable[[torch.dtype], Iterator[Sample]], dtype: torch.dtype, checked: Driver) -> None:
    """As launched, and from memory off the 16-byte boundaries that packs need."""
    samples = list(op(dtype))
    shifted = [replace(s, case=replace(s.case, offset=1)) for s in samples]
    check(checked, samples + shifted)


@pytest.mark.parametrize("order", [FORWARD, REVERSE, RANDOM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_small_blocks(
    op: Callable[[torch.dtype], Iterator[Sample]], dtype: torch.dtype, order: int, checked: Driver
) -> None:
    """Several blocks and turns on small shapes, whichever thread runs first."""
    check(checked, [replace(s, case=replace(s.case, small=True, order=order)) for s in op(dtype)])


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_no_races(op: Callable[[torch.dtype], Iterator[Sample]], small: bool, race: Driver) -> None:
    check(race, [replace(s, case=replace(s.case, small=small, order=RANDOM)) for s in op(torch.float32)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_no_races_in_other_types(dtype: torch.dtype, race: Driver) -> None:
    """Bytes of neighbours in one pack or word."""
    check(race, [sample for op in OPS for sample in list(op(dtype))[-8:]])


@pytest.mark.parametrize("small", [True, False])
def test_truncated_svd_says_what_it_could_not_do(small: bool, checked: Driver) -> None:
    found, not_found, not_finite = range(3)
    a = torch.randn(6, 7, 9)
    a[1, 6, 8], a[3, 0, 0], a[5, 3, 3] = NAN, float("inf"), -float("inf")
    [[_, u, s, vh, state, _]] = checked(replace(decomposition(a, 7), small=small))
    finite = torch.tensor([found, not_finite] * 3, dtype=torch.int8)
    assert torch.equal(state, finite)
    for result in (u, s, vh):
        assert not result[::2].isnan().any()
        assert result[1::2].isnan().all()
    if small:  # the launcher's blocks take as many sweeps as they need
        [[*_, state, _]] = checked(replace(decomposition(torch.randn(2, 9, 9), 3, sweeps=1), small=True))
        assert state.tolist() == [not_found, not_found]
