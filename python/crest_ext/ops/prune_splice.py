"""The mask update of Dynamic Network Surgery."""

from __future__ import annotations

import torch
from torch import Tensor

from crest_ext.ops._grad import tell_of_write


def prune_splice_(weight: Tensor, mask: Tensor, low: float, high: float) -> None:
    """Update a mask in place: drop |weight| < low, restore |weight| >= high, leave the rest as it is.

    Args:
        weight: any shape; float32, float64, bfloat16 or float16. A NaN keeps its mask.
        mask: shape of weight; bool, contiguous; written.
        low: a_k of the paper, at most high.
        high: b_k of the paper.

    Raises:
        ValueError: a shape, dtype, device or value is not as above.

    Work: reads weight and mask once, writes mask once.
    Source: Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, eq. 3.
    """
    tell_of_write("prune_splice_", mask=mask)
    torch.ops.crest.prune_splice_(weight, mask, low, high)


@torch.library.register_fake("crest::prune_splice_")
def _fake(weight: Tensor, mask: Tensor, low: float, high: float) -> None:
    return None
