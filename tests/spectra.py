"""Matrices of given singular values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "1/i": lambda i: 1 / (i + 1),
    "geometric": lambda i: 0.5**i,
    "flat": lambda i: 1 + 1 / (i + 1),
    "rank 5": lambda i: (i < 5).double(),
    "forty equal": lambda i: torch.where(i < 40, 1.0, 1 / (i + 1)),
    "all equal": torch.ones_like,
    "steps of twenty": lambda i: 0.5 ** (i // 20),
    "zero": torch.zeros_like,
    "large": lambda i: 1e30 / (i + 1),
    "small": lambda i: 1e-30 / (i + 1),
}


def of_spectrum(r: int, c: int, spectrum: str, dtype: torch.dtype) -> Tensor:
    q = min(r, c)
    u, v = (torch.linalg.qr(torch.randn(size, q, dtype=torch.float64))[0] for size in (r, c))
    return (u * SPECTRA[spectrum](torch.arange(q, dtype=torch.float64)) @ v.t()).to(dtype)
