"""The norm of each group of weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from crest_ext.ops._grad import call

Groups = Literal["filter", "channel", "shape", "kernel", "layer", "row", "column"]
# The dimensions of a weight that tell its groups apart; None: all but the first. csrc/check_groups.h has the same.
_KEPT: dict[str, tuple[int, ...] | None] = {
    "filter": (0,),
    "row": (0,),
    "channel": (1,),
    "shape": None,
    "column": None,
    "kernel": (0, 1),
    "layer": (),
}


def kept_dims(groups: str, dim: int) -> tuple[int, ...]:
    """The dimensions of a weight with `dim` dimensions that tell its groups apart; the norm is over the others."""
    kept = _KEPT[groups]
    return tuple(range(1, dim)) if kept is None else kept


def group_norms(weight: Tensor, groups: Groups) -> Tensor:
    """The Euclidean norm of each group of a weight, as in the penalty of the group lasso.

    Args:
        weight: (n, c, ...), an (n, c) Linear's or an (n, c, h, w) Conv2d's; float32, float64, bfloat16 or float16.
        groups: what makes a group: "filter" or "row", weight[i]; "channel", weight[:, j]; "shape" or "column", one
            number a filter, weight[:, j, p, q], a column of the lowered matrix; "kernel", the 2-D filter weight[i, j];
            "layer", all of it. Of a Linear "channel", "shape" and "column" are the same.

    Returns:
        (n,), (c,), (c, ...), (n, c) or () in this order; dtype of weight. Squares are summed in float32 (float64 for
        float64); a group with a NaN has the norm NaN, one with an infinity, or too large for the sum, infinity. The
        gradient at a group of zeros is 0.

    Raises:
        ValueError: a shape or dtype is not as above, or groups has another name.

    Work: reads weight once.
    Source: Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, eq. 1 to 3.
    """
    return call(torch.ops.crest.group_norms.default, weight, groups)


@torch.library.register_fake("crest::group_norms")
def _fake(weight: Tensor, groups: str) -> Tensor:
    return weight.new_empty([weight.shape[i] for i in kept_dims(groups, weight.dim())])


def _setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    weight, ctx.groups = inputs
    ctx.save_for_backward(weight, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    weight, norms = ctx.saved_tensors
    factor = torch.where(norms == 0, 0, grad / norms)
    return weight * spread(factor, ctx.groups, weight.dim()), None


def spread(norms: Tensor, groups: str, dim: int) -> Tensor:
    """A number a group in a shape that broadcasts to the weight's, of `dim` dimensions."""
    kept = kept_dims(groups, dim)
    sizes = iter(norms.shape)
    return norms.reshape([next(sizes) if i in kept else 1 for i in range(dim)])


torch.library.register_autograd("crest::group_norms", _backward, setup_context=_setup_context)
