"""singular_value_threshold beyond its samples: the search, what it falls back on, and its messages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crest_ext import reference, singular_value_threshold
from spectra import of_spectrum

pytestmark = pytest.mark.usefixtures("one_thread")


def check(a: Tensor, threshold: float) -> None:
    """The stated tolerance, and the rank."""
    got, expected = singular_value_threshold(a, threshold), reference.singular_value_threshold(a.double(), threshold)
    assert torch.linalg.matrix_norm(got.double() - expected) <= 2e-5 * torch.linalg.matrix_norm(a.double())
    values = torch.linalg.svdvals(got.double())
    assert values[(torch.linalg.svdvals(a.double()) <= threshold)].le(1e-5 * values[0] + 1e-300).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spectrum", ["1/i", "geometric", "flat", "forty equal", "steps of twenty", "zero", "large"])
def test_spectra(spectrum: str, dtype: torch.dtype, isa: str) -> None:
    """Some, none, and most of the values survive; float32 is enough, and is not."""
    a = of_spectrum(300, 270, spectrum, dtype)
    scale = torch.linalg.matrix_norm(a.double(), 2).item()
    for share in (0.06, 1.5) if spectrum in ("flat", "zero") else (0.06, 1e-3, 1.5):
        check(a, share * scale)


@pytest.mark.parametrize("shape", [(280, 400), (400, 280), (120, 130)])
def test_gaussian(shape: tuple[int, int], isa: str, device: str) -> None:
    a = torch.randn(shape, device=device)
    values = torch.linalg.svdvals(a)
    check(a, (values[16] + 0.3 * (values[15] - values[16])).item())
    check(a, values[-3].item() * 1.001)


def test_none_survives(device: str) -> None:
    for side in (30, 300):
        assert not singular_value_threshold(torch.randn(side, side, device=device), 50.0).any()
    eye = torch.eye(3, device=device)
    torch.testing.assert_close(singular_value_threshold(eye, 0.0), eye)


def test_refuses(device: str) -> None:
    a = torch.randn(2, 5, 4, device=device)
    for wrong, message in (
        (lambda: singular_value_threshold(a[0, 0], 1.0), r"a must have at least 2 dimensions, got \(4,\)"),
        (lambda: singular_value_threshold(a.half(), 1.0), "a must be float32 or float64, got float16"),
        (lambda: singular_value_threshold(a, -1.0), "threshold must be a finite number >= 0, got -1"),
        (lambda: singular_value_threshold(a, float("nan")), "threshold must be a finite number >= 0, got nan"),
    ):
        with pytest.raises(ValueError, match=rf"^singular_value_threshold: {message}$"):
            wrong()
    for value in (float("nan"), float("inf")):
        for shape in ((2, 6, 5), (300, 270)):
            a = torch.randn(shape, device=device)
            a[..., -1, 2] = value
            with pytest.raises(ValueError, match=r"^singular_value_threshold: a must be finite, got NaN or infinity$"):
                singular_value_threshold(a, 0.5)
