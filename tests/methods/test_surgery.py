from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crest_ext import Surgery, SurgeryConfig
from crest_ext.nn import MaskedConv2d, MaskedLinear
from surgeries import X, Y, always, lenet, linear, masks, train

# The hysteresis, the thresholds and the draws of the paper.


def test_hysteresis_trajectory() -> None:
    layer = linear(1.0, -1.0, 3.0, -3.0)  # |w| has mu = 2, std = 1
    surgery = Surgery(layer, always(c_rate=0.5))  # threshold 2.5: drop below 2.25, restore from 2.75 on
    assert layer.mask.tolist() == [[True, True, True, True]]
    trajectory = [
        ([1.0, -1.0, 3.0, -3.0], [False, False, True, True]),
        ([2.5, -2.7, 2.5, -2.3], [False, False, True, True]),  # in between: as before
        ([2.8, -2.8, 2.2, -2.2], [True, True, False, False]),
        ([2.3, -2.2, 2.7, -2.8], [True, False, False, True]),
        ([2.75, -2.25, 9.0, 0.0], [True, False, True, False]),
    ]
    for weights, expected in trajectory:
        layer.weight.data.copy_(torch.tensor([weights]))
        surgery.step()
        assert layer.mask.tolist() == [expected]
        assert layer(torch.eye(4)).flatten().tolist() == [
            pytest.approx(w) if kept else 0.0 for w, kept in zip(weights, expected, strict=True)
        ]


def test_moments_count_biases_and_skip_zeros() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data.copy_(torch.tensor([[1.0, -3.0], [0.0, 0.0]]))
    layer.bias.data.copy_(torch.tensor([5.0, 0.0]))
    assert Surgery(layer, SurgeryConfig(1.0)).state_dict()["moments"][""] == pytest.approx(
        {"mu": 3.0, "std": (8 / 3) ** 0.5}
    )
    assert Surgery(layer, SurgeryConfig(1.0, mask_bias=False)).state_dict()["moments"][""] == {"mu": 2.0, "std": 1.0}


def test_threshold_is_not_negative() -> None:
    layer = linear(1.0, 1.0, 3.0)
    surgery = Surgery(layer, always(c_rate=-9.0))
    surgery.step()
    assert surgery.summary().layers[0].threshold == 0.0
    assert layer.mask.all()


@pytest.fixture
def authors_lenet5() -> nn.Module:
    """The dense network the authors started from, as they released it."""
    safetensors = pytest.importorskip("safetensors.torch")
    path = Path(os.environ.get("CREST_DATA", "data")) / "weights" / "dns_lenet5_original.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    layers = {"conv1": nn.Conv2d(1, 20, 5), "conv2": nn.Conv2d(20, 50, 5)}
    model = nn.ModuleDict({**layers, "ip1": nn.Linear(800, 500), "ip2": nn.Linear(500, 10)})
    model.load_state_dict(safetensors.load_file(path))
    return model


@pytest.mark.data
def test_moments_of_the_authors_lenet5(authors_lenet5: nn.Module) -> None:
    moments = Surgery(authors_lenet5, SurgeryConfig(1.0)).state_dict()["moments"]
    assert {name: (round(m["mu"], 5), round(m["std"], 5)) for name, m in moments.items()} == {
        "conv1": (0.18603, 0.11689),
        "conv2": (0.03400, 0.02425),
        "ip1": (0.02187, 0.01342),
        "ip2": (0.05774, 0.04210),
    }


@pytest.mark.data
def test_first_cut_of_the_authors_lenet5(authors_lenet5: nn.Module) -> None:
    """With their c_rates, and before anything grows back: parameters above a_k."""
    surgery = Surgery(authors_lenet5, SurgeryConfig({"conv1": 1, "conv2": 3, "ip1": 4, "ip2": 2.5}))
    surgery.step()
    summary = surgery.summary()
    assert summary.total == 431_080
    assert [row.kept + row.biases_kept for row in summary.layers] == [124, 423, 255, 188]


