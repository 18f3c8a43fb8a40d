from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from crest_ext import Surgery, SurgeryConfig
from crest_ext.nn import MaskedLinear
from surgeries import always, lenet, linear, masks, train

# Saving and resuming.


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = SurgeryConfig(0.3, gamma=0.1, seed=7)
    torch.manual_seed(3)
    pretrained = lenet().state_dict()

    def start() -> tuple[nn.Module, torch.optim.Optimizer, Surgery]:
        model = lenet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, Surgery(model, config)

    def load(state: dict[str, Any], *parts: Any) -> None:
        for name, part in zip(("model", "optimizer", "surgery"), parts, strict=True):
            part.load_state_dict(state[name])

    model = lenet()
    model.load_state_dict(pretrained)
    optimizer, surgery = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), Surgery(model, config)
    train(model, optimizer, surgery, 8)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "surgery": surgery.state_dict()}
    torch.save(state, tmp_path / "checkpoint.pt")
    halfway = masks(model)
    train(model, optimizer, surgery, 12)

    resumed = start()
    load(torch.load(tmp_path / "checkpoint.pt", weights_only=True), *resumed)
    assert all(torch.equal(mask, masks(resumed[0])[name]) for name, mask in halfway.items())
    train(*resumed, 12)
    assert any(not torch.equal(mask, halfway[name]) for name, mask in masks(model).items())
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed[0].state_dict()[name]), name
    assert str(surgery.summary()) == str(resumed[2].summary())

    finished = start()[2]
    surgery.finish()
    finished.load_state_dict(surgery.state_dict())
    with pytest.raises(RuntimeError, match=r"^Surgery: step\(\) must come before finish\(\)$"):
        finished.step()
    assert not any(m.straight_through for m in finished.model if isinstance(m, MaskedLinear))


# The summary.


def test_summary_adds_up() -> None:
    model = nn.Sequential(linear(1.0, 3.0, 3.0), nn.LayerNorm(1), nn.Linear(1, 2))
    surgery = Surgery(model, always({"0": 0.0}))
    surgery.step()
    summary = surgery.finish()
    assert (summary.kept, summary.total) == (2 + 2 + 4, 3 + 2 + 4)
    assert summary.compression == pytest.approx(9 / 8)
    assert summary.layers[0].density == pytest.approx(2 / 3)
    assert str(summary).splitlines() == [
        "layer     kept  weights  density  biases  threshold",
        "0            2        3   66.67%            2.33333",
        "2            2        2  100.00%     2/2             dense",
        "(others)     2        2  100.00%                     dense",
        "8 of 9 parameters kept (88.89%, 1.1x fewer)",
    ]


# What goes wrong.


