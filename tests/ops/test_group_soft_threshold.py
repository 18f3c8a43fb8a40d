from __future__ import annotations

from typing import Any

import pytest
import torch

import crest_ext
from crest_ext import (
    group_soft_threshold_,
    prune_splice_,
    reference,
    sgd_prune_splice_,
    sparse_group_soft_threshold_,
)
from samples import DTYPES, GROUPS


def test_closed_form(isa: str, device: str) -> None:
    """The prox of Alvarez and Salzmann, eq. 5 and 6, by hand."""
    weight = torch.tensor([[3.0, -4.0], [0.3, 0.4], [-0.5, 4.5], [0.0, 0.0]], device=device)
    group = weight.clone()
    crest_ext.group_soft_threshold_(group, "filter", 0.5)
    assert group.tolist()[0] == pytest.approx([2.7, -3.6])
    assert group.tolist()[1] == group.tolist()[3] == [0.0, 0.0]  # a norm of exactly the threshold goes too
    crest_ext.sparse_group_soft_threshold_(weight, "filter", 1.0, 0.5)  # after l1: (2.5, -3.5), 0, (0, 4), 0
    factor = 1 - 1 / (2.5**2 + 3.5**2) ** 0.5
    assert weight.tolist()[0] == pytest.approx([2.5 * factor, -3.5 * factor])
    assert weight.tolist()[1:] == [[0.0, 0.0], [0.0, 3.0], [0.0, 0.0]]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("shape", [(300, 500), (3, 70_001), (70_001, 3), (130, 40, 3, 3)])
def test_several_blocks(shape: tuple[int, ...], groups: str, isa: str, device: str) -> None:
    weight = torch.randn(shape, device=device)
    expected, threshold = weight.double(), 0.1 * reference.group_norms(weight, groups).mean().item()
    reference.sparse_group_soft_threshold_(expected, groups, threshold, 0.5)
    crest_ext.sparse_group_soft_threshold_(weight, groups, threshold, 0.5)
    torch.testing.assert_close(weight, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", GROUPS)
def test_threads_agree(groups: str, isa: str) -> None:
    weight, before, results = torch.randn(300, 50, 3, 3), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(weight.clone())
        crest_ext.group_soft_threshold_(results[-1], groups, 1.0)
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", GROUPS)
def test_zeros_stay_zero(groups: str, dtype: torch.dtype, isa: str, device: str) -> None:
    """Without a sign, and with no NaN from a norm of 0, whatever the threshold."""
    for threshold in (0.0, 1.0):
        weight = torch.zeros(4, 3, 3, 3, device=device, dtype=dtype)
        weight[1] = -0.0
        crest_ext.group_soft_threshold_(weight, groups, threshold)
        assert not weight.count_nonzero()
        assert not weight.signbit().any()
    weight = -torch.rand(4, 3, 3, 3, device=device).to(dtype)
    crest_ext.group_soft_threshold_(weight, groups, 100.0)
    assert not weight.count_nonzero()
    assert not weight.signbit().any()


def test_threshold_zero_changes_nothing(isa: str, device: str) -> None:
    for groups in GROUPS:
        weight = torch.randn(5, 3, 3, 3, device=device)
        before = weight.clone()
        crest_ext.sparse_group_soft_threshold_(weight, groups, 0.0, 0.0)
        assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("l1", [0.0, 0.1])
def test_not_finite(l1: float, groups: str, dtype: torch.dtype, isa: str, device: str) -> None:
    """A group with a NaN becomes NaN whole, and no other; one with an infinity keeps it, and is not shrunk."""
    weight = torch.randn(5, 3, 2, 9, device=device).to(dtype)
    weight[1, 1, 0, 4] = float("nan")
    crest_ext.sparse_group_soft_threshold_(weight, groups, 0.5, l1)
    assert weight.isnan().sum() == weight.numel() / reference.group_norms(weight.double(), groups).numel()

    weight = torch.randn(5, 3, 2, 9, device=device).to(dtype)
    weight[4, 2, 1, 8] = float("-inf")
    expected = weight.double()
    reference.sparse_group_soft_threshold_(expected, groups, 0.5, l1)
    crest_ext.sparse_group_soft_threshold_(weight, groups, 0.5, l1)
    assert weight[4, 2, 1, 8] == float("-inf")
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(weight.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.zeros(3)}, r"weight must have at least 2 dimensions, got \(3,\)"),
        ({"groups": "rows"}, "groups must be filter, channel, shape, kernel, layer, row or column, got rows"),
        ({"weight": torch.zeros(2, 3).int()}, "weight must be float32, float64, bfloat16 or float16, got int32"),
        (
            {"weight": torch.zeros(3, 2).t()},
            "weight must be contiguous, since it is written in place, got strides of a view",
        ),
        ({"threshold": -1.0}, "threshold must be a finite number >= 0, got -1"),
        ({"threshold": float("nan")}, "threshold must be a finite number >= 0, got nan"),
        ({"l1": float("inf")}, "l1 must be a finite number >= 0, got inf"),
    ],
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    given = {"weight": torch.zeros(2, 3), "groups": "filter", "threshold": 0.5, "l1": 0.5}
    with pytest.raises(ValueError, match=f"^sparse_group_soft_threshold_: {message}$"):
        crest_ext.sparse_group_soft_threshold_(**given | changed)
    if "l1" not in changed:
        del given["l1"]
        with pytest.raises(ValueError, match=f"^group_soft_threshold_: {message}$"):
            crest_ext.group_soft_threshold_(**given | changed)


def test_autograd_is_told_of_writes() -> None:
    """As torch's own in-place functions: what a gradient needs has changed, and no gradient goes through a write."""
    weight, mask = torch.randn(4, 3, requires_grad=True), torch.ones(4, 3, dtype=torch.bool)
    writes = (
        ("weight", lambda: group_soft_threshold_(weight, "filter", 0.1)),
        ("weight", lambda: sparse_group_soft_threshold_(weight, "filter", 0.1, 0.1)),
        ("weight", lambda: sgd_prune_splice_(weight, weight.detach(), torch.zeros(4, 3), mask, 0.1, 0.9, 0, 0.1, 0.2)),
        ("", lambda: prune_splice_(weight, mask, 0.1, 0.2)),
    )
    for name, write in writes:
        loss = (weight * weight * mask).sum()
        if name:
            with pytest.raises(ValueError, match=rf"_: {name} must not require a gradient while it is written"):
                write()
        with torch.no_grad():
            write()
        with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
            loss.backward()
    with torch.inference_mode():
        group_soft_threshold_(torch.randn(4, 3), "filter", 0.1)
