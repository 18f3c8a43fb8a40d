from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import Quantize, QuantizeConfig, Surgery
from crest_ext.container import load_file, load_model, save_model
from crest_ext.nn import MaskedLinear
from surgeries import X, Y, always, lenet, masks, train

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


def pruned(optimizer: torch.optim.Optimizer | None = None, model: nn.Module | None = None) -> nn.Module:
    """After surgery: about half of the weights are masked."""
    model = model or lenet()
    surgery = Surgery(model, always(c_rate=0.3))
    train(model, optimizer or torch.optim.SGD(model.parameters(), lr=0.05), surgery, 10)
    surgery.finish()
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def fine_tune(model: nn.Module, optimizer: torch.optim.Optimizer, quantize: Quantize, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        quantize.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_few_values_and_exact_zeros(make: Any) -> None:
    """With momentum from before, at every step: dropped weights are 0 themselves, the others one of few values."""
    model = lenet()
    optimizer = make(model.parameters())
    pruned(optimizer, model)
    dropped = {name.replace("mask", "weight" if ".mask" in name else ""): ~m for name, m in masks(model).items()}
    dropped = {name.replace("bias_", "bias"): m for name, m in dropped.items()}
    quantize = Quantize(model, QuantizeConfig(0.02, levels=6, ramp=5))
    for _ in range(10):
        fine_tune(model, optimizer, quantize, 1)
        for name, p in weights(model).items():
            assert not p[dropped[name]].any()
            assert len(p[p != 0].unique()) <= 6
            assert torch.equal(p, p.to(torch.bfloat16).float())
            assert not torch.signbit(p[p == 0]).any()
    assert any(d.any() for d in dropped.values())


def test_training_goes_on_behind_the_values() -> None:
    """Steps too small for a weight to change its value add up in the latent weights, until it does."""
    layer = nn.Linear(8, 1, bias=False)
    target = -layer.weight.detach().clone()
    quantize = Quantize(layer, QuantizeConfig(0.0, levels=4))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer.weight - target).square().sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        quantize.step()
    assert len(layer.weight.unique()) <= 5
    assert losses[-1] < 0.2 * losses[0]


def test_values_move_along_the_sum_of_gradients() -> None:
    """With every weight's value fixed: a step of SGD moves a value by lr times the mean gradient of its weights."""
    layer = nn.Linear(6, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, 1.0, 1.0, -2.0, -2.0, 0.0]]))
    quantize = Quantize(layer, QuantizeConfig(0.0, levels=2, iter_stop=0))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    layer.weight.grad = torch.tensor([[1.0, 2.0, 3.0, -1.0, 0.0, 9.0]])
    optimizer.step()
    quantize.step()
    assert layer.weight.tolist() == [[0.5, 0.5, 0.5, -1.875, -1.875, 0.0]]


def test_a_bit_costs_more_over_the_ramp_and_values_freeze() -> None:
    model = pruned()
    quantize = Quantize(model, QuantizeConfig(0.05, levels=8, ramp=10, iter_stop=12))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    bits = [sum(t.bits for t in quantize.summary().tensors)]
    for _ in range(4):
        fine_tune(model, optimizer, quantize, 3)
        bits.append(sum(t.bits for t in quantize.summary().tensors))
    assert bits[-1] < 0.8 * bits[0]
    groups = {name: p.unique(return_inverse=True)[1] for name, p in weights(model).items()}
    fine_tune(model, optimizer, quantize, 5)
    after = weights(model)
    assert all(torch.equal(after[name].unique(return_inverse=True)[1], group) for name, group in groups.items())


def test_layers_by_name() -> None:
    model = lenet()
    before = weights(model)
    quantize = Quantize(model, QuantizeConfig({"0": 0.0, "4": 0.5}, levels=4))
    assert [t.name for t in quantize.finish().tensors] == ["0.weight", "0.bias", "4.weight", "4.bias"]
    for name, p in weights(model).items():
        assert torch.equal(p, before[name]) == (name[0] in "26")
    assert len(model[0].weight.unique()) > len(model[4].weight.unique())


