"""BatchNorm statistics anew, for weights they were not taken with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crest_ext.rewrite.materialize import copied

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def recalibrate(model: Model, batches: Iterable[Any]) -> Model:
    """A copy whose BatchNorm statistics are the averages over these batches, each counting the same.

    They are to be as in training, augmented the same way: where crops have borders of zeros, images without them have
    other statistics, which cost accuracy even if the model is as it was trained.

    Everything but the BatchNorm layers runs as in evaluation. Each layer's batches have gone through the BatchNorm
    layers before it as in training, normalised by themselves.

    Args:
        model: not changed.
        batches: an input each, or several in a tuple or list, of which the model gets as many as its forward has
            arguments without a default: the labels that data loaders give behind them are left out. Or a dict, of
            which it gets all, by name.

    Raises:
        ValueError: there are no batches.
    """
    model = copied(model)
    training = {module: module.training for module in model.modules()}
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average of all batches
        norm.train()
    empty, count = True, _arguments(model)
    for batch in batches:
        empty = False
        if isinstance(batch, Mapping):
            model(**batch)
        else:
            model(*(batch[:count] if isinstance(batch, tuple | list) else (batch,)))
    if empty:
        raise ValueError("recalibrate: batches must not be empty")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, was in training.items():
        module.training = was
    return model


def _arguments(model: nn.Module) -> int:
    """How many a model must be given in order; one at least, as a wrapper's forward takes any number."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters))
