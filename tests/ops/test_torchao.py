"""Our proximal steps and those of torchao's pruning-aware training, which it calls pat, where it is installed."""

from __future__ import annotations

import math

import pytest
import torch

from crest_ext import group_soft_threshold_, singular_value_threshold

pat = pytest.importorskip("torchao.prototype.pat", reason="torchao is not installed", exc_type=ImportError)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("groups", ["filter", "channel"])
@pytest.mark.parametrize("shape", [(40, 7), (300, 500), (3, 2000)])
def test_group_lasso(shape: tuple[int, int], groups: str, strength: float) -> None:
    """Its threshold is lambda times the square root of a group's size; ours is the product."""
    weight = torch.randn(shape) * torch.rand(shape[0], 1) * torch.rand(shape[1])
    theirs, ours, dim = weight.clone(), weight.clone(), int(groups == "filter")  # dim: along a group
    size = shape[dim]
    factor = strength * (weight.norm(dim=dim).mean().item() / math.sqrt(size))
    prox = pat.ProxGroupLasso(factor)
    for group in theirs.unbind(1 - dim):
        prox.apply_(group, gamma=1.0)
    group_soft_threshold_(ours, groups, factor * math.sqrt(size))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.norm(dim=dim) == 0, theirs.norm(dim=dim) == 0)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9, 1.1])
@pytest.mark.parametrize("shape", [(40, 7), (64, 64), (200, 500), (300, 270)])
def test_nuclear_norm(shape: tuple[int, int], strength: float) -> None:
    """Theirs is of the singular values that its grouper takes."""
    weight = torch.randn(shape)
    theirs, threshold = weight.clone(), strength * torch.linalg.matrix_norm(weight, 2).item()
    with pat.SVDGrouper(theirs) as grouper:
        pat.ProxNuclearNorm(threshold).apply_(grouper.p, gamma=1.0)
    distance = torch.linalg.matrix_norm(singular_value_threshold(weight, threshold) - theirs)
    assert distance <= 1e-5 * torch.linalg.matrix_norm(weight)
