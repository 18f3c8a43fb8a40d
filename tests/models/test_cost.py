from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from crest_ext.models import layer_costs, multiply_adds

pytestmark = pytest.mark.usefixtures("one_thread")


class Odd(nn.Module):
    """A layer that runs twice, one that never does, a weight in two layers, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.Linear(6, 6), nn.Linear(6, 2)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.twice.weight
        self.last = weight_norm(nn.Linear(6, 3))
        self.lstm = nn.LSTM(3, 4)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.last(self.tied(self.twice(self.twice(x * self.scale)))))[0]


def test_odd_layers() -> None:
    model = Odd().train()
    rows, seconds = layer_costs(model, torch.rand(5, 6), rounds=3)
    assert [(r.name, r.shape, r.multiply_adds, r.parameters) for r in rows] == [
        ("twice", (5, 6), 2 * 5 * 36, 42),
        ("tied", (5, 6), 5 * 36, 0),  # its weight is that of another
        ("last", (5, 3), 5 * 18, 18 + 3 + 3),
        ("lstm", None, None, 4 * 4 * (3 + 4 + 2)),
        ("", None, None, 1),
        ("never", None, None, 14),
    ]
    assert sum(r.parameters for r in rows) == sum(p.numel() for p in model.parameters())
    assert all(r.bytes == 4 * r.parameters for r in rows)
    assert [r.seconds is None for r in rows] == [False] * 4 + [True] * 2
    assert seconds > 0
    assert model.training and model.twice.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("conv", "shape", "expected"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (4, 8), 6 * 6 * 2 * 3),
        (nn.Conv3d(2, 3, 2), (2, 3, 3, 3), 8 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (4, 5, 5), 25 * 4 * 3 * 9),
    ],
    ids=["1d", "3d", "transposed"],
)
def test_multiply_adds_of_any_convolution(conv: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert multiply_adds(conv, torch.zeros(2, *shape)) == {"": 2 * expected}
