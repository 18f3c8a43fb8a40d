"""The largest singular values of a matrix, and their vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def truncated_svd(
    a: Tensor, rank: int | None = None, *, energy: float | None = None, squared: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The best approximation of rank k, a ~ U diag(S) Vh: exact to rounding, unlike torch.svd_lowrank.

    For the singular values s_i of a, what is returned is within 1e-5 s_i + 1e-6 s_1 of them, and |a - U diag(S) Vh|
    within 1e-5 of its least + 1e-5 s_1 in the Frobenius norm, on every spectrum: fast or slowly decaying, of low rank,
    with repeated values, zero. U and Vh are orthonormal to rounding, beyond the rank of a as well. There is no
    gradient.

    Args:
        a: (..., r, c); float32 or float64.
        rank: k, in [0, min(r, c)].
        energy: instead of rank; in (0, 1]. k is the smallest rank, at least 1, whose singular values hold this share
            of their sum; the largest that a matrix of the batch needs. Then k depends on the data, and torch.compile
            cannot trace it.
        squared: energy is of the squared singular values, or of the singular values themselves.

    Returns:
        U (..., r, k), S (..., k), descending, and Vh (..., k, c); dtype of a.

    Raises:
        ValueError: a shape or dtype is not as above, neither or both of rank and energy, one of them out of range, or
            a number of a that is not finite.

    Work: up to a shorter side q of 256, the decomposition of the Gram matrix for k vectors, in float32 where that is
        enough; torch.linalg.eigh of it for more than a sixth of all vectors of a larger one. Else a block Krylov space
        of m directions, sixteen in each pass over a: 4 r c m flop, and 2 q m^2 or twice that to keep them orthogonal;
        where the longer side is at least 2 q and the first 32 directions promise many more, the passes are over the
        Gram matrix, made in r c q flop: 2 q^2 m. If it has not converged at m = 6 k + q / 2, torch's eigh. A matrix
        takes one thread, and a batch all. On a GPU, up to a shorter side of 128 and a longer one of 4096, Jacobi's
        rotations of all columns of R^T, for a or its transpose = Q R: 4 r c q + 2 r c k flop and some ten sweeps of
        11 q^3, one block a matrix; beyond that torch.linalg.svd of all of a.
    Source: Musco, Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
        Decomposition", NIPS 2015, algorithm 2, with full reorthogonalisation and a test of convergence. Drmac, Veselic,
        "New Fast and Accurate Jacobi SVD Algorithm I", SIAM J. Matrix Anal. Appl. 29(4), 2008, without pivoting.
    """
    if (rank is None) == (energy is None):
        raise ValueError(f"truncated_svd: one of rank and energy must be given, got {rank} and {energy}")
    if rank is None:
        assert energy is not None
        rank = rank_of_energy(a, energy, squared)
    return torch.ops.crest.truncated_svd(a.detach(), rank)


def rank_of_energy(a: Tensor, energy: float, squared: bool = True) -> int:
    """The rank of truncated_svd that `energy` asks for."""
    if not 0 < energy <= 1:
        raise ValueError(f"truncated_svd: energy must be in (0, 1], got {energy}")
    if a.dim() < 2 or a.dtype not in (torch.float32, torch.float64) or not a.numel():
        return min(1, *a.shape[-2:]) if a.dim() >= 2 else 0  # the op has the message
    if not a.isfinite().all():
        raise ValueError("truncated_svd: a must be finite, got NaN or infinity")
    values = singular_values(a)
    values = values / values[..., :1].clamp(min=torch.finfo(torch.float64).tiny)
    share = (values**2 if squared else values).cumsum(-1)
    return int((share < energy * share[..., -1:]).sum(-1).max()) + 1


def singular_values(a: Tensor) -> Tensor:
    """(..., min(r, c)), float64, descending; what may be nothing but rounding of a, and of its squares, is 0."""
    wide = a.detach().double()
    largest = wide.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    wide = wide / largest  # its squares may be beyond float64
    gram = wide @ wide.mT if a.shape[-2] < a.shape[-1] else wide.mT @ wide
    squares = torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0)
    # A rounding error of a value of the matrix is one of its square in the Gram matrix.
    least = max((16 * torch.finfo(a.dtype).eps) ** 2, max(a.shape[-2:]) * torch.finfo(torch.float64).eps)
    squares[squares < least * squares[..., :1]] = 0
    return squares.sqrt() * largest.squeeze(-1)


def rank_of(s: Tensor, energy: float, squared: bool = True) -> int:
    """The smallest rank, at least 1, whose singular values s (groups, q), in descending order, hold the energy."""
    s = s.double() / s.max().clamp(min=torch.finfo(torch.float64).tiny)
    share = (s**2 if squared else s).sum(0).cumsum(0)
    return int((share < energy * share[-1]).sum()) + 1


@torch.library.register_fake("crest::truncated_svd")
def _fake(a: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    *n, r, c = a.shape
    return a.new_empty((*n, r, rank)), a.new_empty((*n, rank)), a.new_empty((*n, rank, c))
