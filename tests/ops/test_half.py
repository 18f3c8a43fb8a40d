"""The half-precision conversions of csrc/cpu/half.h and number.h, against torch's, seen through sgd_prune_splice_."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import crest_ext

HALVES = [torch.float16, torch.bfloat16]


def rounded_sum(a: Tensor, b: Tensor) -> Tensor:
    """a + (b + 0), added in float32 and rounded once to their dtype: the buffer after a step with momentum 1."""
    weight, buffer = torch.zeros_like(a), a.clone()
    mask = torch.ones_like(a, dtype=torch.bool)
    crest_ext.sgd_prune_splice_(weight, b, buffer, mask, 0.0, 1.0, 0.0, 0.0, 0.0)
    return buffer


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(got[~nan].view(torch.int16), expected[~nan].view(torch.int16))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_narrow(dtype: torch.dtype, isa: str) -> None:
    """Sums of two halves fall on halves, on ties and between: each must be torch's. Some overflow to infinity."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    step = every[::64]
    ulps = torch.cat([every * (2.0**-k) for k in (8, 9, 10, 11, 12, 13)])  # ties and their neighbours
    pairs = [(every.repeat(6), ulps), (every.repeat(6), -ulps)]
    pairs += [(every, every[torch.randperm(1 << 16)]), (every, every), (every, -every)]
    pairs += [(step.repeat_interleave(len(step)), step.repeat(len(step)))]
    for a, b in pairs:
        assert_same_bits(rounded_sum(a, b), (a.float() + (b.float() + 0)).to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_narrow_one_by_one(dtype: torch.dtype, isa: str) -> None:
    """The numbers left over after the last full register are rounded by other code, to the same bits."""
    bits = torch.cat([torch.arange(0, 1 << 16, 37), torch.tensor([0x0001, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0x7F7F])])
    a = bits.to(torch.int32).to(torch.int16).view(dtype)
    b = a[torch.randperm(len(a))] * 2.0**-9
    got = torch.cat([rounded_sum(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
    assert_same_bits(got, (a.float() + (b.float() + 0)).to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_narrow_of_any_float(dtype: torch.dtype, isa: str) -> None:
    """Products of a half and lr have all 24 bits of a float: a dense set of them over every exponent."""
    grad = torch.ones(1 << 12, dtype=dtype)
    for exponent in range(-44, 18):
        lr = -(1 + torch.rand(()).item()) * 2.0**exponent
        buffer = (torch.randn(1 << 12) * 2).to(dtype)
        weight, mask = torch.zeros_like(grad), torch.ones(1 << 12, dtype=torch.bool)
        expected = (buffer.float() * torch.tensor(-lr, dtype=torch.float32)).to(dtype)
        crest_ext.sgd_prune_splice_(weight, torch.zeros_like(grad), buffer, mask, lr, 1.0, 0.0, 0.0, 0.0)
        assert_same_bits(weight, expected)
