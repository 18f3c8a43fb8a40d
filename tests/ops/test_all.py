"""What holds for every op, on every sample: the reference, gradients, registration, tracing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import crest_ext
from crest_ext import reference
from samples import DTYPES, INFERENCE, LONGEST_SUM, SAMPLES

OPS = sorted(SAMPLES)
DIFFERENTIABLE = [op for op in OPS if not op.endswith("_") and op not in INFERENCE]


def copy(args: tuple[Any, ...], dtype: torch.dtype | None = None) -> tuple[Any, ...]:
    def one(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        return a.clone().to(dtype) if dtype and a.is_floating_point() else a.clone()

    return tuple(one(a) for a in args)


def tensors(args: Any) -> Iterator[Tensor]:
    yield from (a for a in args if isinstance(a, Tensor))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_equals_reference(op: str, dtype: torch.dtype, isa: str, device: str) -> None:
    """Ours and the reference in float64 agree within the rounding of `dtype`, in results and written arguments."""
    for args in SAMPLES[op](dtype, device):
        expected_args, got_args = copy(args, torch.float64), copy(args)
        expected = getattr(reference, op)(*expected_args)
        got = getattr(crest_ext, op)(*got_args)
        for e, g in zip(tensors((expected, *expected_args)), tensors((got, *got_args)), strict=True):
            if g.dtype == torch.bool and op == "sgd_prune_splice_":
                continue  # a weight that rounds across a threshold: see test_sgd_prune_splice
            assert g.dtype == dtype or not g.is_floating_point()
            # Half types sum in float32, so that only the result rounds.
            terms = LONGEST_SUM.get(op, 1) if dtype in (torch.float32, torch.float64) else 1
            tolerance = 4 * torch.finfo(dtype).eps * terms**0.5
            torch.testing.assert_close(g.to(e.dtype), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradients(op: str, isa: str, device: str) -> None:
    for args in SAMPLES[op](torch.float64, device):
        floats = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]

        def call(*values: Tensor, args: tuple[Any, ...] = args, floats: list[int] = floats) -> Tensor:
            return getattr(crest_ext, op)(*(values[floats.index(i)] if i in floats else a for i, a in enumerate(args)))

        values = [args[i].detach().requires_grad_() for i in floats]
        if True not in [a for a in args if isinstance(a, bool)]:
            assert torch.autograd.gradcheck(call, values)
        else:  # straight through: on purpose not the derivative
            expected = [v.detach().requires_grad_() for v in values]
            out = call(*values)
            grad = torch.randn_like(out)
            out.backward(grad)
            full = copy(args)
            full = tuple(expected[floats.index(i)] if i in floats else a for i, a in enumerate(full))
            getattr(reference, op)(*full).backward(grad)
            for v, e in zip(values, expected, strict=True):
                torch.testing.assert_close(v.grad, e.grad)


@pytest.mark.parametrize("op", OPS)
def test_registration(op: str, device: str) -> None:
    """Schema, fake kernel, autograd and AOT dispatch agree (torch.library.opcheck)."""
    for args in list(SAMPLES[op](torch.float32, device))[-3:]:
        args = copy(args)
        if op in DIFFERENTIABLE:
            args = tuple(a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        checks = torch.library.opcheck(getattr(torch.ops.crest, op).default, args)
        assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", OPS)
def test_compiles_whole(op: str, device: str) -> None:
    args = list(SAMPLES[op](torch.float32, device))[-1]
    expected_args, got_args = copy(args), copy(args)
    expected = getattr(crest_ext, op)(*expected_args)
    got = torch.compile(getattr(crest_ext, op), fullgraph=True, backend="aot_eager")(*got_args)
    for e, g in zip(tensors((expected, *expected_args)), tensors((got, *got_args)), strict=True):
        assert torch.equal(e, g)
