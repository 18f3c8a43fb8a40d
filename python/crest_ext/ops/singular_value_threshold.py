"""The proximal operator of the nuclear norm."""

from __future__ import annotations

import torch
from torch import Tensor


def singular_value_threshold(a: Tensor, threshold: float) -> Tensor:
    """Move every singular value towards zero: U diag(max(S - threshold, 0)) Vh, for a = U diag(S) Vh.

    The proximal operator of threshold * the nuclear norm (the sum of the singular values). What it returns has the rank
    of what survives, up to rounding, and on a CPU only that is computed. It is within 2e-5 |a| of the exact result, in
    the Frobenius norm. There is no gradient.

    Args:
        a: (..., r, c), each matrix by itself; float32 or float64.
        threshold: finite, at least 0.

    Returns:
        Shape and dtype of a.

    Raises:
        ValueError: a shape, dtype or value is not as above, or a number of a is not finite.

    Work: up to a shorter side of 256 the Gram matrix's decomposition; else a block Krylov search as in `truncated_svd`,
        and torch.linalg.eigh of the Gram matrix where more than a sixth of the values survive. 2 r c k flop for the
        product of the k that do. On a GPU all values by `truncated_svd`, and 2 r c min(r, c) flop for the product.
    Source: Cai, Candes, Shen, "A Singular Value Thresholding Algorithm for Matrix Completion", SIAM J. Optim. 20(4),
        2010, theorem 2.1; the step of Alvarez, Salzmann, "Compression-aware Training of Deep Networks", NIPS 2017.
    """
    return torch.ops.crest.singular_value_threshold(a.detach(), threshold)


def _cuda(a: Tensor, threshold: float) -> Tensor:
    if a.dim() < 2:
        raise ValueError(f"singular_value_threshold: a must have at least 2 dimensions, got {tuple(a.shape)}")
    if a.dtype not in (torch.float32, torch.float64):
        got = str(a.dtype).removeprefix("torch.")
        raise ValueError(f"singular_value_threshold: a must be float32 or float64, got {got}")
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"singular_value_threshold: threshold must be a finite number >= 0, got {threshold:g}")
    if not a.isfinite().all():
        raise ValueError("singular_value_threshold: a must be finite, got NaN or infinity")
    u, s, vh = torch.ops.crest.truncated_svd(a, min(a.shape[-2:]))
    return (u * (s - threshold).clamp(min=0).unsqueeze(-2)) @ vh


# As with every op, a build without CUDA has no kernel for it.
if torch._C._dispatch_has_kernel_for_dispatch_key("crest::apply_mask", "CUDA"):
    torch.library.register_kernel("crest::singular_value_threshold", "cuda", _cuda)


@torch.library.register_fake("crest::singular_value_threshold")
def _fake(a: Tensor, threshold: float) -> Tensor:
    return a.new_empty(a.shape)