def test_refuses_to_empty_a_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 1), linear(1.0, 3.0))
    model[0].weight.data.copy_(torch.tensor([[0.5, 4.0]]))
    model[0].bias.data.fill_(4.0)
    surgery = Surgery(model, always())
    model[0].weight.data.mul_(0.5)
    before = masks(model[0])
    message = (
        r"^Surgery: layer '0' must keep a weight, got the largest \|w\| = 2 below 0.9 of the threshold 2.83333 at "
        r"iteration 0: lower its c_rate \(0\), or the learning rate or the weight decay$"
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            surgery.step()
        assert all(torch.equal(mask, masks(model[0])[name]) for name, mask in before.items())
    assert surgery.iteration == 0
    model[0].weight.data.mul_(2.0)
    surgery.step()
    assert model[0].mask.tolist() == [[False, True]]


def test_nan_keeps_its_mask() -> None:
    layer = linear(1.0, 1.0, 3.0)
    surgery = Surgery(layer, always())
    surgery.step()
    layer.weight.data.copy_(torch.tensor([[float("nan"), 1.0, float("nan")]]))
    surgery.step()
    assert layer.mask.tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"c_rate": {}}, r"c_rate must name a layer, got \{\}"),
        ({"c_rate": float("nan")}, "c_rate must be a finite number, or a mapping to some, got nan"),
        ({"c_rate": "3"}, "c_rate must be a finite number, or a mapping to some, got '3'"),
        ({"c_rate": {"fc": None}}, "c_rate of 'fc' must be a finite number, got None"),
        ({"c_rate": 1.0, "kind": "fc"}, "kind must be one of all, conv, linear, got 'fc'"),
        ({"c_rate": 1.0, "low": -1.0}, "low must be a finite number >= 0, got -1.0"),
        ({"c_rate": 1.0, "low": 2.0}, "high must be a number >= low, 2.0, got 1.1"),
        ({"c_rate": 1.0, "gamma": -1e-4}, "gamma must be a finite number >= 0, got -0.0001"),
        ({"c_rate": 1.0, "power": float("inf")}, "power must be a finite number >= 0, got inf"),
        ({"c_rate": 1.0, "ramp": -1}, "ramp must be an int >= 0, got -1"),
        ({"c_rate": 1.0, "c_start": float("inf")}, "c_start must be a finite number, got inf"),
        ({"c_rate": 1.0, "iter_stop": -1}, "iter_stop must be an int >= 0, got -1"),
        ({"c_rate": 1.0, "seed": 0.5}, "seed must be an int, got 0.5"),
    ],
)
def test_config_errors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^SurgeryConfig: {message}$"):
        SurgeryConfig(**kwargs)


def test_config_keeps_a_copy() -> None:
    rates = {"fc": 1.0}
    config = SurgeryConfig(rates)
    rates["fc"] = 2.0
    assert config.c_rate == {"fc": 1.0}


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (lenet(), SurgeryConfig({"fc*": 1.0}), "layer 'fc*' must be in the model, which has '0', '2', '4', '6'"),
        (nn.ReLU(), SurgeryConfig(1.0), "layer '*' must be in the model, which has no layers"),
        (
            nn.ModuleDict({"a": nn.MultiheadAttention(2, 1), "b": nn.Linear(1, 1)}),
            SurgeryConfig({"a.out_proj": 1.0}),
            (
                "layer 'a.out_proj' must be in the model, which has 'b'; not 'a.out_proj', which is a "
                "NonDynamicallyQuantizableLinear"
            ),
        ),
        (lenet(), SurgeryConfig({"*": 1.0, "4": 2.0}), "layer '4' must come before '*', which matches it too"),
        (lenet(), SurgeryConfig({"4": 1.0}, kind="conv"), "kind must be that of a layer named, got 'conv' for '4'"),
        (tied(), SurgeryConfig(1.0), "layers '0' and '1' must not share a parameter: leave one out"),
        (linear(0.0, 0.0), SurgeryConfig(1.0), "layer '' must hold trained weights, got nothing but zeros"),
        (
            linear(1.0, float("nan")),
            SurgeryConfig(1.0),
            "layer '' must hold trained weights, got weights that are not finite",
        ),
    ],
)
def test_errors(model: nn.Module, config: SurgeryConfig, message: str) -> None:
    types = [type(m) for m in model.modules()]
    with pytest.raises(ValueError) as error:
        Surgery(model, config)
    assert str(error.value) == f"Surgery: {message}"
    assert [type(m) for m in model.modules()] == types


def test_state_of_other_layers() -> None:
    state = Surgery(linear(1.0), SurgeryConfig(1.0)).state_dict()
    surgery = Surgery(lenet(), SurgeryConfig({"4": 1.0}))
    with pytest.raises(ValueError, match=r"^Surgery: state_dict must be of the layers \['4'\], got \[''\]$"):
        surgery.load_state_dict(state)
    with pytest.raises(ValueError, match=r"^Surgery: state_dict must be of the layers \['4'\], got \[\]$"):
        surgery.load_state_dict(surgery.model.state_dict())
