from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from crest_ext import Surgery, SurgeryConfig
from crest_ext.models import create_model
from crest_ext.optim import PruneSpliceSGD, decay_groups

X, Y = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3


def network() -> nn.Sequential:
    """Two masked layers, one that is left dense, and one frozen parameter."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 8), nn.Linear(8, 3))
    model[4].bias.requires_grad_(False)
    return model


CONFIG = SurgeryConfig({"0": 0.2, "3": 0.5}, gamma=0.05, iter_stop=40)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Caffe's: twice the rate for biases."""
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    return [{"params": [p for p in model.parameters() if p.dim() > 1]}, {"params": biases, "lr": 0.1}]


def gradient(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = cross_entropy(model(X), Y)
    loss.backward()
    return loss.detach()


def assert_equal(model: nn.Module, other: nn.Module, rtol: float = 1e-4) -> None:
    for (name, value), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        if value.dtype == torch.bool:
            assert torch.equal(value, expected), name
        else:
            torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-5, msg=name)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_sgd_and_surgery(momentum: float, decay: float, channels_last: bool) -> None:
    """50 steps in float64, where no rounding carries a weight over a threshold: masks are equal bit for bit."""
    models, steps = [], []
    for fused in (False, True):
        model = network().double()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        surgery = Surgery(model, CONFIG)
        arguments = {"lr": 0.05, "momentum": momentum, "weight_decay": decay}
        optimizer = (
            PruneSpliceSGD(groups(model), **arguments, surgery=surgery)
            if fused
            else torch.optim.SGD(groups(model), **arguments)
        )
        schedule = StepLR(optimizer, 10, 0.5)
        history = []
        for _ in range(50):
            optimizer.zero_grad()
            cross_entropy(model(X.double()), Y).backward()
            optimizer.step()
            if not fused:
                surgery.step()
            schedule.step()
            history.append([mask.clone() for mask in model.buffers() if mask.dtype == torch.bool])
        assert surgery.iteration == 50
        models.append(model)
        steps.append(history)
    assert all(torch.equal(a, b) for m, n in zip(*steps, strict=True) for a, b in zip(m, n, strict=True))
    assert not torch.equal(steps[0][0][0], steps[0][49][0])
    assert_equal(*models)


def test_schedulers_that_move_momentum_too() -> None:
    models = []
    for fused in (False, True):
        model = network()
        surgery = Surgery(model, CONFIG)
        optimizer: torch.optim.SGD = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if fused:
            optimizer = PruneSpliceSGD(model.parameters(), lr=0.1, momentum=0.9, surgery=surgery)
        schedule = OneCycleLR(optimizer, max_lr=0.2, total_steps=10)
        for _ in range(9):
            gradient(model, optimizer)
            optimizer.step()
            if not fused:
                surgery.step()
            schedule.step()
        models.append(model)
    assert_equal(*models)


def test_resumes_and_fine_tunes_as_plain_sgd() -> None:
    """The state_dict is SGD's, in both directions; after finish() every step is SGD's."""
    model = network()
    surgery = Surgery(model, CONFIG)
    optimizer = PruneSpliceSGD(model.parameters(), lr=0.05, momentum=0.9, surgery=surgery)
    for _ in range(5):
        gradient(model, optimizer)
        optimizer.step()
    surgery.finish()

    other = network()
    other_surgery = Surgery(other, CONFIG)
    sgd = torch.optim.SGD(other.parameters(), lr=1.0)
    other.load_state_dict(model.state_dict())
    sgd.load_state_dict(deepcopy(optimizer.state_dict()))  # or they would share buffers
    other_surgery.load_state_dict(surgery.state_dict())
    for _ in range(5):
        for m, o in ((model, optimizer), (other, sgd)):
            gradient(m, o)
            o.step()
    assert_equal(model, other, rtol=0)

    optimizer.load_state_dict(deepcopy(sgd.state_dict()))
    for m, o in ((model, optimizer), (other, sgd)):
        gradient(m, o)
        o.step()
    assert_equal(model, other, rtol=0)


def test_takes_over_from_sgd_without_a_buffer() -> None:
    model = network()
    surgery = Surgery(model, CONFIG)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    gradient(model, sgd)
    sgd.step()  # momentum 0 leaves no buffer
    optimizer = PruneSpliceSGD(model.parameters(), lr=0.05, surgery=surgery)
    optimizer.load_state_dict(sgd.state_dict())
    gradient(model, optimizer)
    optimizer.step()
    assert surgery.iteration == 1


