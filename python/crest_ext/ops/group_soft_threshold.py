"""The proximal operators of the group lasso and the sparse group lasso, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from crest_ext.ops._grad import tell_of_write
from crest_ext.ops.group_norms import Groups


def group_soft_threshold_(weight: Tensor, groups: Groups, threshold: float) -> None:
    """Shrink each group of a weight towards zero: weight <- weight * max(1 - threshold / norm, 0).

    The proximal operator of threshold * the sum of `group_norms`. A group whose norm is at most threshold is exactly 0
    afterwards, and stays it. A group with a NaN becomes NaN, all of it: what went wrong must not vanish. Where there
    is an infinity, or the squares are too large to sum, nothing is shrunk.

    Args:
        weight: as of `group_norms`; contiguous; written.
        groups: as of `group_norms`.
        threshold: finite, at least 0.

    Raises:
        ValueError: a shape, dtype or value is not as above; weight requires a gradient, and they are enabled.

    Work: reads and writes weight once where groups are runs of memory ("filter", "row", "kernel"), as long as a run
        fits a cache; else reads it twice.
    Source: Yuan, Lin, "Model selection and estimation in regression with grouped variables", J. R. Stat. Soc. B 68
        (2006); penalty of Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, eq. 1.
    """
    tell_of_write("group_soft_threshold_", weight=weight)
    torch.ops.crest.group_soft_threshold_(weight, groups, threshold)


def sparse_group_soft_threshold_(weight: Tensor, groups: Groups, threshold: float, l1: float) -> None:
    """Shrink each weight by l1, to zero at most, and then each group as `group_soft_threshold_` does.

    The proximal operator of threshold * the sum of `group_norms` + l1 * the sum of |weight|.

    Args:
        weight: as of `group_norms`; contiguous; written.
        groups: as of `group_norms`.
        threshold: finite, at least 0.
        l1: finite, at least 0.

    Raises:
        ValueError: a shape, dtype or value is not as above; weight requires a gradient, and they are enabled.

    Work: as of `group_soft_threshold_`.
    Source: Alvarez, Salzmann, "Learning the Number of Neurons in Deep Networks", NIPS 2016, eq. 5 and 6.
    """
    tell_of_write("sparse_group_soft_threshold_", weight=weight)
    torch.ops.crest.sparse_group_soft_threshold_(weight, groups, threshold, l1)


@torch.library.register_fake("crest::group_soft_threshold_")
def _fake(weight: Tensor, groups: str, threshold: float) -> None:
    return None


@torch.library.register_fake("crest::sparse_group_soft_threshold_")
def _fake_sparse(weight: Tensor, groups: str, threshold: float, l1: float) -> None:
    return None
