from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import pack_sparse
from crest_ext.nn import MaskedLinear, SparseLinear


def masked(m: int = 20, k: int = 150, density: float = 0.2) -> MaskedLinear:
    layer = MaskedLinear(k, m)
    for parameter, mask in layer.masked_parameters():
        mask.copy_(torch.rand_like(parameter) < density)
    return layer


@pytest.fixture
def layer() -> SparseLinear:
    return SparseLinear.from_linear(masked(), activation="relu")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 150)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_computes_the_layer(dtype: torch.dtype, bias: bool, x: Tensor) -> None:
    plain, pruned = nn.Linear(150, 20, bias=bias), masked()
    sparse = SparseLinear.from_linear(plain, dtype)
    torch.testing.assert_close(sparse(x), F.linear(x, plain.weight.to(dtype).float(), plain.bias))
    sparse = SparseLinear.from_linear(pruned, dtype, "relu")
    weight = pruned.effective_weight().to(dtype).float()
    torch.testing.assert_close(sparse(x), F.linear(x, weight, pruned.effective_bias()).relu())
    assert torch.equal(sparse.effective_weight().float(), weight)
    assert sparse.density == pytest.approx(pruned.mask.float().mean().item())
    assert list(sparse.parameters()) == []


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(layer: SparseLinear, x: Tensor, clone: Callable[[nn.Module], SparseLinear]) -> None:
    other = clone(layer)
    assert torch.equal(other(x), layer(x))
    other.values.zero_()
    assert not torch.equal(other(x), layer(x))
    assert repr(clone(layer)) == repr(layer)


def test_does_not_share_the_bias(x: Tensor) -> None:
    plain = nn.Linear(150, 20)
    sparse = SparseLinear.from_linear(plain)
    before = sparse(x)
    plain.bias.data.zero_()
    assert torch.equal(sparse(x), before)


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_takes_a_state_of_other_non_zeros(layer: SparseLinear, x: Tensor, density: float) -> None:
    other = SparseLinear.from_linear(masked(density=density), torch.float16, activation="relu")
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))
    assert layer.values.dtype == torch.float16
    other.values.zero_()
    assert torch.equal(layer.state_dict()["values"], layer.values)  # own memory
    model = nn.Sequential(SparseLinear.from_linear(masked(), activation="relu"))
    model.load_state_dict(nn.Sequential(layer).state_dict())
    assert torch.equal(model(x), layer(x))


def test_refuses_a_state_with_wrong_indices(layer: SparseLinear, x: Tensor) -> None:
    before, state = layer(x), layer.state_dict()
    state["columns"] = torch.full_like(state["columns"], 200)
    with pytest.raises(RuntimeError, match="0: PackedSparse: columns must lie within their tiles"):
        nn.Sequential(layer).load_state_dict({f"0.{name}": t for name, t in state.items()})
    assert torch.equal(layer(x), before)
    del state["columns"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "columns"'):
        layer.load_state_dict(state)
    assert torch.equal(layer(x), before)


def test_checks_what_it_is_constructed_from() -> None:
    packed = pack_sparse(torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"^PackedSparse: rows must be below 16$"):
        SparseLinear(packed._replace(rows=packed.rows + 100))
    with pytest.raises(ValueError, match=r"^SparseLinear: bias must have shape \(3,\), got \(4,\)$"):
        SparseLinear(packed, torch.zeros(4))
    with pytest.raises(ValueError, match=r"^SparseLinear: activation must be none, relu or relu6, got tanh$"):
        SparseLinear(packed, activation="tanh")


def test_compiles_whole(layer: SparseLinear, x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(150, 150), layer).requires_grad_(False)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_exports_with_a_dynamic_batch(layer: SparseLinear) -> None:
    example = torch.randn(4, 150)
    program = torch.export.export(layer, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for n in (1, 5, 70):
        x = torch.randn(n, 150)
        assert torch.equal(program.module()(x), layer(x))
