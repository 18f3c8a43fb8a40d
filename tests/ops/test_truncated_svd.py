"""truncated_svd against torch.linalg.svd in float64: both ways to find the vectors, every kind of spectrum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crest_ext import singular_value_threshold, truncated_svd
from spectra import SPECTRA, of_spectrum

pytestmark = pytest.mark.usefixtures("one_thread")
# The whole Gram matrix, in float64 and float32; the search; wide, tall, and one vector; the search in the Gram matrix.
SHAPES = [
    (1, 1, 1),
    (5, 3, 3),
    (33, 70, 7),
    (64, 64, 16),
    (103, 150, 79),
    (130, 210, 16),
    (270, 300, 40),
    (300, 260, 1),
    (270, 600, 40),
    (650, 260, 20),
]


def check(a: Tensor, k: int) -> None:
    """The stated tolerance: of the values, of the residual, and of orthonormality."""
    u, s, vh = (t.double().cpu() for t in truncated_svd(a, k))
    wide = a.double().cpu()
    expected = torch.linalg.svdvals(wide)
    first = expected[..., :1]
    assert (
        u.shape == (*a.shape[:-1], k) and s.shape == (*a.shape[:-2], k) and vh.shape == (*a.shape[:-2], k, a.shape[-1])
    )
    assert (s - expected[..., :k]).abs().le(1e-5 * expected[..., :k] + 1e-6 * first).all()
    assert (s.diff() <= 0).all()
    residual = torch.linalg.matrix_norm(wide - u * s.unsqueeze(-2) @ vh)
    assert residual.le((1 + 1e-5) * expected[..., k:].norm(dim=-1) + 1e-5 * first[..., 0]).all()
    eye, slack = torch.eye(k, dtype=torch.float64), 64 * torch.finfo(a.dtype).eps
    torch.testing.assert_close(u.mT @ u, eye.expand_as(u.mT @ u), rtol=0, atol=slack)
    torch.testing.assert_close(vh @ vh.mT, eye.expand_as(vh @ vh.mT), rtol=0, atol=slack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_spectra(spectrum: str, dtype: torch.dtype, isa: str) -> None:
    for r, c, k in SHAPES:
        check(of_spectrum(r, c, spectrum, dtype), k)


# Each of the GPU kernel's sizes of block, in shared memory all, a part or nothing; and larger than it takes.
BATCHES = [
    (1, 1, 1),
    (5, 3, 3),
    (9, 70, 4),
    (16, 16, 16),
    (40, 23, 23),
    (64, 64, 10),
    (130, 60, 60),
    (120, 700, 5),
    (128, 128, 128),
    (40, 4100, 3),
    (200, 140, 7),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_all_spectra_in_a_batch(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    r, c, k = shape
    a = torch.stack([of_spectrum(r, c, spectrum, dtype) for spectrum in SPECTRA])
    check(a.to(device), k)
    a = torch.randn(2, r, c, dtype=dtype)
    a[0, r // 3 :], a[1, :, ::2] = 0, 0
    check(a.to(device), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gaussian_batches_and_strides(dtype: torch.dtype, isa: str, device: str) -> None:
    check(torch.randn(3, 2, 40, 50, dtype=dtype, device=device), 6)
    check(torch.randn(3, 130, 140, dtype=dtype, device=device), 5)
    if dtype == torch.float32:  # a long search: many blocks stay orthogonal
        check(torch.randn(2000, 500, device=device), 16)
    check(torch.randn(60, 50, dtype=dtype, device=device).t()[::2], 4)
    shapes = [t.shape for t in truncated_svd(torch.randn(2, 4, 3, dtype=dtype, device=device), 0)]
    assert shapes == [(2, 4, 0), (2, 0), (2, 0, 3)]
    assert truncated_svd(torch.randn(0, 4, 3, dtype=dtype, device=device), 2)[1].shape == (0, 2)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e200, 1e300])
def test_squares_beyond_float64(scale: float, isa: str, device: str) -> None:
    for shape, few, many in ((20, 15), 2, 15), ((300, 280), 2, 200):  # the search, and torch's decomposition
        a = torch.randn(shape, dtype=torch.float64, device=device)
        expected = torch.linalg.svdvals(a)
        for k in few, many:
            torch.testing.assert_close(truncated_svd(a * scale, k)[1] / scale, expected[:k], rtol=1e-6, atol=0)
            threshold = expected[k - 1].item()
            got = singular_value_threshold(a * scale, threshold * scale) / scale
            torch.testing.assert_close(got, singular_value_threshold(a, threshold), rtol=1e-4, atol=1e-4)
    assert truncated_svd(a * scale, energy=0.5)[1].shape == truncated_svd(a, energy=0.5)[1].shape


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9, 1.0])
def test_energy(energy: float, squared: bool) -> None:
    a = torch.stack([of_spectrum(30, 20, name, torch.float32) for name in ("1/i", "geometric", "rank 5")])
    s = torch.linalg.svdvals(a.double())
    s[s < 1e-6 * s[:, :1]] = 0
    share = (s**2 if squared else s).cumsum(1) / (s**2 if squared else s).sum(1, keepdim=True)
    k = truncated_svd(a, energy=energy, squared=squared)[1].shape[1]
    assert share[:, k - 1].ge(energy - 1e-6).all()
    assert k == 1 or share[:, k - 2].lt(energy).any()


def test_refuses(device: str) -> None:
    a = torch.randn(2, 5, 4, device=device)
    for wrong, message in (
        (lambda: truncated_svd(a), "one of rank and energy must be given, got None and None"),
        (lambda: truncated_svd(a, 1, energy=0.5), "one of rank and energy must be given, got 1 and 0.5"),
        (lambda: truncated_svd(a, 5), r"rank must be in \[0, 4\], got 5"),
        (lambda: truncated_svd(a, -1), r"rank must be in \[0, 4\], got -1"),
        (lambda: truncated_svd(a, energy=0.0), r"energy must be in \(0, 1\], got 0.0"),
        (lambda: truncated_svd(a, energy=1.5), r"energy must be in \(0, 1\], got 1.5"),
        (lambda: truncated_svd(a[0, 0], 1), r"a must have at least 2 dimensions, got \(4,\)"),
        (lambda: truncated_svd(a.half(), 1), "a must be float32 or float64, got float16"),
    ):
        with pytest.raises(ValueError, match=rf"^truncated_svd: {message}$"):
            wrong()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(2, 6, 5), (120, 110), (2, 140, 150)])
def test_refuses_what_is_not_finite(shape: tuple[int, ...], value: float, device: str) -> None:
    for k in (1, 5, 100)[: 2 if shape[-1] == 5 else 3]:
        a = torch.randn(shape, device=device)
        a[..., -1, 2] = value
        with pytest.raises(ValueError, match=r"^truncated_svd: a must be finite, got NaN or infinity$"):
            truncated_svd(a, k)
        with pytest.raises(ValueError, match=r"^truncated_svd: a must be finite, got NaN or infinity$"):
            truncated_svd(a, energy=0.5)


def test_registration_and_compile(device: str) -> None:
    a = torch.randn(2, 9, 7, device=device)
    checks = torch.library.opcheck(torch.ops.crest.truncated_svd.default, (a, 3))
    assert set(checks.values()) == {"SUCCESS"}
    compiled = torch.compile(lambda a: truncated_svd(a, 3), fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(a), truncated_svd(a, 3)))
