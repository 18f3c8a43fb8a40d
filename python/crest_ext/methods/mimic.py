"""Mimic: a student learns the logits of an ensemble instead of labels.

Source: Urban et al., "Do Deep Convolutional Nets Really Need to be Deep and Convolutional?", ICLR 2017, section 2; Ba
and Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MimicConfig:
    """How the student is trained: SGD with Nesterov momentum; no dropout and no weight decay, which the paper found
    to cost several percent.

    Attributes:
        lr: learning rate. The paper searches 0.0013 to 0.016 on a log scale, for the loss of eq. 1, which sums over
            ten classes: with `F.mse_loss`, its mean, the same steps need ten times as much. Teachers that are more
            certain have larger logits, and the first steps then diverge by a rate that is good otherwise.
        momentum: 0.68 to 0.97 in the paper's search.
    """

    lr: float = 0.005
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not (isinstance(self.lr, (int, float)) and math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"MimicConfig: lr must be a finite number > 0, got {self.lr!r}")
        if not (isinstance(self.momentum, (int, float)) and 0 < self.momentum < 1):
            raise ValueError(f"MimicConfig: momentum must be in (0, 1), got {self.momentum!r}")


class Ensemble(nn.Module):
    """Networks whose logits are averaged; stays in eval mode and gives no gradients.

    Args:
        members: each gives (n, classes) logits, not probabilities. A member that takes its input otherwise normalised
            than the others goes into an nn.Sequential with what does that.

    Raises:
        ValueError: there is no member.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ValueError("Ensemble: members must have at least one, got none")
        self.members = nn.ModuleList(members)
        self.train(False)

    def train(self, mode: bool = True) -> Ensemble:  # noqa: ARG002 (a teacher has nothing to learn)
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(n, classes): the mean of the members' logits.

        Raises:
            ValueError: a member gives another shape than the first.
        """
        logits = [member(x) for member in self.members]
        for i, z in enumerate(logits):
            if z.dim() != 2 or z.shape != logits[0].shape:
                expected = f"shape (n, classes) of the first, {tuple(logits[0].shape)}"
                raise ValueError(f"Ensemble: member {i} must give {expected}, got {tuple(z.shape)}")
        return torch.stack(logits).mean(0)


def mimic_loss(logits: Tensor, z: Tensor) -> Tensor:
    """Eq. 1: the squared distance of the student's logits to the teachers', summed over classes, mean of the samples.

    Args:
        logits: (n, classes), g(x; W) of the paper.
        z: (n, classes), of the teachers.

    Returns:
        A scalar; float32, of bfloat16 and half logits too, as networks give them under autocast; float64 of float64.

    Raises:
        ValueError: the shapes differ, or are of another rank.
    """
    if logits.dim() != 2:
        raise ValueError(f"mimic_loss: logits must have rank 2, got shape {tuple(logits.shape)}")
    if logits.shape != z.shape:
        raise ValueError(f"mimic_loss: z must have shape {tuple(logits.shape)}, got {tuple(z.shape)}")
    wide = torch.promote_types(logits.dtype, torch.float32)  # the difference of two bfloat16 numbers is rounded as well
    return (logits.to(wide) - z).square().sum(1).mean()


class Mimic:
    """A student and what it learns from.

        mimic = Mimic(create_model("shallow", conv_layers=2), teachers)
        optimizer = mimic.optimizer()
        for x, _ in batches:
            optimizer.zero_grad()
            mimic.loss(x).backward()
            optimizer.step()

    This is no `Method`: nothing happens after the optimizer's step, nothing is left to finish, and all state is that
    of the student and of the optimizer. Logits do not change: `train.LogitCache` has them computed once for many
    students, which then learn by `mimic.loss(x, z)`, or by `train.fit(student, ..., loss=mimic_loss)`.

    Args:
        student: gives (n, classes) logits.
        teachers: see `Ensemble`; may be one already. Put into eval mode, for good.
        config: see MimicConfig.

    Raises:
        ValueError: there is no teacher, or a teacher shares a parameter with the student.
    """

    def __init__(
        self, student: nn.Module, teachers: Sequence[nn.Module] | Ensemble, config: MimicConfig | None = None
    ) -> None:
        self.student, self.config = student, config or MimicConfig()
        self.teachers = teachers if isinstance(teachers, Ensemble) else Ensemble(teachers)
        mine = {id(p): name for name, p in student.named_parameters()}
        if shared := [mine[id(p)] for p in self.teachers.parameters() if id(p) in mine]:
            raise ValueError(f"Mimic: teachers must not share parameters with the student, got {shared[0]!r} in both")

    def loss(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Eq. 1 on a batch.

        Args:
            x: what the student takes, and the teachers unless z is given: the paper evaluates them on the very images
                the student sees, after augmentation.
            z: (n, classes), the teachers' mean logits for x, computed before.

        Raises:
            ValueError: the student's logits have another shape than the teachers'.
        """
        return mimic_loss(self.student(x), self.teachers(x) if z is None else z)

    def optimizer(self) -> torch.optim.SGD:
        """SGD over the student's parameters, as the config has it."""
        return torch.optim.SGD(self.student.parameters(), self.config.lr, self.config.momentum, nesterov=True)