def test_ramp_raises_the_threshold_evenly() -> None:
    layer = linear(1.0, -1.0, 3.0, -3.0)  # |w| has mu = 2, std = 1
    surgery = Surgery(layer, always(c_rate=2.0, ramp=4, c_start=-2.0))
    thresholds = []
    for _ in range(6):
        thresholds.append(surgery.summary().layers[0].threshold)
        layer.weight.data.copy_(torch.tensor([[100.0, 0.0, 3.0, -3.0]]))
        surgery.step()
    assert thresholds == [0.0, 1.0, 2.0, 3.0, 4.0, 4.0]
    assert layer.mask.tolist() == [[True, False, False, False]]


def test_updates_grow_rare_and_stop() -> None:
    """A layer's masks are updated with probability 1 / (1 + iteration / 10), on its own draw, before iteration 100."""
    model = nn.ModuleList(linear(1.0, 3.0) for _ in range(100))
    surgery = Surgery(model, SurgeryConfig(0.0, gamma=0.1, iter_stop=100))
    updates = []
    for _ in range(120):
        for layer in model:
            layer.weight.data.neg_()
            layer.mask.fill_(True)
        surgery.step()
        updates.append([not bool(layer.mask.all()) for layer in model])
    assert all(updates[0])
    assert not any(map(any, updates[100:]))
    for iteration in (10, 90):  # 500 draws around each: four standard deviations
        rate = sum(map(sum, updates[iteration - 2 : iteration + 3])) / 500
        expected = 1 / (1 + iteration / 10)
        assert abs(rate - expected) < 4 * (expected * (1 - expected) / 500) ** 0.5
    assert len({tuple(column) for column in zip(*updates, strict=True)}) == 100


# Gradients: dense during surgery, masked after it.


@pytest.mark.parametrize("dense", [True, False])
def test_splicing_needs_the_dense_gradient(dense: bool) -> None:
    layer = linear(0.1, 1.0)
    surgery = Surgery(layer, always())  # threshold 0.55
    layer.straight_through = dense
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    history, weights = [], []
    for _ in range(30):
        optimizer.zero_grad()
        (layer(torch.eye(2)) - torch.tensor([[2.0], [1.0]])).square().sum().backward()
        optimizer.step()
        surgery.step()
        history.append(layer.mask.tolist()[0])
        weights.append(layer.weight[0, 0].item())
    assert history[0] == [False, True]
    assert history[-1] == [dense, True]
    assert weights[-1] == (pytest.approx(2.0, abs=0.1) if dense else weights[0])


@pytest.mark.parametrize("name", ["0", "4"])
def test_gradients_stay_dense_when_accumulated(name: str) -> None:
    """The gradient of two micro-batches is that of the masked product, at dropped weights too."""
    model = lenet()
    surgery = Surgery(model, always())
    surgery.step()
    layer = model.get_submodule(name)
    assert 0 < layer.mask.sum() < layer.mask.numel()
    for half in (slice(16), slice(16, 32)):
        F.cross_entropy(model(X[half]), Y[half], reduction="sum").backward()
    with torch.no_grad():  # a plain network that holds the masked product: its gradient is what eq. 2 asks for
        plain = lenet()
        effective = {
            k: v * masks(model).get(k.replace("weight", "mask").replace("bias", "bias_mask"), 1)
            for k, v in model.named_parameters()
        }
        plain.load_state_dict(effective)
    F.cross_entropy(plain(X), Y, reduction="sum").backward()
    for (_, p), (_, q) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
    surgery.finish()
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    assert not layer.weight.grad[~layer.mask].any()
    assert not layer.bias.grad[~layer.bias_mask].any()
    assert layer.weight.grad[layer.mask].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_dropped_weights_stay_zero_in_forward(make: Any) -> None:
    """Under surgery and in the fine-tuning after it: momentum and decay move the parameter, never its effect."""
    model = lenet()
    optimizer = make(model.parameters())
    surgery = Surgery(model, always(c_rate=0.5))
    train(model, optimizer, surgery, 10)
    kept = surgery.finish().kept
    fixed = masks(model)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        for layer in model:
            if isinstance(layer, (MaskedLinear, MaskedConv2d)):
                assert not layer.effective_weight()[~layer.mask].any()
                assert not layer.effective_bias()[~layer.bias_mask].any()
    assert all(torch.equal(fixed[name], mask) for name, mask in masks(model).items())
    assert surgery.summary().kept == kept < surgery.summary().total


# Choosing layers.


