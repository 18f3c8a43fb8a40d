"""Branches that run in training only, as auxiliary heads do."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext.rewrite.follow import enter_branches
from shrinking import check, conv_bn, settle, shapes, zero_

pytestmark = pytest.mark.usefixtures("one_thread")


class Outputs(NamedTuple):
    y: Tensor
    aux: Tensor


class Aux(nn.Module):
    """As GoogLeNet's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.drop = conv_bn(channels, 6, 1), nn.Dropout()
        self.fc1, self.fc2 = nn.Linear(24, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, 2)).flatten(1)
        return self.fc2(self.drop(F.relu(self.fc1(x))))


class Inception(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8, padding=1), conv_bn(8, 6, 1), conv_bn(8, 6, padding=1)
        self.aux, self.last, self.head, self.dropout = Aux(12), conv_bn(12, 10), nn.Linear(10, 4), dropout

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = torch.cat([self.a(x), self.b(x)], 1)
        aux = self.aux(x) if self.training else None
        x = F.dropout(self.last(x).mean((2, 3)), self.dropout, self.training)
        return Outputs(self.head(x), aux) if aux is not None else self.head(x)


def zeros(model: Any) -> Any:
    """Filters whose outputs are 0, after BatchNorm too."""
    for block in (model.stem, model.a, model.b, model.last, model.aux.conv):
        zero_(block[0], outs=[0, 1, 2])
        block[1].running_mean[:3] = 0
        block[1].bias.data[:3] = 0
    return model


def in_branches(model: nn.Module, x: Tensor) -> Any:
    model = copy.deepcopy(model)
    enter_branches(model)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_auxiliary_head(dropout: float) -> None:
    model, x = zeros(settle(Inception(dropout))), torch.randn(4, 3, 9, 9)
    zero_(model.last[0], ins=[4])  # which the head reads alone, and so keeps
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    small, report = check(model, x, optimizer=optimizer)
    assert shapes(report) == {
        "stem.0": (5, 3),
        "a.0": (3, 5),
        "b.0": (3, 5),
        "aux.conv.0": (3, 6),
        "aux.fc1": (8, 12),
        "aux.fc2": (4, 8),
        "last.0": (7, 6),
        "head": (4, 7),
    }
    if not dropout:
        torch.testing.assert_close(in_branches(small, x), in_branches(model, x))
    before = small.aux.conv[0].weight.detach().clone()
    y, aux = small.train()(x)
    (y.sum() + aux.sum()).backward()
    optimizer.step()
    assert not torch.equal(small.aux.conv[0].weight, before)


def test_a_channel_that_a_branch_alone_reads() -> None:
    model, x = settle(Inception()), torch.randn(2, 3, 9, 9)
    zero_(model.last[0], ins=range(6))
    zero_(model.aux.conv[0], ins=[0, 1])
    _, report = check(model, x)
    assert (shapes(report)["a.0"], shapes(report)["last.0"]) == ((4, 8), (10, 10))


class Shared(nn.Module):
    """Its head reads two features in training, and has one more layer then."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.head, self.extra = nn.Linear(6, 3), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.a(x))
        y = self.head(self.b(x))
        return (y, self.head(self.norm(self.extra(x)))) if self.training else y


def test_layers_that_a_branch_uses_again() -> None:
    model, x = settle(Shared()), torch.randn(4, 5)
    zero_(model.head, ins=[0, 1])
    zero_(model.b, ins=[2, 3])
    small, report = check(model, x)
    assert shapes(report) == {"a": (6, 5), "b": (6, 6), "head": (3, 6), "extra": (6, 6)}
    assert report["b"].note == "6 of 6 outputs stay: head reads them, which is used more than once"
    assert len(small.train()(x)) == 2


def test_branches_that_cannot_be_traced() -> None:
    class Loss(Shared):
        def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
            y = self.head(self.b(self.norm(self.a(x))))
            return F.mse_loss(self.extra(self.a(x)), target) if self.training else y  # type: ignore[arg-type]

    model = settle(Loss())
    zero_(model.b, ins=[2, 3])
    _, report = check(model, torch.randn(4, 5))
    assert shapes(report) == {"a": (4, 5), "b": (6, 4), "head": (3, 6), "extra": (6, 6)}
    assert str(report["extra"]) == (
        "extra: left as it is: is not run in evaluation, and torch.export cannot trace training: it may read channels "
        "that went"
    )
