"""The largest singular values and their vectors, and soft-thresholding, against torch's and PROPACK's exact ways."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from crest_ext import reference, singular_value_threshold, truncated_svd
from timing import Function, compare

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # PROPACK's; its threads would spin into the times after it
# case: matrices, rows, columns, k
CASES = {
    "1024x1024, k=16": (1, 1024, 1024, 16),
    "1024x1024, k=64": (1, 1024, 1024, 64),
    "4096x1024, k=64": (1, 4096, 1024, 64),
    "64 x (256x256), k=16": (64, 256, 256, 16),
    "512 x (64x64), k=16": (512, 64, 64, 16),
}


def matrices(n: int, r: int, c: int, spectrum: str) -> Tensor:
    a = torch.randn(n, r, c)
    if spectrum == "1/i":
        u, v = (torch.linalg.qr(torch.randn(n, size, min(r, c)))[0] for size in (r, c))
        a = (u / torch.arange(1, min(r, c) + 1)) @ v.mT
    return a.squeeze(0)


def by_svd(a: Tensor, k: int) -> tuple[Tensor, ...]:
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    return u[..., :k], s[..., :k], vh[..., :k, :]


def by_eigh(a: Tensor, k: int) -> tuple[Tensor, ...]:
    """Not exact where values are small: the Gram matrix is in float32."""
    _, v = torch.linalg.eigh(a.mT @ a)
    v = v[..., -k:].flip(-1)
    w = a @ v
    s = torch.linalg.vector_norm(w, dim=-2)
    return w / s.unsqueeze(-2), s, v.mT


def propack(a: Tensor, k: int) -> Function | str:
    if a.dim() > 2:
        return "takes one matrix"
    try:
        from scipy.sparse.linalg import svds
    except ImportError as error:
        return f"{error.name} is not installed"
    return partial(svds, a.numpy(), k, solver="propack", tol=1e-6)


def rounds(n: int, r: int, c: int) -> int:
    return 5 if n * r * c > 1 << 20 else 9


@pytest.mark.parametrize("spectrum", ["1/i", "Gaussian"])
@pytest.mark.parametrize("case", CASES)
def bench_truncated_svd(benchmark: Any, case: str, spectrum: str) -> None:
    n, r, c, k = CASES[case]
    a = matrices(n, r, c, spectrum)
    ways: dict[str, Callable[..., Any]] = {"torch.linalg.svd": by_svd, "torch.linalg.eigh of A^T A": by_eigh}
    others = {name: partial(way, a, k) for name, way in ways.items()}
    compare(
        benchmark,
        partial(truncated_svd, a, k),
        others | {"scipy, PROPACK": propack(a, k)},
        group="truncated_svd, float32",
        case=f"{case}, {spectrum}",
        rounds=rounds(n, r, c),
    )
    u, s, vh = truncated_svd(a, k)
    expected = torch.linalg.svdvals(a.double())
    assert (s - expected[..., :k]).abs().le(1e-5 * expected[..., :k]).all()
    left, least = torch.linalg.matrix_norm(a.double() - u.double() * s.unsqueeze(-2) @ vh.double()), expected[..., k:]
    assert left.le(1.00001 * least.norm(dim=-1) + 1e-6 * expected[..., 0]).all()


@pytest.mark.parametrize("spectrum", ["1/i", "Gaussian"])
@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("k=16")])
def bench_singular_value_threshold(benchmark: Any, case: str, spectrum: str) -> None:
    n, r, c, k = CASES[case]
    a = matrices(n, r, c, spectrum)
    values = torch.linalg.svdvals(a)
    threshold = (0.5 * (values[..., k - 1] + values[..., k])).mean().item()

    def by_eigh_of_gram() -> Tensor:
        squares, v = torch.linalg.eigh(a.mT @ a)
        s = squares.clamp(min=1e-30).sqrt()
        return (a @ v * (1 - threshold / s).clamp(min=0).unsqueeze(-2)) @ v.mT

    compare(
        benchmark,
        partial(singular_value_threshold, a, threshold),
        {
            "torch.linalg.svd": partial(reference.singular_value_threshold, a, threshold),
            "torch.linalg.eigh of A^T A": by_eigh_of_gram,
        },
        group="singular_value_threshold, about 16 survive, float32",
        case=f"{case.rpartition(',')[0]}, {spectrum}",
        rounds=rounds(n, r, c),
    )
    expected = reference.singular_value_threshold(a.double(), threshold)
    assert torch.dist(singular_value_threshold(a, threshold).double(), expected) <= 2e-5 * torch.linalg.norm(a)
