"""Putting other modules in the place of a model's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def reason_not_to_replace(model: nn.Module, layer: nn.Module) -> str | None:
    """Why a layer of the model can have no other in its place, or None."""
    if any(layer.weight is p for m in model.modules() if m is not layer for p in m._parameters.values()):
        return "shares its weight"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "has hooks"
    return None


def replace_layers(model: Model, others: Mapping[nn.Module, nn.Module]) -> Model:
    """The model, changed in place, with others[layer] wherever a layer stood; or others[model]."""
    for parent in list(model.modules()):
        for child, module in parent._modules.items():  # named_children() gives a shared one once
            if module is not None and module in others:
                setattr(parent, child, others[module])
    return others.get(model, model)  # type: ignore[return-value]
