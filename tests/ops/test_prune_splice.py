from __future__ import annotations

from typing import Any

import pytest
import torch

import crest_ext
from crest_ext import reference
from samples import DTYPES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exactly_at_the_thresholds(dtype: torch.dtype, isa: str, device: str) -> None:
    """Equation 3: 0 if a > |w|, 1 if b <= |w|, the old mask if a <= |w| < b."""
    low, high = 0.5, 1.0
    below, under = (torch.tensor(t, dtype=dtype).nextafter(torch.tensor(0.0, dtype=dtype)).item() for t in (low, high))
    sizes = torch.tensor([0.0, below, low, under, high, 2.0, float("inf")], dtype=torch.float64)
    expected = {
        False: [False, False, False, False, True, True, True],
        True: [False, False, True, True, True, True, True],
    }
    for sign in (1, -1):
        for old in (False, True):
            # Repeated so that every size meets every lane and the numbers left over.
            weight = (sign * sizes).repeat(19).to(device, dtype)
            mask = torch.full_like(weight, old, dtype=torch.bool)
            crest_ext.prune_splice_(weight, mask, low, high)
            assert mask.tolist() == expected[old] * 19


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half(dtype: torch.dtype, isa: str, device: str) -> None:
    """All 65,536 bit patterns, NaN and infinity among them, from either mask, as full registers and one by one."""
    weight = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    for old in (False, True):
        mask = torch.full_like(weight, old, dtype=torch.bool)
        expected, single = mask.clone(), mask.clone()
        reference.prune_splice_(weight.float(), expected, 1e-3, 2.5)
        crest_ext.prune_splice_(weight, mask, 1e-3, 2.5)
        assert torch.equal(mask, expected)
        for i in range(0, 1 << 16, 257):
            crest_ext.prune_splice_(weight[i : i + 1], single[i : i + 1], 1e-3, 2.5)
        assert torch.equal(single[::257], expected[::257])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_keeps_its_mask(dtype: torch.dtype, isa: str, device: str) -> None:
    weight = torch.full((34,), float("nan"), dtype=dtype, device=device)
    mask = torch.tensor([True, False] * 17, device=device)
    crest_ext.prune_splice_(weight, mask, 0.0, 0.0)
    assert mask.tolist() == [True, False] * 17


def test_zero_thresholds_keep_all_and_infinite_ones_drop_all(isa: str, device: str) -> None:
    weight, mask = torch.randn(100, device=device), torch.zeros(100, dtype=torch.bool, device=device)
    crest_ext.prune_splice_(weight, mask, 0.0, 0.0)
    assert mask.all()
    crest_ext.prune_splice_(weight, mask, float("inf"), float("inf"))
    assert not mask.any()


def test_threads_agree(isa: str) -> None:
    weight, before = torch.randn(3 * (1 << 15) + 5), torch.get_num_threads()
    masks = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        masks.append(torch.zeros_like(weight, dtype=torch.bool))
        crest_ext.prune_splice_(weight, masks[-1], 0.5, 1.0)
    torch.set_num_threads(before)
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": torch.ones(3, 2).bool()}, r"mask must have the shape of weight, \(2, 3\), got \(3, 2\)"),
        ({"weight": torch.zeros(2, 3).int()}, "weight must be float32, float64, bfloat16 or float16, got int32"),
        ({"mask": torch.ones(2, 3).byte()}, "mask must be bool, got uint8"),
        (
            {"mask": torch.ones(3, 2).bool().t()},
            "mask must be contiguous, since it is written in place, got strides of a view",
        ),
        ({"low": 2.0}, "low must be at most high, 1, got 2"),
        ({"high": float("nan")}, "low must be at most high, nan, got 0.5"),
    ],
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    given = {"weight": torch.zeros(2, 3), "mask": torch.ones(2, 3, dtype=torch.bool), "low": 0.5, "high": 1.0}
    with pytest.raises(ValueError, match=f"^prune_splice_: {message}$"):
        crest_ext.prune_splice_(**(given | changed))
