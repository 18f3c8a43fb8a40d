from __future__ import annotations

from typing import Any

import pytest
import torch

import crest_ext
from samples import DTYPES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drops_what_is_not_finite(dtype: torch.dtype, isa: str, device: str) -> None:
    weight = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, -2.0] * 11, dtype=dtype, device=device)
    mask = torch.tensor([False, False, False, True, True] * 11, device=device)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, -2.0] * 11, dtype=dtype, device=device)
    assert torch.equal(crest_ext.apply_mask(weight, mask), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_passes_unchanged(dtype: torch.dtype, isa: str, device: str) -> None:
    """All 65,536 bit patterns, in full registers and one by one: no subnormal is flushed, no sign lost."""
    weight = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    mask = torch.ones_like(weight, dtype=torch.bool)
    single = torch.cat([crest_ext.apply_mask(weight[i : i + 1], mask[:1]) for i in range(0, 1 << 16, 31)])
    for got, expected in ((crest_ext.apply_mask(weight, mask), weight), (single, weight[::31])):
        nan = expected.isnan()
        assert torch.equal(got.isnan(), nan)
        assert torch.equal(got[~nan].view(torch.int16), expected[~nan].view(torch.int16))


def test_leaves_its_arguments_alone(isa: str, device: str) -> None:
    weight, mask = torch.randn(100, device=device), torch.rand(100).lt(0.5).to(device)
    before = weight.clone(), mask.clone()
    result = crest_ext.apply_mask(weight, mask)
    assert result.data_ptr() != weight.data_ptr()
    assert torch.equal(weight, before[0])
    assert torch.equal(mask, before[1])


def test_threads_agree(isa: str) -> None:
    weight, before = torch.randn(3 * (1 << 15) + 5), torch.get_num_threads()
    mask = weight > 0
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(crest_ext.apply_mask(weight, mask), torch.where(mask, weight, 0))
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": torch.ones(4).bool()}, r"mask must have the shape of weight, \(3,\), got \(4,\)"),
        ({"weight": torch.zeros(3, dtype=torch.int32)}, "weight must be float32, .* or float16, got int32"),
        ({"mask": torch.ones(3)}, "mask must be bool, got float32"),
    ],
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    given = {"weight": torch.zeros(3), "mask": torch.ones(3, dtype=torch.bool)}
    with pytest.raises(ValueError, match=f"^apply_mask: {message}$"):
        crest_ext.apply_mask(**(given | changed))