def test_root_module_and_other_dtypes() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        layer = nn.Linear(20, 30, dtype=dtype)
        summary = Quantize(layer, QuantizeConfig(0.01, levels=8)).finish()
        assert [t.name for t in summary.tensors] == ["weight", "bias"]
        assert len(layer.weight.unique()) <= 9
        assert layer.weight.dtype == dtype


def test_channels_last() -> None:
    """The memory format changes nothing."""
    model = pruned()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for m in (model, other):
        Quantize(m, QuantizeConfig(0.05, levels=4)).finish()
    assert other[2].weight.stride() != model[2].weight.stride()
    assert all(torch.equal(p, weights(other)[name]) for name, p in weights(model).items())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_resumes_bit_for_bit(make: Any, tmp_path: Path) -> None:
    config = QuantizeConfig(0.1, levels=5, ramp=10, iter_stop=16)
    model = pruned()
    optimizer, quantize = make(model.parameters()), Quantize(model, config)
    fine_tune(model, optimizer, quantize, 6)
    parts = {"model": model, "optimizer": optimizer, "quantize": quantize}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "checkpoint.pt")
    fine_tune(model, optimizer, quantize, 12)

    other = lenet()
    Surgery(other, always())  # for the masks that are to be loaded
    others = {"model": other, "optimizer": make(other.parameters()), "quantize": Quantize(other, config)}
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name, part in others.items():
        part.load_state_dict(state[name])  # type: ignore[attr-defined]
    for layer in other:
        if hasattr(layer, "straight_through"):
            layer.straight_through = False
    fine_tune(other, others["optimizer"], others["quantize"], 12)  # type: ignore[arg-type]
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert str(others["quantize"].finish()) == str(quantize.finish())  # type: ignore[attr-defined]


def test_deepcopy_goes_on_alike() -> None:
    model = pruned()
    optimizer, quantize = torch.optim.Adam(model.parameters(), lr=1e-3), Quantize(model, QuantizeConfig(0.05))
    fine_tune(model, optimizer, quantize, 3)
    other, other_optimizer, other_quantize = copy.deepcopy((model, optimizer, quantize))
    fine_tune(model, optimizer, quantize, 5)
    between = weights(other)
    fine_tune(other, other_optimizer, other_quantize, 5)
    assert any(not torch.equal(p, between[name]) for name, p in weights(other).items())
    assert all(torch.equal(p, weights(other)[name]) for name, p in weights(model).items())


def test_saved_bit_for_bit_and_small(tmp_path: Path) -> None:
    """Masked weights that became 0 are dropped, so the file has no signs of zeros; plain and masked models load it."""
    model = pruned()
    save_model(model, tmp_path / "before.crest")
    quantize = Quantize(model, QuantizeConfig(0.1, levels=6))
    fine_tune(model, torch.optim.SGD(model.parameters(), lr=0.01), quantize, 5)
    kept = quantize.summary().kept
    summary = quantize.finish()
    assert summary.kept == sum(t.kept for t in summary.tensors) < kept
    save_model(model, tmp_path / "after.crest")
    assert (tmp_path / "after.crest").stat().st_size < 0.6 * (tmp_path / "before.crest").stat().st_size
    plain, masked = lenet(), pruned()
    for other in (plain, masked):
        load_model(other, tmp_path / "after.crest")
        assert torch.equal(other(X), model(X)) or torch.allclose(other(X), model(X))
    for name, value in load_file(tmp_path / "after.crest").items():
        assert torch.equal(value.view(torch.int32), weights(model)[name].view(torch.int32))
    assert all(torch.equal(mask, masks(masked)[name]) for name, mask in masks(model).items())


