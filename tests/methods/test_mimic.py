from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crest_ext.data import Loader, Split
from crest_ext.methods import Ensemble, Mimic, MimicConfig, mimic_loss
from crest_ext.train import fit


class Fixed(nn.Module):
    """The same logits for whatever input, and a note of the modes it was called in."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z)
        self.modes = list[bool]()

    def forward(self, _: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.z


def teacher(seed: int, inputs: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 3))


def test_loss_is_eq_1_by_hand() -> None:
    logits, z = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    assert mimic_loss(logits, z).item() == (0 + 4 + 9 + 1) / 2


def test_loss_is_ten_times_the_mean_of_ten_classes() -> None:
    logits, z = torch.randn(4, 10), torch.randn(4, 10)
    assert mimic_loss(logits, z).item() == pytest.approx(10 * nn.functional.mse_loss(logits, z).item())


def test_loss_is_float32_where_both_sides_are_bfloat16() -> None:
    student, member, x = nn.Linear(6, 3), teacher(1), torch.randn(64, 6)
    mimic = Mimic(student, [member])
    with torch.autocast("cpu", torch.bfloat16):
        logits, z, loss = student(x), mimic.teachers(x), mimic.loss(x)
    assert (logits.dtype, z.dtype, loss.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert loss.item() == pytest.approx((logits.double() - z.double()).square().sum(1).mean().item(), rel=1e-6)
    assert mimic_loss(logits.double(), z).dtype == torch.float64


def test_target_is_the_mean_of_the_logits() -> None:
    a, b = torch.randn(2, 5, 3)
    student = Fixed(torch.zeros(5, 3))
    loss = Mimic(student, [Fixed(a), Fixed(b)]).loss(torch.zeros(5, 1))
    assert loss.item() == pytest.approx(((a + b) / 2).square().sum(1).mean().item())


def test_teachers_stay_in_eval_mode_without_gradients() -> None:
    mimic = Mimic(nn.Linear(6, 3), [teacher(0), teacher(1)])
    before = {name: value.clone() for name, value in mimic.teachers.state_dict().items()}
    mimic.teachers.train()
    x = torch.randn(8, 6)
    first, second = mimic.loss(x), mimic.loss(x)
    assert torch.equal(first, second)  # no dropout, no statistics of the batch
    first.backward()
    assert all(p.grad is None for p in mimic.teachers.parameters())
    assert all(p.grad is not None for p in mimic.student.parameters())
    assert all(torch.equal(before[name], value) for name, value in mimic.teachers.state_dict().items())
    assert not any(m.training for m in mimic.teachers.modules())


def test_an_ensemble_inside_a_model_in_training_stays_in_eval_mode() -> None:
    member = Fixed(torch.zeros(1, 3))
    nn.Sequential(Ensemble([member])).train()(torch.zeros(1, 2))
    assert member.modes == [False]


def test_logits_computed_before_are_used_instead() -> None:
    member = Fixed(torch.zeros(2, 3))
    mimic = Mimic(Fixed(torch.ones(2, 3)), [member])
    assert mimic.loss(torch.zeros(2, 1), torch.full((2, 3), 3.0)).item() == 12
    assert not member.modes


def test_optimizer_is_the_configs() -> None:
    student = nn.Linear(6, 3)
    (group,) = Mimic(student, [teacher(0)], MimicConfig(lr=0.25, momentum=0.5)).optimizer().param_groups
    assert {key: group[key] for key in ("lr", "momentum", "weight_decay", "nesterov", "dampening")} == {
        "lr": 0.25,
        "momentum": 0.5,
        "weight_decay": 0,
        "nesterov": True,
        "dampening": 0,
    }
    assert group["params"] == list(student.parameters())


@pytest.mark.usefixtures("one_thread")
def test_a_student_learns_what_its_teachers_say() -> None:
    teachers = [nn.Linear(6, 3), nn.Linear(6, 3)]
    mimic = Mimic(nn.Linear(6, 3), teachers, MimicConfig(lr=0.05))
    optimizer, x = mimic.optimizer(), torch.randn(64, 6)
    for _ in range(300):
        optimizer.zero_grad()
        mimic.loss(x).backward()
        optimizer.step()
    assert mimic.loss(torch.randn(64, 6)).item() < 1e-6  # the mean of linear teachers is linear
    assert isinstance(mimic.student, nn.Linear)
    assert torch.allclose(mimic.student.weight, (teachers[0].weight + teachers[1].weight) / 2, atol=1e-4)


@pytest.mark.usefixtures("one_thread")
def test_fit_takes_logits_for_labels() -> None:
    ensemble, student, x = Ensemble([nn.Linear(6, 3)]), nn.Linear(6, 3), torch.randn(64, 6)
    fit(student, Loader(Split(x, ensemble(x)), 32, shuffle=True), 300, 0.05, loss=mimic_loss)
    assert mimic_loss(student(x), ensemble(x)).item() < 1e-6


def test_refuses_teachers() -> None:
    with pytest.raises(ValueError, match=r"^Ensemble: members must have at least one, got none$"):
        Mimic(nn.Linear(2, 2), [])
    student = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"^Mimic: teachers must not share parameters with the student, got '0\.weight' in both$"
    ):
        Mimic(student, [nn.Sequential(student[0], nn.ReLU())])


def test_refuses_shapes() -> None:
    mimic = Mimic(Fixed(torch.zeros(2, 3)), [Fixed(torch.zeros(2, 3)), Fixed(torch.zeros(2, 1))])
    with pytest.raises(
        ValueError,
        match=r"^Ensemble: member 1 must give shape \(n, classes\) of the first, \(2, 3\), got \(2, 1\)$",
    ):
        mimic.loss(torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"^mimic_loss: z must have shape \(2, 3\), got \(2, 1\)$"):
        mimic.loss(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"^mimic_loss: logits must have rank 2, got shape \(3,\)$"):
        mimic_loss(torch.zeros(3), torch.zeros(3))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": 0}, "lr must be a finite number > 0, got 0"),
        ({"lr": float("nan")}, "lr must be a finite number > 0, got nan"),
        ({"lr": "0.1"}, "lr must be a finite number > 0, got '0.1'"),
        ({"momentum": 1.0}, "momentum must be in (0, 1), got 1.0"),
    ],
)
def test_refuses_settings(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        MimicConfig(**kwargs)
    assert str(caught.value) == f"MimicConfig: {message}"
