from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import crest_ext
from samples import DTYPES

LR, MOMENTUM, DECAY, LOW, HIGH = 0.1, 0.9, 0.01, 0.5, 1.0
STEP = (LR, MOMENTUM, DECAY, LOW, HIGH)


def away_from_thresholds(n: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Weights and three gradients after which no |weight| is within rounding of LOW or HIGH, at any step."""
    weight = torch.linspace(-1.6, 1.6, n, dtype=torch.float64)
    grads = [torch.randn(n, dtype=torch.float64) * 0.3 for _ in range(3)]
    w, b, near = weight.clone(), torch.zeros_like(weight), torch.zeros(n, dtype=torch.bool)
    for g in grads:
        b = MOMENTUM * b + g + DECAY * w
        w = w - LR * b
        for threshold in (LOW, HIGH):
            near |= (w.abs() - threshold).abs() < 6 * torch.finfo(dtype).eps
    assert 2 * near.sum() < n
    return weight[~near].to(dtype), [g[~near].to(dtype) for g in grads]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_torch_sgd_then_prune_splice(dtype: torch.dtype, threads: int, isa: str, device: str) -> None:
    """Three steps from a zero buffer: weights and buffer within rounding, masks the same."""
    weight, grads = away_from_thresholds(3 * (1 << 15) + 7 if dtype == torch.float32 else 1003, dtype)
    weight, grads = weight.to(device), [g.to(device) for g in grads]
    mask = torch.rand(weight.shape).lt(0.5).to(device)
    theirs, their_mask = torch.nn.Parameter(weight.clone()), mask.clone()
    sgd = torch.optim.SGD([theirs], lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    buffer = torch.zeros_like(weight)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for grad in grads:
        theirs.grad = grad.clone()
        sgd.step()
        crest_ext.prune_splice_(theirs.detach(), their_mask, LOW, HIGH)
        crest_ext.sgd_prune_splice_(weight, grad, buffer, mask, *STEP)
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(weight, theirs.detach(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(buffer, sgd.state[theirs]["momentum_buffer"], rtol=tolerance, atol=tolerance)
        assert torch.equal(mask, their_mask)
    torch.set_num_threads(before)
    assert 0.1 < mask.double().mean() < 0.9


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_prune_splice_to_the_bit(dtype: torch.dtype, isa: str, device: str) -> None:
    """The mask comes from the weight as it is stored, after rounding: prune_splice_ finds nothing left to do."""
    weight, grad, buffer = (torch.randn(1003).to(device, dtype) for _ in range(3))
    mask = torch.rand(1003).lt(0.5).to(device)
    crest_ext.sgd_prune_splice_(weight, grad, buffer, mask, *STEP)
    again = mask.clone()
    crest_ext.prune_splice_(weight, again, LOW, HIGH)
    assert torch.equal(mask, again)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_result_wherever_a_weight_lies(dtype: torch.dtype, isa: str) -> None:
    """A weight's result does not depend on its place in a register, so not on the number of threads either."""
    weight, grad, buffer = (torch.randn(67).to(dtype) for _ in range(3))
    mask = torch.rand(67).lt(0.5)
    alone = [t.clone() for t in (weight, grad, buffer, mask)]
    crest_ext.sgd_prune_splice_(weight, grad, buffer, mask, *STEP)
    for i in range(67):
        crest_ext.sgd_prune_splice_(*(t[i : i + 1] for t in alone), *STEP)
    for got, expected in zip(alone, (weight, grad, buffer, mask), strict=True):
        assert torch.equal(got, expected)


def test_nan_keeps_its_mask(isa: str, device: str) -> None:
    weight = torch.full((34,), float("nan"), device=device)
    mask = torch.tensor([True, False] * 17, device=device)
    crest_ext.sgd_prune_splice_(weight, torch.zeros_like(weight), torch.zeros_like(weight), mask, *STEP)
    assert weight.isnan().all()
    assert mask.tolist() == [True, False] * 17


def test_update_mask_false_leaves_the_mask_alone(isa: str, device: str) -> None:
    weight, mask = torch.randn(1003, device=device), torch.rand(1003).lt(0.5).to(device)
    moved, same = weight.clone(), mask.clone()
    crest_ext.sgd_prune_splice_(
        moved, torch.ones_like(weight), torch.zeros_like(weight), same, *STEP, update_mask=False
    )
    assert torch.equal(same, mask)
    torch.testing.assert_close(moved, weight - LR * (1 + DECAY * weight))


def test_leaves_the_gradient_alone_and_takes_a_strided_one(isa: str, device: str) -> None:
    weight, grad = torch.randn(33, 17, device=device), torch.randn(17, 33, device=device).t()
    expected, given = weight - LR * (grad + DECAY * weight), grad.clone()
    buffer, mask = torch.zeros_like(weight), torch.ones(33, 17, dtype=torch.bool, device=device)
    crest_ext.sgd_prune_splice_(weight, grad, buffer, mask, *STEP)
    torch.testing.assert_close(weight, expected)
    assert torch.equal(grad, given)


def arguments(**changed: Any) -> dict[str, Any]:
    given = {"weight": torch.zeros(2, 3), "grad": torch.zeros(2, 3), "momentum_buffer": torch.zeros(2, 3)}
    given |= {"mask": torch.ones(2, 3, dtype=torch.bool), "lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
    return given | {"low": LOW, "high": HIGH} | changed


IN_PLACE = "must be contiguous, since it is written in place, got strides of a view"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grad": torch.zeros(3, 2)}, r"grad must have the shape of weight, \(2, 3\), got \(3, 2\)"),
        ({"momentum_buffer": torch.zeros(6)}, r"momentum_buffer must have the shape of weight, \(2, 3\), got \(6,\)"),
        ({"mask": torch.ones(2, 3, 1).bool()}, r"mask must have the shape of weight, \(2, 3\), got \(2, 3, 1\)"),
        ({"weight": torch.zeros(2, 3).long()}, "weight must be float32, float64, bfloat16 or float16, got int64"),
        ({"grad": torch.zeros(2, 3).double()}, "grad must have the dtype of weight, float32, got float64"),
        ({"momentum_buffer": torch.zeros(2, 3).half()}, "momentum_buffer must have the .*, float32, got float16"),
        ({"mask": torch.ones(2, 3)}, "mask must be bool, got float32"),
        ({"weight": torch.zeros(3, 2).t()}, f"weight {IN_PLACE}"),
        ({"momentum_buffer": torch.zeros(3, 2).t()}, f"momentum_buffer {IN_PLACE}"),
        ({"mask": torch.ones(3, 2).bool().t()}, f"mask {IN_PLACE}"),
        ({"low": 1.0, "high": 0.5}, "low must be at most high, 0.5, got 1"),
        ({"low": float("nan")}, "low must be at most high, 1, got nan"),
    ],
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^sgd_prune_splice_: {message}$"):
        crest_ext.sgd_prune_splice_(**arguments(**changed))