def test_first_match_wins_and_the_rest_is_left_alone() -> None:
    model = nn.Sequential(linear(1.0, 3.0), linear(1.0, 3.0), nn.Sequential(linear(1.0, 3.0)), nn.BatchNorm1d(2))
    surgery = Surgery(model, SurgeryConfig({"0": 1.0, "2.*": 3.0}))
    assert [layer.threshold for layer in surgery.summary().layers] == [3.0, None, 5.0, None]
    assert type(model[1]) is nn.Linear


def test_kinds_are_separate_runs() -> None:
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rates = {"0": 0.5, "2": 0.5, "*": 0.5}  # one mapping may serve both runs
    convolutions = Surgery(model, always(rates, kind="conv"))
    assert [type(m) for m in model if hasattr(m, "weight")] == [MaskedConv2d, MaskedConv2d, nn.Linear, nn.Linear]
    train(model, optimizer, convolutions, 3)
    convolutions.finish()
    fixed = masks(model)
    train(model, optimizer, Surgery(model, always(rates, kind="linear")), 3)
    assert set(masks(model)) - set(fixed) == {"4.mask", "4.bias_mask", "6.mask", "6.bias_mask"}
    assert all(torch.equal(mask, masks(model)[name]) for name, mask in fixed.items())
    assert not model[0].straight_through
    assert model[4].straight_through


def test_second_surgery_measures_the_survivors() -> None:
    layer = linear(1.0, 2.0, 5.0, 7.0)
    first = Surgery(layer, always())  # threshold 3.75
    first.step()
    first.finish()
    second = Surgery(layer, always())
    assert layer.mask.tolist() == [[False, False, True, True]]
    assert second.state_dict()["moments"][""] == {"mu": 6.0, "std": 1.0}
    second.step()
    assert layer.mask.tolist() == [[False, False, False, True]]


def test_bias_masks_of_an_earlier_run_stay_without_mask_bias() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data.copy_(torch.tensor([[1.0, 3.0], [3.0, 3.0]]))
    layer.bias.data.copy_(torch.tensor([1.0, 3.0]))
    Surgery(layer, always()).step()
    assert layer.bias_mask.tolist() == [False, True]
    layer.bias.data.fill_(9.0)
    Surgery(layer, always(mask_bias=False)).step()
    assert layer.bias_mask.tolist() == [False, True]


def test_subclasses_and_computed_weights_are_left_with_a_reason() -> None:
    """torch's attention reads out_proj.weight without calling out_proj: a mask there would do nothing."""
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            "fc": nn.Linear(2, 2),
        }
    )
    total = sum(p.numel() for p in model.parameters())
    summary = Surgery(model, SurgeryConfig(0.0)).summary()
    assert [(row.name, row.note) for row in summary.layers] == [
        ("attention.out_proj", "is a NonDynamicallyQuantizableLinear"),
        ("normed", "is a ParametrizedLinear"),
        ("fc", ""),
        ("(others)", "dense"),
    ]
    assert summary.total == summary.kept == total


def test_layers_whose_weights_torch_reads_directly_are_left() -> None:
    """In evaluation without gradients, torch passes linear1.weight itself to a kernel."""
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 2)).eval()
    surgery = Surgery(model, always())
    surgery.step()
    notes = {row.name: row.note for row in surgery.summary().layers}
    assert notes["0.linear1"] == notes["0.linear2"] == "is read by the fast path of its TransformerEncoderLayer"
    assert isinstance(model[1], MaskedLinear)
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x))


def test_shared_module_counts_once() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, shared)
    surgery = Surgery(model, always())
    surgery.step()
    assert model[0] is model[1]
    assert surgery.summary().total == 6


def test_channels_last() -> None:
    model, other = lenet(), lenet()
    other.load_state_dict(model.state_dict())
    other.to(memory_format=torch.channels_last)
    for m in (model, other):
        surgery = Surgery(m, always())
        m.to(memory_format=torch.channels_last if m is other else torch.contiguous_format)
        train(m, torch.optim.SGD(m.parameters(), lr=1e-3), surgery, 3)
    assert not model[2].mask.is_contiguous(memory_format=torch.channels_last)
    assert other[2].mask.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(mask, masks(other)[name]) for name, mask in masks(model).items())
