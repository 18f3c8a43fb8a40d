"""Files of what rewrites make, read into the network that it was made of."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import crest_ext as crest
from crest_ext.container import load_file, load_model, load_packed, safe_open, save_file, save_model
from crest_ext.nn import DepthwiseConv2d, LoweredConv2d, mask_
from shrinking import read_again, run, zero_


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 16, 5, 2, 2)
    model = nn.Sequential(*convs, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 24), nn.ReLU(), nn.Linear(24, 10))
    return model.eval()


def zeroed() -> nn.Sequential:
    model = network()
    zero_(model[0], outs=(1, 4))
    model[1].bias.data[[1, 4]] = 0
    zero_(model[6], outs=range(5), bias=0.5)
    return model


X = torch.randn(2, 3, 8, 8)
REWRITES: dict[str, Any] = {
    "shrink": lambda: crest.shrink(zeroed(), X),
    "factorize": lambda: crest.factorize(network(), rank=3),
    "separate": lambda: crest.separate(network())[0],
    "decompose": lambda: crest.decompose(network()),
    "in turn": lambda: crest.factorize(crest.separate(crest.shrink(zeroed(), X))[0], energy=0.5),
}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_read_again(rewrite: str) -> None:
    made = REWRITES[rewrite]()
    assert str(made) != str(network())
    again = read_again(made, network())
    assert str(again) == str(made)
    assert torch.equal(run(again, X), run(made, X))
    read = read_again(made, again)  # into one that has these layers
    assert str(read) == str(made)
    assert_close(read.state_dict(), made.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("rewrite", REWRITES)
def test_load_packed(rewrite: str, tmp_path: Path) -> None:
    made = REWRITES[rewrite]()
    save_model(made, tmp_path / "x.crest", of=network())
    with torch.device("meta"):
        model = network()
    packed = load_packed(model, tmp_path / "x.crest", most_kept=1).eval()
    assert any(isinstance(module, crest.nn.SparseLinear) for module in packed.modules())
    assert_close(run(packed, X), run(made, X), rtol=1e-4, atol=1e-5)


def test_a_layer_that_runs_twice(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.second(self.first(x))
            return y

    model, x = Twice(), torch.randn(2, 8)
    made = crest.factorize(model, rank=2)
    assert made.first is made.second
    again: Any = read_again(made, model)
    assert again.first is again.second
    assert torch.equal(run(again, x), run(made, x))


def test_parameters_are_like_those_before(tmp_path: Path) -> None:
    save_model(crest.factorize(network(), rank=3), tmp_path / "x.crest", of=network())
    model = network().to(torch.bfloat16, memory_format=torch.channels_last).train()
    model[0].requires_grad_(False)
    load_model(model, tmp_path / "x.crest")
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert model[3][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert [p.requires_grad for p in model[0].parameters()] == [False, False]
    assert all(p.requires_grad for p in model[3].parameters())
    assert all(module.training for module in model.modules())


def test_only_shapes_that_differ_have_other_parameters(tmp_path: Path) -> None:
    save_model(crest.shrink(zeroed(), X), tmp_path / "x.crest", of=network())
    with safe_open(tmp_path / "x.crest") as file:
        assert set(json.loads(file.metadata()["layers"])) == {"0", "1", "2", "3", "6", "8"}
    model = network()
    last, bias, hook = model[8], model[8].bias, []
    last.register_forward_hook(lambda *_: hook.append(1))
    load_model(model, tmp_path / "x.crest")
    run(model, X)
    assert model[8] is last and model[8].bias is bias and hook
    assert last.in_features == 19


def test_masked_networks(tmp_path: Path) -> None:
    def masked() -> nn.Sequential:
        model = zeroed()
        for layer in (model[0], model[3], model[6]):
            mask_(layer)
        return model

    small = crest.shrink(masked(), X)
    save_model(small, tmp_path / "x.crest", of=masked())
    for model in (masked(), network()):
        load_model(model, tmp_path / "x.crest")
        assert torch.equal(run(model, X), run(small, X))
        assert not any("mask" in name for name in model.state_dict())


def test_shapes_that_are_left(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(16, 8, 3, 2, 1, padding_mode="reflect", bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(16, 3, 3) < 0.02)
    x = torch.randn(1, 16, 9, 9)
    small = crest.shrink(model, x, shape=True)
    assert isinstance(small[0], LoweredConv2d)
    again = read_again(small, model)
    assert str(again) == str(small)
    assert torch.equal(run(again, x), run(small, x))


def test_same_padding() -> None:
    depthwise = DepthwiseConv2d(4, 3, 2, "same", multiplier=2, activation="relu6")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), depthwise, nn.Conv2d(8, 3, 1))
    zero_(model[2], ins=(2, 3, 4, 5, 6, 7))
    x = torch.randn(1, 3, 9, 9)
    small = crest.shrink(model, x)
    assert (small[1].in_channels, small[1].out_channels) == (1, 2)
    assert torch.equal(run(read_again(small, model), x), run(small, x))


def test_refuses_to_write(tmp_path: Path) -> None:
    path, model = tmp_path / "x.crest", network()
    fast = nn.Sequential(*model[:6], crest.nn.SparseLinear.from_linear(model[6]), *model[7:])
    with pytest.raises(ValueError, match=r"save_model: '6' must be as in `of`, or one of .*, got a SparseLinear"):
        save_model(fast, path, of=model)
    with pytest.raises(ValueError, match=r"'1' must be as in `of`, .* got a LayerNorm"):
        save_model(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), path, of=nn.Sequential(nn.ReLU(), nn.LayerNorm(5)))
    with pytest.raises(ValueError, match="model must have layers, or be as `of`, got a Linear"):
        save_model(nn.Linear(3, 2), path, of=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="metadata must not have 'layers', got 'x'"):
        save_model(model, path, {"layers": "x"}, of=model)
    assert not path.exists()
    save_model(nn.Linear(4, 2), path, of=nn.Linear(4, 2))  # no layer differs
    assert load_model(nn.Linear(4, 2), path) == ([], [])


CONV = {"in_channels": 3, "out_channels": 6, "kernel_size": 3, "bias": False}
DAMAGED = {
    "not JSON": "{",
    "a list": "[]",
    "a name without a kind": '{"0":[]}',
    "a kind that is not known": '{"0":["MaxPool2d"]}',
    "a kind that is a list": '{"0":[["Conv2d"]]}',
    "a word for a kind": '{"0":"ReLU"}',
    "another argument": '{"0":["ReLU",{"inplace":true}]}',
    "device": json.dumps({"0": ["Conv2d", CONV | {"device": "cuda"}]}),
    "an argument is missing": '{"0":["Conv2d",{"in_channels":3}]}',
    "too many": '{"0":["ReLU",{},{}]}',
    "below 0": json.dumps({"0": ["Conv2d", CONV | {"in_channels": -3}]}),
    "groups of 0": json.dumps({"0": ["Conv2d", CONV | {"groups": 0}]}),
    "groups that do not divide": json.dumps({"0": ["Conv2d", CONV | {"groups": 2}]}),
    "lists in a list": json.dumps({"0": ["Conv2d", CONV | {"stride": [[1], 1]}]}),
    "an object": json.dumps({"0": ["Conv2d", CONV | {"stride": {}}]}),
    "infinity": '{"0":["Linear",{"in_features":Infinity,"out_features":1}]}',
    "depth": "[" * 60_000,
    "other shapes": json.dumps({"0": ["Conv2d", CONV]}),
    "sizes that no memory has": json.dumps({"0": ["Conv2d", CONV | {"in_channels": 2**40, "out_channels": 2**20}]}),
    "sizes beyond 64 bits": json.dumps({"0": ["Conv2d", CONV | {"in_channels": 10**30}]}),
    "tensors that are not there": json.dumps({"0": ["Conv2d", CONV | {"out_channels": 8, "bias": True}]}),
    "a name of no layer": '{"9":["ReLU"]}',
    "a layer in a layer": '{"0.0":["ReLU"]}',
    "the model itself": '{"":["Sequential"]}',
    "a name without an end": '{"0":["Sequential"],"0.":["ReLU"]}',
    "a name that is no number": '{"0":["Sequential"],"0.forward":["ReLU"]}',
    "a name twice": '{"4":["ReLU"],"4":["ReLU"]}',
    "an argument twice": '{"0":["Linear",{"in_features":1,"in_features":1,"out_features":1}]}',
    "beneath what comes later": '{"0.0":["ReLU"],"0":["Sequential"]}',
}


@pytest.mark.parametrize("load", [load_model, load_packed])
def test_another_network_is_as_it_was(load: Any, tmp_path: Path) -> None:
    """Its layers fit, and what follows them does not."""
    path = tmp_path / "x.crest"
    save_model(REWRITES["in turn"](), path, of=network())
    model = nn.Sequential(*network(), nn.Linear(10, 2))
    before, shown, parameters = copy.deepcopy(model.state_dict()), str(model), list(model.parameters())
    with pytest.raises(
        ValueError, match=r"x\.crest: names must be those of the model, got missing 9\.weight, 9\.bias$"
    ):
        load(model, path)
    assert str(model) == shown
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("load", [load_model, load_packed])
@pytest.mark.parametrize("case", DAMAGED)
def test_refuses_to_read(case: str, load: Any, tmp_path: Path) -> None:
    model, path = network(), tmp_path / "x.crest"
    save_model(model, path)
    save_file(load_file(path), path, {"layers": DAMAGED[case]})
    before, shown = copy.deepcopy(model.state_dict()), str(model)
    with pytest.raises(ValueError, match=r"x\.crest: (metadata 'layers'|tensor )"):
        load(model, path)
    assert str(model) == shown
    assert_close(model.state_dict(), before, rtol=0, atol=0)