def test_masks_of_parameters_without_a_gradient_are_updated() -> None:
    model = network()
    model[3].requires_grad_(False)
    surgery = Surgery(model, CONFIG)
    before = model[3].weight.clone()
    optimizer = PruneSpliceSGD([p for p in model.parameters() if p.requires_grad], lr=0.05, surgery=surgery)
    gradient(model, optimizer)
    optimizer.step()
    assert torch.equal(model[3].weight, before)
    assert 0 < model[3].mask.sum() < model[3].mask.numel()


def test_closure() -> None:
    model = network()
    optimizer = PruneSpliceSGD(model.parameters(), lr=0.05, surgery=Surgery(model, CONFIG))
    expected = cross_entropy(model(X), Y)
    loss = optimizer.step(lambda: gradient(model, optimizer))  # type: ignore[arg-type, return-value]
    assert loss == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nesterov": True, "momentum": 0.9}, "nesterov must be False, got True"),
        ({"dampening": 0.5}, "dampening must be 0, got 0.5"),
        ({"maximize": True}, "maximize must be False, got True"),
    ],
)
def test_what_it_does_not_do(arguments: dict[str, Any], message: str) -> None:
    model = network()
    surgery = Surgery(model, CONFIG)
    with pytest.raises(ValueError, match=f"^PruneSpliceSGD: {message}$"):
        PruneSpliceSGD(model.parameters(), lr=0.1, surgery=surgery, **arguments)
    with pytest.raises(ValueError, match=f"^PruneSpliceSGD: {message}$"):
        PruneSpliceSGD([{"params": model.parameters(), **arguments}], lr=0.1, surgery=surgery)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, **arguments)
    optimizer = PruneSpliceSGD(model.parameters(), lr=0.1, surgery=surgery)
    optimizer.load_state_dict(sgd.state_dict())
    gradient(model, optimizer)
    with pytest.raises(ValueError, match=f"^PruneSpliceSGD: {message}$"):
        optimizer.step()


def test_step_belongs_to_one_of_them() -> None:
    model = network()
    surgery = Surgery(model, CONFIG)
    PruneSpliceSGD(model.parameters(), lr=0.1, surgery=surgery)
    with pytest.raises(
        RuntimeError, match=r"^Surgery: step\(\) must be left to PruneSpliceSGD, whose own step\(\) does"
    ):
        surgery.step()


def test_refuses_to_empty_a_layer() -> None:
    model = network()
    surgery = Surgery(model, SurgeryConfig({"0": 0.2}))
    optimizer = PruneSpliceSGD(model.parameters(), lr=0.1, surgery=surgery)
    gradient(model, optimizer)
    model[0].weight.data.mul_(1e-3)
    with pytest.raises(RuntimeError, match=r"^Surgery: layer '0' must keep a weight"):
        optimizer.step()
    assert model[0].mask.all()
    assert model[0].bias_mask.all()
    assert surgery.iteration == 0


def test_decay_groups() -> None:
    """All parameters once, and none of weight decay on the depthwise filters alone."""
    model = create_model("mobilenet_v1", width_mult=0.25, num_classes=3)
    decayed, spared = decay_groups(model, 4e-5)
    depthwise = {f"block{i}.dw.0.weight" for i in range(1, 14)}
    assert {n for n, p in model.named_parameters() if any(p is q for q in spared["params"])} == depthwise
    assert (decayed["weight_decay"], spared["weight_decay"]) == (4e-5, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    optimizer = torch.optim.SGD(decay_groups(model, 0.5), lr=1.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1.0 if name in depthwise else 0.5))


def test_decay_groups_of_one_kind() -> None:
    (group,) = decay_groups(nn.Sequential(nn.Linear(3, 2), nn.Conv2d(1, 4, 3)), 0.1)
    assert (len(group["params"]), group["weight_decay"]) == (4, 0.1)
    (group,) = decay_groups(nn.Conv2d(4, 4, 3, groups=4, bias=False), 0.1)
    assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    "kind",
    [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d],
    ids=lambda kind: str(kind.__name__),
)
@pytest.mark.parametrize("normed", [False, True])
def test_decay_groups_of_any_convolution(kind: type[nn.Conv2d], normed: bool) -> None:
    conv: nn.Module = kind(4, 8, 3, groups=4)
    decayed, spared = decay_groups(weight_norm(conv) if normed else conv, 0.1)
    assert [p.shape for p in decayed["params"]] == [(8,)]  # the bias
    assert len(spared["params"]) == 1 + normed
    (group,) = decay_groups(kind(4, 8, 3, groups=2), 0.1)
    assert (len(group["params"]), group["weight_decay"]) == (2, 0.1)


def test_decay_groups_refuse_to_grow() -> None:
    with pytest.raises(ValueError, match=r"^decay_groups: weight_decay must be at least 0, got -0\.1$"):
        decay_groups(nn.Linear(2, 2), -0.1)
