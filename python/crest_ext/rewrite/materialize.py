"""From masked modules back to plain ones."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from crest_ext.nn.masked import Masked

Model = TypeVar("Model", bound=nn.Module)


def materialize(model: Model) -> Model:
    """A copy with plain Linear and Conv2d whose dropped weights and biases are exactly 0.

    It computes the same and runs wherever plain modules run: torch.compile, torch.export, ONNX. It is neither smaller
    nor faster by itself. Modules used twice stay shared; a parameter that a masked layer shares with another layer
    does not, since only one of them is masked. What torch.nn.utils.prune masks becomes plain as well.

    Args:
        model: any module, masked layers anywhere in it, or a masked layer itself. Not changed.
    """
    model = copied(model)
    for module in model.modules():
        if isinstance(module, Masked):
            _unmask_(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    return model


def copied(model: Model) -> Model:
    """A deep copy, also of what torch.nn.utils.prune and the old weight_norm compute anew in each call."""
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def _unmask_(module: Masked) -> None:
    for parameter, mask in module.masked_parameters():
        name = "bias" if parameter is module.bias else "weight"
        values = torch.where(mask, parameter.detach(), 0)  # in the memory format that the parameter has
        setattr(module, name, nn.Parameter(values, requires_grad=parameter.requires_grad))
    del module.mask, module.bias_mask, module.straight_through
    module.__class__ = module.plain  # type: ignore[assignment]
