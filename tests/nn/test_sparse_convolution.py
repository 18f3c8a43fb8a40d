from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest_ext import pack_sparse_conv2d
from crest_ext.nn import SparseConv2d, mask_


def pruned(density: float = 0.2, **options: Any) -> nn.Conv2d:
    layer = nn.Conv2d(6, 8, 3, **options)
    layer.weight.data.mul_(torch.rand_like(layer.weight) < density)
    return layer


@pytest.fixture
def layer() -> SparseConv2d:
    return SparseConv2d.from_conv2d(pruned(padding=1), activation="relu")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, 9, 10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "padding": 2, "stride": (1, 2)},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"groups": 2},
    ],
    ids=str,
)
def test_computes_the_layer(options: dict[str, Any], x: Tensor) -> None:
    plain = pruned(**options)
    sparse = SparseConv2d.from_conv2d(plain)
    torch.testing.assert_close(sparse(x), plain(x))
    assert torch.equal(sparse.effective_weight(), plain.weight)
    assert sparse.density == pytest.approx((plain.weight != 0).float().mean().item())
    assert list(sparse.parameters()) == []
    half = SparseConv2d.from_conv2d(plain, torch.bfloat16, "relu")
    plain.weight.data = plain.weight.bfloat16().float()
    torch.testing.assert_close(half(x), plain(x).relu())


def test_computes_a_masked_layer(x: Tensor) -> None:
    layer = mask_(nn.Conv2d(6, 8, 3))
    for parameter, mask in layer.masked_parameters():
        mask.copy_(torch.rand_like(parameter) < 0.4)
    torch.testing.assert_close(SparseConv2d.from_conv2d(layer)(x), layer(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(layer: SparseConv2d, x: Tensor, clone: Callable[[nn.Module], SparseConv2d]) -> None:
    other = clone(layer)
    assert torch.equal(other(x), layer(x))
    other.values.zero_()
    assert not torch.equal(other(x), layer(x))
    assert repr(clone(layer)) == repr(layer)


def test_takes_a_state_of_other_non_zeros(layer: SparseConv2d, x: Tensor) -> None:
    other = SparseConv2d.from_conv2d(pruned(0.7, padding=1), torch.float16, activation="relu")
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))
    before, state = layer(x), layer.state_dict()
    state["columns"] = torch.full_like(state["columns"], 200)
    with pytest.raises(RuntimeError, match="PackedSparseConv2d: columns must lie within their tiles"):
        layer.load_state_dict(state)
    assert torch.equal(layer(x), before)
    for strict in (True, False):  # some tensors, which do not fit those that are here
        starts = layer.starts.clone()
        starts[1:] = 10**8
        with pytest.raises(RuntimeError, match="PackedSparseConv2d: starts must ascend from 0 to"):
            layer.load_state_dict({"starts": starts}, strict=strict)
        assert torch.equal(layer(x), before)
    state = layer.state_dict()
    state["columns"] = torch.zeros_like(state["columns"])
    with pytest.raises(RuntimeError, match="PackedSparseConv2d: columns must ascend within a cell"):
        layer.load_state_dict(state)


def test_one_image_is_added_to_all(layer: SparseConv2d, x: Tensor) -> None:
    y = layer(x)
    assert torch.equal(layer(x, y[:1]), layer(x, y[:1].expand_as(y)))
    assert torch.equal(layer(x[:1], y), layer(x[:1].expand_as(x), y))


def test_autocast(layer: SparseConv2d, x: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            layer(x.bfloat16(), layer(x).bfloat16()), layer(x.bfloat16().float(), layer(x).bfloat16().float())
        )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"padding": 1, "padding_mode": "reflect"}, "pads with reflect"),
        ({"padding": "same", "kernel": 4}, "pads one side more than the other"),
    ],
)
def test_refuses_other_padding(options: dict[str, Any], reason: str) -> None:
    conv = nn.Conv2d(2, 2, options.pop("kernel", 3), **options)
    assert SparseConv2d.refusal(conv) == reason
    with pytest.raises(
        ValueError, match=f"^SparseConv2d: conv must pad with zeros, as much on each side; it {reason}$"
    ):
        SparseConv2d.from_conv2d(conv)


def test_checks_what_it_is_constructed_from() -> None:
    packed = pack_sparse_conv2d(torch.ones(3, 3, 1, 1))
    with pytest.raises(ValueError, match=r"^PackedSparseConv2d: columns must lie within their tiles$"):
        SparseConv2d(packed._replace(columns=packed.columns + 100))
    with pytest.raises(ValueError, match=r"^SparseConv2d: bias must have shape \(3,\), got \(4,\)$"):
        SparseConv2d(packed, torch.zeros(4))
    with pytest.raises(ValueError, match=r"^SparseConv2d: activation must be none, relu or relu6, got tanh$"):
        SparseConv2d(packed, activation="tanh")


def test_compiles_and_exports(layer: SparseConv2d, x: Tensor) -> None:
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for n in (1, 5):
        batch = torch.randn(n, 6, 9, 10)
        assert torch.equal(program.module()(batch), layer(batch))
