"""`pack` of a model that calls functions where others hold modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from crest_ext.nn import ChannelMean, Shortcut, SparseConv2d, SparseLinear
from crest_ext.nn.quick import QUICK
from crest_ext.rewrite import measure, pack
from crest_ext.rewrite.functions import to_modules, without_identities


class Functional(nn.Module):
    """A network as most tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(24, 10)
        self.relu_0 = nn.Linear(10, 4)  # a name that a call's module could have been given
        for layer in (self.conv1, self.conv2, self.fc, self.relu_0):
            layer.weight.data.mul_(torch.rand_like(layer.weight) < 0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.local_response_norm(F.max_pool2d(F.relu(self.conv1(x)), 2), 3, alpha=0.1)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), kernel_size=2, ceil_mode=True)
        x = F.dropout(x, 0.5, self.training)
        return self.relu_0(self.fc(x.flatten(1)).relu()) + F.relu6(x).sum()


@pytest.fixture
def quick_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "medians", lambda *_: (2.0, 1.0))


def test_pack_fuses_and_replaces_calls(quick_wins: None) -> None:
    model = Functional()
    x = torch.randn(3, 1, 12, 12)
    packed, report = pack(model, x, explain=True)
    torch.testing.assert_close(packed(x), model.eval()(x))
    sparse = [m for m in packed.modules() if isinstance(m, (SparseConv2d, SparseLinear))]
    assert [layer.activation for layer in sparse] == ["relu", "relu", "relu", "none"]
    assert {layer.kernel for layer in report.layers if "pool" in layer.name or "norm" in layer.name} == {"quick"}
    kinds = [type(m) for m in packed.modules()]
    assert [kinds.count(kind) for kind in QUICK.values()] == [2, 1]
    assert not any(kind in kinds for kind in QUICK)
    assert kinds.count(nn.ReLU6) == 1 and kinds.count(nn.ReLU) == 0
    assert kinds.count(nn.Identity) == 0  # each would be called


PADS: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "positional": (True, lambda x: F.pad(x[:, :, ::2, ::3], (0, 0, 0, 0, 1, 2), "constant", 0)),
    "by name": (True, lambda x: F.pad(x[:, :, ::2, ::1], (0, 0, 0, 0, 0, 2), mode="constant", value=0.0)),
    "used again": (True, lambda x: (lambda y: F.pad(y, [0, 0, 0, 0, 1, 1])[:, 1:3] + y)(x[:, :, ::2, ::2])),
    "other zeros": (False, lambda x: F.pad(x[:, :, ::2, ::2], (0, 1, 0, 0, 1, 2))),
    "ones": (False, lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2), value=1.0)),
    "some channels": (False, lambda x: F.pad(x[:, :1, ::2, ::2], (0, 0, 0, 0, 1, 2))),
    "from the second": (False, lambda x: F.pad(x[:, :, 1::2, ::2], (0, 0, 0, 0, 1, 2))),
    "of all": (False, lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))),
    "cut": (False, lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, -1, 2))),
}


@pytest.mark.parametrize("name", PADS)
def test_a_pad_becomes_a_shortcut(name: str) -> None:
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(PADS[name][1](x))

    model, x = Padded().eval(), torch.randn(2, 2, 7, 8)
    traced = to_modules(model, (x,))
    assert isinstance(traced, fx.GraphModule)
    assert any(isinstance(module, Shortcut) for module in traced.modules()) is PADS[name][0]
    assert torch.equal(traced(x), model(x))


MEANS: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "function": (True, lambda x: torch.mean(x, (2, 3))),
    "method": (True, lambda x: x.mean([3, 2], True)),
    "by name": (True, lambda x: x.mean(dim=(2, 3), keepdim=True)),
    "rows": (False, lambda x: x.mean(2)),
    "others": (False, lambda x: x.mean((1, 2))),
    "all": (False, torch.mean),
    "of a dtype": (False, lambda x: x.mean((2, 3), dtype=torch.float64)),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_becomes_a_module(name: str) -> None:
    class Ends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return MEANS[name][1](F.relu(x))

    model, x = Ends().eval(), torch.randn(2, 3, 7, 8)
    traced = to_modules(model, (x,))
    assert any(isinstance(module, ChannelMean) for module in traced.modules()) is MEANS[name][0]
    assert torch.equal(traced(x), model(x))


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same, self.relu = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.same(input=x))


def test_an_identity_may_get_its_input_by_name() -> None:
    left = without_identities(fx.symbolic_trace(ByName()))
    assert torch.equal(left(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))
    assert [name for name, _ in left.named_children()] == ["relu"]


def test_an_identity_with_a_hook_is_called() -> None:
    model, seen = nn.Sequential(nn.Identity(), nn.Identity(), nn.ReLU()), []
    traced = fx.symbolic_trace(model)
    traced.get_submodule("1").register_forward_hook(lambda *_: seen.append(1))
    left = without_identities(traced)
    assert torch.equal(left(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))
    assert [name for name, _ in left.named_children()] == ["1", "2"]
    assert seen == [1]


def test_the_packed_model_is_ordinary(quick_wins: None) -> None:
    model, x = Functional().eval(), torch.randn(3, 1, 12, 12)
    packed: Any = pack(model, x)
    expected = packed(x)
    for same in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(same(x), expected)
    program = torch.export.export(packed, (x,))
    torch.testing.assert_close(program.module()(x), expected)


class Branches(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 1e9 else 2 * x)


class Two(Functional):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return {"first": y, "more": (F.relu(y - 1), y)}


def test_results_of_any_structure() -> None:
    model, x = Two().eval(), torch.randn(2, 1, 12, 12)
    traced = to_modules(model, (x,))
    assert isinstance(traced, fx.GraphModule)
    got, expected = traced(x), model(x)
    assert torch.equal(got["first"], expected["first"])
    assert all(map(torch.equal, got["more"], expected["more"]))


class Random(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.relu(torch.rand(1))


class Optional(Functional):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return super().forward(x if scale is None else x * scale)


class Modules(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.ReLU())


@pytest.mark.parametrize("kind", [Branches, Random, Optional, Modules])
def test_what_stays_as_it_is(kind: type[nn.Module]) -> None:
    """What torch.fx cannot trace, or traces wrongly, what gives something else each time, and what calls nothing."""
    model = kind().eval()
    assert to_modules(model, (torch.randn(1, 1, 12, 12),)) is model


def test_names_and_state_stay() -> None:
    model = Functional().eval()
    traced = to_modules(model, (torch.randn(1, 1, 12, 12),))
    assert isinstance(traced, fx.GraphModule)
    assert traced.state_dict().keys() == model.state_dict().keys()
    assert traced.relu_0 is model.relu_0
    assert not traced.training
