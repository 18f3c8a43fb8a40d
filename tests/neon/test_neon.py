"""The aarch64 kernels: cross-compiled with every warning an error, run under qemu, compared with the reference."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crest_ext import pack_sparse, pack_sparse_conv2d, reference
from depthwise import ACTIVATIONS, calls, pool_calls, separable_calls, stem_calls
from driver import KERNELS, Case, call, defined_elsewhere, kernel_flags
from samples import CONVOLUTIONS, DTYPES, OPTIONS, SAMPLES
from spectra import of_spectrum

Run = Callable[[Sequence[Case]], list[list[Tensor | None]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    native = platform.machine() == "aarch64"
    compiler, emulator = ("g++", None) if native else ("aarch64-linux-gnu-g++", "qemu-aarch64")
    for tool in filter(None, (compiler, emulator)):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    folder = tmp_path_factory.mktemp("neon")
    program = folder / "driver"
    flags = [*kernel_flags("neon"), "-fPIC", "-Wall", "-Wextra", "-Werror"]

    def compiled(source: Path) -> Path:
        to = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, "-c", source, "-o", to], check=True)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*KERNELS, Path(__file__).parent / "driver.cpp"]))
    assert defined_elsewhere("neon", objects[:-1]) == []
    subprocess.run([compiler, "-static", *objects, "-o", program], check=True)
    return partial(call, [emulator, program] if emulator else [program], folder)


def apply_mask(weight: Tensor, mask: Tensor, straight_through: bool = False) -> Case:
    return Case("apply_mask", weight.dtype, [weight.numel()], [weight, mask, torch.empty_like(weight)])


def prune_splice_(weight: Tensor, mask: Tensor, *numbers: float) -> Case:
    return Case("prune_splice_", weight.dtype, [weight.numel()], [weight, mask], numbers)


def sgd_prune_splice_(weight: Tensor, grad: Tensor, buffer: Tensor, mask: Tensor, *numbers: float) -> Case:
    arrays = [weight, grad, buffer, mask]
    return Case("sgd_prune_splice_", weight.dtype, [weight.numel()], arrays, [float(x) for x in numbers])


CASES = {f.__name__: f for f in (apply_mask, prune_splice_, sgd_prune_splice_)}


def contiguous(args: tuple[Any, ...], dtype: torch.dtype | None = None) -> list[Any]:
    """Copies, the floating tensors in `dtype`."""

    def one(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        return a.to(dtype if a.is_floating_point() else None, copy=True).contiguous()

    return [one(a) for a in args]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", CASES)
def test_equals_reference(run: Run, op: str, dtype: torch.dtype) -> None:
    """In `dtype` against the reference in float64, over the samples that every op is tested on."""
    samples = list(SAMPLES[op](dtype, "cpu"))
    got = run([CASES[op](*contiguous(args)) for args in samples])
    for args, arrays in zip(samples, got, strict=True):
        expected = contiguous(args, torch.float64)
        result = getattr(reference, op)(*expected)
        written = [a for a in [*expected, result] if isinstance(a, Tensor)]
        for e, g in zip(written, arrays, strict=True):
            assert g is not None
            if g.dtype == torch.bool and op == "sgd_prune_splice_":
                e = args[3].clone()
                if args[-1]:
                    reference.prune_splice_(arrays[0], e, *args[-3:-1])  # of the weight as it was rounded
                assert torch.equal(g, e)
                continue
            tolerance = 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(g.to(e.dtype), e, rtol=tolerance, atol=tolerance)


# (outer, count, inner): runs, columns of one block and of several, no numbers.
GROUPED = [(1, 9, 3), (1, 3, 133), (5, 7, 1), (17, 33, 5), (600, 130, 1), (3, 1, 65), (1, 3, 0), (0, 3, 2)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups(run: Run, dtype: torch.dtype) -> None:
    cases, expected = [], []
    for sizes in GROUPED:
        weight = torch.randn(sizes).to(dtype)
        x = weight.double()
        norms = x.square().sum((0, 2)).sqrt()
        cases.append(Case("group_norms", dtype, sizes, [weight, torch.empty(sizes[1], dtype=dtype)]))
        expected.append(norms)
        if not weight.numel():
            continue
        x = torch.where(x.abs() <= 0.3, 0, x - 0.3 * x.sign())
        norms = x.square().sum((0, 2), keepdim=True).sqrt()
        threshold = 0.99 * norms.median().item()
        cases.append(Case("group_soft_threshold", dtype, sizes, [weight], (threshold, 0.3)))
        expected.append(x * torch.where(norms <= threshold, 0, 1 - threshold / norms))
    for case, arrays, e in zip(cases, run(cases), expected, strict=True):
        got = arrays[1] if case.op == "group_norms" else arrays[0]
        assert got is not None
        tolerance = 50 * torch.finfo(dtype).eps if dtype.itemsize > 2 else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(got.double(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", range(len(ACTIVATIONS)))
def test_sparse_linear(run: Run, activation: int, dtype: torch.dtype) -> None:
    """Without panels and with a panel of each width, over the edges of slices, blocks and tiles."""
    cases, expected = [], []
    for n in (1, 2, 5, 9, 20, 70):
        for m, k, density in ((17, 129, 0.2), (300, 40, 0.3), (5, 3, 1.0), (4, 9, 0.0)):
            weight = torch.where(torch.rand(m, k) < density, torch.randn(m, k), 0)
            x, bias, (*packed, _, _) = torch.randn(n, k), torch.randn(m), pack_sparse(weight, dtype)
            blocks, last = -(-m // 256), next(w for w in (8, 16, 32, 64) if w >= (n - 1) % 64 + 1)
            sizes = [
                n,
                m,
                k,
                blocks,
                -(-m // blocks // 16) * 16,
                -(-k // 128),
                activation,
                ((n - 1) // 64 * 64 + last) * k,
            ]
            cases.append(Case("sparse_linear", dtype, sizes, [x, *packed, bias, torch.zeros(n, m)]))
            y = torch.nn.functional.linear(x, weight.to(dtype).float(), bias)
            expected.append(reference.activate(y, ACTIVATIONS[activation]))
    for arrays, e in zip(run(cases), expected, strict=True):
        torch.testing.assert_close(arrays[-1], e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sparse_conv2d(run: Run, dtype: torch.dtype) -> None:
    cases, expected = [], []
    for i, (x_shape, weight_shape, options) in enumerate(CONVOLUTIONS):
        weight = torch.where(torch.rand(weight_shape) < 0.3, torch.randn(weight_shape), 0)
        x, bias, (*packed, _) = torch.randn(x_shape), torch.randn(weight_shape[0]), pack_sparse_conv2d(weight, dtype)
        y = torch.nn.functional.conv2d(x, weight.to(dtype).float(), bias, **options)
        stride, padding, dilation, groups = (options.get(o, d) for o, d in zip(OPTIONS, (1, 0, 1, 1), strict=True))
        pairs = [v for p in (stride, padding, dilation) for v in (p if isinstance(p, tuple) else [p] * 2)]
        keeps_size = stride == 1 and y.shape[2:] == x.shape[2:]
        for added, in_planes in ((0, 0), (1, 0), *([(0, 1), (1, 1)] if keeps_size else [])):
            shapes = [*x_shape, weight_shape[0], *y.shape[2:], *weight_shape[2:]]
            sizes = [*shapes, *pairs, groups, i % 3, added, in_planes]
            addend, empty = torch.randn(y.shape), torch.full(y.shape, float("nan"))
            cases.append(Case("sparse_conv2d", dtype, sizes, [x, *packed, bias, empty, addend]))
            all_of = y + added * addend
            expected.append(reference.activate(all_of, ACTIVATIONS[i % 3]))
    for arrays, e in zip(run(cases), expected, strict=True):
        torch.testing.assert_close(arrays[5], e, rtol=1e-4, atol=1e-5)


def linear_case(op: str, args: tuple[Any, ...], few: bool) -> Case:
    first, second, mask, *rest = args
    n, (m, k) = first.shape[0], mask.shape
    bias = [rest[0] if rest else None] if op == "masked_linear" else []
    shape = {"masked_linear": (n, m), "masked_linear_grad_x": (n, k), "masked_linear_grad_weight": (m, k)}[op]
    arrays = [first, second, mask, *bias, torch.full(shape, float("nan"), dtype=first.dtype)]
    return Case(op, first.dtype, [n, m, k], arrays, [float(few)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["masked_linear", "masked_linear_grad_x", "masked_linear_grad_weight"])
def test_linear_equals_reference(run: Run, op: str, dtype: torch.dtype) -> None:
    """The kernel for few rows, where it takes them, and the sparse one; also beyond a tile of 64 columns."""
    own = {
        "masked_linear": ("nk", "mk"),
        "masked_linear_grad_x": ("nm", "mk"),
        "masked_linear_grad_weight": ("nm", "nk"),
    }
    samples = [contiguous(args) for args in SAMPLES[op](dtype, "cpu") if args[0].dim() == 2]
    for sizes in ({"n": 9, "m": 131, "k": 300}, {"n": 70, "m": 67, "k": 530}):
        shapes = ([sizes[letter] for letter in letters] for letters in own[op])
        samples.append([*(torch.randn(shape).to(dtype) for shape in shapes), torch.rand(sizes["m"], sizes["k"]) < 0.2])
    samples = [args for args in samples if all(a.numel() for a in args[:3])]
    calls = [(args, few) for args in samples for few in (False, True) if not few or len(args[0]) <= 32]
    assert {few for _, few in calls} == {False, True}
    for (args, _), arrays in zip(calls, run([linear_case(op, args, few) for args, few in calls]), strict=True):
        expected = getattr(reference, op)(*contiguous(tuple(args), torch.float64))
        got = arrays[-1]
        assert got is not None
        eps = torch.finfo(torch.float32 if got.element_size() == 2 else dtype).eps
        torch.testing.assert_close(got.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1000 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_singular_value_threshold(run: Run, dtype: torch.dtype) -> None:
    """From the Gram matrix, in float64 and float32, and by the search."""
    matrices = [of_spectrum(r, c, "1/i", dtype) for r, c in ((20, 33), (130, 110), (280, 270))]
    cases = [
        Case("singular_value_threshold", dtype, [1, *a.shape, min(*a.shape, 45)], [a, torch.empty_like(a)], [0.07])
        for a in matrices
    ]
    for a, (_, got) in zip(matrices, run(cases), strict=True):
        expected = reference.singular_value_threshold(a.double(), 0.07)
        assert got is not None
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_depthwise_equals_reference(run: Run, dtype: torch.dtype) -> None:
    """Forward pass and both gradients, in both memory formats."""
    made = list(calls(dtype))
    results = run([Case(c.op, dtype, [int(size) for size in c.sizes], c.arrays) for c in made])
    for c, arrays in zip(made, results, strict=True):
        got = arrays[-1]
        assert got is not None
        assert ((got.double() - c.expected).abs() <= c.tolerance).all()


def test_local_response_norm_equals_reference(run: Run) -> None:
    cases, expected = [], []
    for x, size, alpha, *rest in SAMPLES["local_response_norm"](torch.float32, "cpu"):
        if not x.numel():
            continue
        n, c, beta, k = *x.shape[:2], *(rest or (0.75, 1.0))
        expected.append(reference.local_response_norm(x.double(), size, alpha, beta, k).float())
        sizes = [n, c, x.numel() // (n * c), size // 2, (size - 1) // 2]
        arrays = [x.contiguous(), torch.empty(x.shape)]
        cases.append(Case("local_response_norm", torch.float32, sizes, arrays, (alpha / size, k)))
    for (_, got), e in zip(run(cases), expected, strict=True):
        torch.testing.assert_close(got, e)


def test_separable_stem_and_pooling_equal_reference(run: Run) -> None:
    made = [*separable_calls(), *stem_calls(), *pool_calls()]
    results = run([Case(c.op, torch.float32, [int(size) for size in c.sizes], c.arrays) for c in made])
    for c, arrays in zip(made, results, strict=True):
        got = arrays[-1]
        assert got is not None
        assert ((got.double() - c.expected).abs() <= c.tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_as_torch_rounds_them(run: Run, dtype: torch.dtype) -> None:
    """Every half read and written back; sums that fall on ties, between and beyond, rounded to torch's bits."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    kept = torch.ones_like(every, dtype=torch.bool)
    others = [every * 2.0**-k for k in (8, 9, 10, 11, 12, 13)] + [every, every[torch.randperm(1 << 16)]]
    cases = [sgd_prune_splice_(torch.zeros_like(every), b, every, kept, 0, 1, 0, 0, 0, 0) for b in others]
    (_, _, passed), *summed = run([apply_mask(every, kept), *cases])
    expected = [every, *((every.float() + (b.float() + 0)).to(dtype) for b in others)]
    for g, e in zip([passed, *(arrays[2] for arrays in summed)], expected, strict=True):
        assert g is not None
        assert torch.equal(g.isnan(), e.isnan())
        assert torch.equal(g[~e.isnan()].view(torch.int16), e[~e.isnan()].view(torch.int16))


def test_nan_keeps_its_mask(run: Run) -> None:
    mask = torch.tensor([True, False] * 17)
    for dtype in DTYPES:
        ((_, after),) = run([prune_splice_(torch.full((34,), float("nan"), dtype=dtype), mask, 0.0, 0.0)])
        assert after is not None
        assert torch.equal(after, mask)