def test_summary_table() -> None:
    layer = MaskedLinear(4, 1)
    layer.weight.data.copy_(torch.tensor([[1.0, 1.0, -2.0, 0.0]]))
    layer.bias.data.fill_(0.5)
    lines = str(Quantize(layer, QuantizeConfig(0.0, levels=2)).finish()).splitlines()
    assert lines[0] == "tensor  kept  of  values  bytes  bits a weight kept"
    assert [line.split()[:4] for line in lines[1:3]] == [["weight", "3", "4", "2"], ["bias", "1", "1", "1"]]
    assert lines[3].startswith("4 of 5 parameters kept, these tensors in ")
    assert layer.mask.tolist() == [[True, True, True, False]]


def test_refuses_to_empty_a_layer_and_to_go_on() -> None:
    message = (
        r"^Quantize: '0\.weight' must keep a weight, got none at iteration 0: lower the lam of its layer \(1000\)$"
    )
    model = nn.Sequential(nn.Linear(20, 10))
    model[0].weight.data[:, 1:] = 0
    with pytest.raises(RuntimeError, match=message):
        Quantize(model, QuantizeConfig(1e3))
    quantize = Quantize(lenet(), QuantizeConfig(0.0))
    quantize.finish()
    with pytest.raises(RuntimeError, match=r"^Quantize: step\(\) must come before finish\(\)$"):
        quantize.step()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lam": {}}, r"lam must name a layer, got \{\}"),
        ({"lam": -1.0}, "lam must be a finite number >= 0, or a mapping to some, got -1.0"),
        ({"lam": {"fc": float("nan")}}, "lam of 'fc' must be a finite number >= 0, got nan"),
        ({"lam": 1.0, "levels": 0}, "levels must be an int from 1 to 256, got 0"),
        ({"lam": 1.0, "levels": 257}, "levels must be an int from 1 to 256, got 257"),
        ({"lam": 1.0, "ramp": -1}, "ramp must be an int >= 0, got -1"),
        ({"lam": 1.0, "iter_stop": 0.5}, "iter_stop must be an int >= 0, got 0.5"),
    ],
)
def test_config_errors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^QuantizeConfig: {message}$"):
        QuantizeConfig(**kwargs)


def test_errors_leave_the_model_alone() -> None:
    model = lenet()
    before = weights(model)
    with pytest.raises(ValueError, match=r"^Quantize: layer 'fc' must be in the model, which has '0', '2', '4', '6'$"):
        Quantize(model, QuantizeConfig({"fc": 1.0}))
    model[6].bias.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"^Quantize: bias of layer '6' must be finite$"):
        Quantize(model, QuantizeConfig(0.1))
    assert torch.equal(model[0].weight, before["0.weight"])
    state = Quantize(nn.Linear(2, 2), QuantizeConfig(0.0)).state_dict()
    quantize = Quantize(lenet(), QuantizeConfig({"4": 0.0}))
    message = r"^Quantize: state_dict must be of the tensors \['4\.weight', '4\.bias'\], got \['weight', 'bias'\]$"
    with pytest.raises(ValueError, match=message):
        quantize.load_state_dict(state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_diverged_is_refused(bad: float) -> None:
    """A dropped weight may be anything: it is set to 0 again. One that is kept stops it, before anything changes."""
    model = pruned()
    quantize = Quantize(model, QuantizeConfig(0.01))
    dropped = ~model[4].mask
    model[4].weight.data[dropped] = bad
    quantize.step()
    assert not model[4].weight[dropped].any()
    model[4].weight.data[~dropped] = bad
    model[0].weight.data += 1
    before = weights(model)
    message = r"^Quantize: '4\.weight' must be finite, got a weight that is not at iteration 1: lower the"
    with pytest.raises(RuntimeError, match=message):
        quantize.step()
    assert quantize.iteration == 1
    assert all(torch.equal(p.nan_to_num(), before[name].nan_to_num()) for name, p in weights(model).items())
