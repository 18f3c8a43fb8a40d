"""Calls of ops with a gradient, past it where none is recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def call(op: Any, *args: Any) -> Tensor:
    """op(*args), a torch.ops.crest op.

    For an op that has a gradient torch runs a Python function even where it records nothing, which takes as long as a
    small layer itself.
    """
    recorded = torch.is_grad_enabled() and any([isinstance(a, Tensor) and a.requires_grad for a in args])  # noqa: C419 (faster)
    if recorded or torch.compiler.is_compiling():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)
