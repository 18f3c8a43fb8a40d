"""BatchNorm statistics anew, for weights they were not taken with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crest_ext.rewrite.materialize import copied

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def recalibrate(model: Model, batches: Iterable[Any]) -> Model:
    """A copy whose BatchNorm statistics are the averages over these batches, each counting the same.

    Everything but the BatchNorm layers runs as in evaluation. Each layer's batches have gone through the BatchNorm
    layers before it as in training, normalised by themselves.

    Args:
        model: not changed.
        batches: inputs, or tuples and lists that begin with one, as data loaders give them.

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
    empty = True
    for batch in batches:
        empty = False
        model(batch if isinstance(batch, Tensor) else batch[0])
    if empty:
        raise ValueError("recalibrate: batches must not be empty")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, was in training.items():
        module.training = was
    return model
