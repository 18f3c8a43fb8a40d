"""Arrays of more than 2^31 elements: the last block of the grid reaches their end, and no index wraps around.

Only that block runs, and only the pages it touches exist: the arrays are zero but for what the tests put at their ends.
"""

from __future__ import annotations

import pytest
import torch
from host import Case, Driver

HALF = torch.float16
M, K = (1 << 21) + 8, 1032  # M * K > 2^31; both are multiples of the packs, and neither is one of a tile


def test_prune_splice(checked: Driver) -> None:
    n, end = (1 << 31) + (1 << 25), 2048  # the last block's last packs
    weight, mask = torch.randn(end).to(HALF), torch.rand(end) < 0.5
    case = Case("prune_splice", HALF, (n,), [weight, mask], (0.5, 1.0), last_only=True, zeros={0: n - end, 1: n - end})
    [[_, after]] = checked(case)
    assert torch.equal(after, (weight.abs() >= 1.0) | mask & (weight.abs() >= 0.5))


@pytest.mark.parametrize("n", [1, 9])
def test_masked_linear(checked: Driver, n: int) -> None:
    end = 8  # rows of weight in the last block
    x, weight, mask, bias = torch.randn(n, K), torch.randn(end, K), torch.rand(end, K) < 0.5, torch.randn(end)
    arrays = [x.to(HALF), weight.to(HALF), mask, bias.to(HALF), torch.zeros(end, dtype=HALF)]
    before = {1: (M - end) * K, 2: (M - end) * K, 3: M - end, 4: n * M - end}
    [[*_, y]] = checked(Case("masked_linear", HALF, (n, M, K), arrays, last_only=True, zeros=before))
    expected = arrays[0][-1].float() @ torch.where(mask, arrays[1], 0).float().t() + arrays[3]
    torch.testing.assert_close(y.float(), expected, rtol=1e-3, atol=1e-3)


def test_masked_linear_grad_x(checked: Driver) -> None:
    n, m, k, end = 9, K, M, 8  # the weight's last row, from column k - 8 on
    arrays = [
        torch.randn(n, m).to(HALF),
        torch.randn(end).to(HALF),
        torch.rand(end) < 0.5,
        torch.zeros(end, dtype=HALF),
    ]
    before = {1: m * k - end, 2: m * k - end, 3: n * k - end}
    [[*_, grad_x]] = checked(Case("masked_linear_grad_x", HALF, (n, m, k), arrays, last_only=True, zeros=before))
    torch.testing.assert_close(grad_x, arrays[0][-1, -1] * torch.where(arrays[2], arrays[1], 0))


def test_masked_linear_grad_weight(checked: Driver) -> None:
    n, m, k, end = 3, K, M, 8
    arrays = [
        torch.randn(n, m).to(HALF),
        torch.randn(end).to(HALF),
        torch.rand(end) < 0.5,
        torch.zeros(end, dtype=HALF),
    ]
    before = {1: n * k - end, 2: m * k - end, 3: m * k - end}
    case = Case("masked_linear_grad_weight", HALF, (n, m, k), arrays, last_only=True, zeros=before)
    [[*_, grad_weight]] = checked(case)
    torch.testing.assert_close(grad_weight, torch.where(arrays[2], arrays[0][-1, -1] * arrays[1], 0))


def test_truncated_svd(checked: Driver) -> None:
    r, c, k = 8, 8, 2
    blocks = (1 << 25) // 208  # svd_blocks
    n = blocks * 209  # n * r * c > 2^31, and the last block takes the last matrix
    a, state = torch.randn(1, r, c), torch.ones(1, dtype=torch.int8)
    arrays = [a, torch.zeros(1, r, k), torch.zeros(1, k), torch.zeros(1, k, c), state, None]
    before = {0: (n - 1) * r * c, 1: (n - 1) * r * k, 2: (n - 1) * k, 3: (n - 1) * k * c, 4: n - 1}
    case = Case("truncated_svd", torch.float32, (n, r, c, k, 40), arrays, last_only=True, zeros=before)
    [[_, u, s, vh, state, _]] = checked(case)
    assert state.item() == 0
    expected_u, expected_s, expected_vh = torch.linalg.svd(a)
    torch.testing.assert_close(s, expected_s[:, :k])
    torch.testing.assert_close(u * s @ vh, expected_u[..., :k] * expected_s[:, :k] @ expected_vh[:, :k])
