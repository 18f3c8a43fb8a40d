"""Calls of ops with a gradient, past it where none is recorded; what ops refuse that have none; and writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def call(op: Any, *args: Any) -> Any:
    """op(*args), a torch.ops.crest op.

    For an op that has a gradient torch runs a Python function even where it records nothing, which takes as long as a
    small layer itself.
    """
    recorded = torch.is_grad_enabled() and any([isinstance(a, Tensor) and a.requires_grad for a in args])  # noqa: C419 (faster)
    if recorded or torch.compiler.is_compiling():
        return op(*args)
    if forward_ad._current_level >= 0:
        _refuse_tangents(op._schema.name.partition("::")[2], args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def refuse_gradients(op: str, **args: Tensor | Sequence[Tensor] | None) -> None:
    """Raises a ValueError where a gradient of an op would be lost: it has none.

    An autograd formula only to say this would cost more time than a small layer takes.
    """
    if torch.is_grad_enabled():
        for name, arg in args.items():
            if any([t.requires_grad for t in _tensors(arg)]):  # noqa: C419 (faster)
                raise ValueError(f"{op}: {name} must not require a gradient, for there is none; use torch.no_grad()")
    if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
        _refuse_tangents(op, [t for arg in args.values() for t in _tensors(arg)])


def tell_of_write(op: str, **args: Tensor) -> None:
    """Raises a ValueError where a write would be lost to autograd, and tells it that what it keeps of them changes.

    As torch's own in-place functions do; for an op with a schema that writes, torch does neither.
    """
    for name, tensor in args.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: {name} must not require a gradient while it is written; use torch.no_grad()")
        if not torch.compiler.is_compiling() and not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def _tensors(arg: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor]:
    return () if arg is None else (arg,) if isinstance(arg, Tensor) else arg


def _refuse_tangents(op: str, args: Sequence[Any]) -> None:
    """Of forward-mode differentiation: torch would take them for zeros."""
    if any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args):
        raise ValueError(f"{op}: arguments must not have tangents, for there is no forward-mode derivative")
