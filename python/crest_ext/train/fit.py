"""One stretch of training, and the error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext.methods import LowRank, Quantize, Surgery
from crest_ext.nn import Masked
from crest_ext.optim import PruneSpliceSGD
from crest_ext.train.schedules import Constant, Schedule

Batches = Iterable[tuple[Tensor, Tensor]]


class Progress(NamedTuple):
    """What `fit` reports, about a hundred times."""

    iteration: int
    iterations: int
    loss: float  # of this iteration's batch


Report = Callable[[Progress], None]


def fit(
    model: nn.Module,
    batches: Batches,
    iterations: int,
    lr: Schedule | float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    bias_lr: float = 1.0,
    surgery: Surgery | None = None,
    quantize: Quantize | None = None,
    low_rank: LowRank | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    progress: Report | None = None,
) -> None:
    """Train with SGD for a number of iterations, with a method if there is one (its `finish` is the caller's).

    Args:
        model: on the device where it is to be trained; batches are moved there.
        batches: gives (x, y) batches; iterated again and again.
        iterations: steps of the optimizer.
        lr: a schedule or a constant.
        momentum: of SGD.
        weight_decay: of SGD.
        bias_lr: factor of the learning rate of biases; 2 in Caffe's LeNets.
        surgery: a method on this model, whose step is made with the optimizer's in one pass.
        quantize: another, whose step follows the optimizer's.
        low_rank: another, of that kind too; it is given the optimizer.
        loss: of (model(x), y).
        progress: called about a hundred times, and at the end.

    Raises:
        ValueError: batches is empty.
        RuntimeError: see `Surgery.step`, `Quantize.step` and `LowRank.step`.
    """
    schedule = Constant(lr) if isinstance(lr, (int, float)) else lr
    biases = {p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    weights = [p for p in model.parameters() if p not in biases]
    groups = [{"params": p, "scale": s} for p, s in ((weights, 1.0), (list(biases), bias_lr)) if p]
    optimizer: torch.optim.SGD
    if surgery is None:
        optimizer = torch.optim.SGD(groups, schedule.start, momentum, weight_decay=weight_decay, fused=True)
    else:
        optimizer = PruneSpliceSGD(groups, schedule.start, momentum, weight_decay, surgery=surgery)
    if low_rank:
        low_rank.optimizer = optimizer
    device = next(model.parameters()).device
    model.train()
    every = max(1, iterations // 100)
    stream = _endless(batches)
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(iteration, iterations) * group["scale"]
        x, y = next(stream)
        value = loss(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if quantize:
            quantize.step()
        if low_rank:
            low_rank.step()
        if progress and ((iteration + 1) % every == 0 or iteration + 1 == iterations):
            progress(Progress(iteration + 1, iterations, value.item()))


def _endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise ValueError("fit: batches must give a batch, got none")


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> float:
    """The fraction, in [0, 1], of samples whose largest output is not their class.

    Args:
        model: gives (n, classes); is in eval mode meanwhile.
        batches: (x, y), y the classes.

    Raises:
        ValueError: batches is empty.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    wrong, total = torch.zeros((), dtype=torch.int64, device=device), 0
    for x, y in batches:
        wrong += (model(x.to(device)).argmax(1) != y.to(device)).sum()
        total += len(y)
    model.train(training)
    if not total:
        raise ValueError("evaluate: batches must give a sample, got none")
    return int(wrong) / total


@torch.no_grad()
def bake(model: nn.Module) -> None:
    """Set dropped weights to 0 themselves: what they were is forgotten, as it is in a saved file."""
    for module in model.modules():
        if isinstance(module, Masked):
            for parameter, mask in module.masked_parameters():
                parameter.copy_(torch.where(mask, parameter, 0))
