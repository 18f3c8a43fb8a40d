from __future__ import annotations

import pytest
import torch

import crest_ext
from crest_ext import reference
from samples import DTYPES, GROUPS

SHAPES = {"filter": (6,), "channel": (4,), "shape": (4, 3, 5), "kernel": (6, 4), "layer": (), "row": (6,)}


@pytest.mark.parametrize("groups", GROUPS)
def test_shape(groups: str, isa: str, device: str) -> None:
    norms = crest_ext.group_norms(torch.ones(6, 4, 3, 5, device=device), groups)
    assert norms.shape == SHAPES.get(groups, (4, 3, 5))
    assert norms.unique().tolist() == pytest.approx([(360 / norms.numel()) ** 0.5])


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("shape", [(300, 500), (3, 70_001), (70_001, 3), (130, 40, 3, 3)])
def test_several_blocks(shape: tuple[int, ...], groups: str, isa: str, device: str) -> None:
    weight = torch.randn(shape, device=device)
    expected = reference.group_norms(weight.double(), groups).float()
    torch.testing.assert_close(crest_ext.group_norms(weight, groups), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("groups", GROUPS)
def test_threads_agree(groups: str, isa: str) -> None:
    weight, before, norms = torch.randn(300, 50, 3, 3), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        norms.append(crest_ext.group_norms(weight, groups))
    torch.set_num_threads(before)
    assert torch.equal(*norms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", GROUPS)
def test_not_finite(groups: str, dtype: torch.dtype, isa: str, device: str) -> None:
    """A NaN and an infinity show in the norm of their own group, and in no other."""
    weight = torch.randn(5, 3, 2, 9, device=device).to(dtype)
    weight[1, 1, 0, 4], weight[4, 2, 1, 8] = float("nan"), float("inf")
    expected = reference.group_norms(weight.double(), groups).to(dtype)
    assert expected.isnan().sum() == 1
    assert groups == "layer" or expected.isinf().sum() == 1
    norms = crest_ext.group_norms(weight, groups)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(norms, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_gradient_at_zero_is_zero() -> None:
    weight = torch.zeros(3, 4)
    weight[1] = 2.0
    weight.requires_grad_()
    crest_ext.group_norms(weight, "filter").sum().backward()
    assert weight.grad.tolist() == [[0.0] * 4, [0.5] * 4, [0.0] * 4]


@pytest.mark.parametrize(
    ("weight", "groups", "message"),
    [
        (torch.zeros(3), "layer", r"weight must have at least 2 dimensions, got \(3,\)"),
        (
            torch.zeros(3, 2),
            "filters",
            "groups must be filter, channel, shape, kernel, layer, row or column, got filters",
        ),
        (torch.zeros(3, 2).int(), "row", "weight must be float32, float64, bfloat16 or float16, got int32"),
    ],
)
def test_errors(weight: torch.Tensor, groups: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^group_norms: {message}$"):
        crest_ext.group_norms(weight, groups)
