"""Optimizers, from a model to a copy with fewer weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Take = Callable[[Tensor], Tensor]


def hand_over(
    optimizer: torch.optim.Optimizer, model: nn.Module, copy: nn.Module, takes: dict[nn.Module, dict[str, Take]]
) -> None:
    """Replace the parameters of model in the optimizer by those of copy, and cut its state to them.

    Args:
        optimizer: changed in place.
        model: of modules by the same names as copy's.
        copy: its parameters without a counterpart in model join the group of the weight beside them.
        takes: how modules of copy were cut, by parameter; the others are as in model.

    Raises:
        ValueError: the optimizer trains nothing of the model, or keeps state of another shape than its parameter; it is
            not changed then.
    """
    heirs = dict[Tensor, dict[Tensor, tuple[str, Take | None]]]()  # several, of a tie that masks have parted
    for name, old in model.named_modules(remove_duplicate=False):
        new = copy.get_submodule(name)
        for key, parameter in new._parameters.items():
            before, full_name = old._parameters.get(key), f"{name}.{key}".lstrip(".")
            if parameter is not None and before is not None:
                take = takes.get(new, {}).get(key, torch.clone)
                heirs.setdefault(before, {})[parameter] = (full_name, take)
            elif parameter is not None and (weight := old._parameters["weight"]) is not None:
                heirs.setdefault(weight, {})[parameter] = (full_name, None)
        for key, before in old._parameters.items():
            if before is not None and new._parameters.get(key) is None:
                heirs.setdefault(before, {})
    if not any(p in heirs for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("shrink: optimizer must train parameters of the model, got one that trains none")
    for p in (p for group in optimizer.param_groups for p in group["params"] if p in heirs):
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor) and value.dim() and value.shape != p.shape:
                shapes = f"{tuple(p.shape)}, got {tuple(value.shape)}"
                raise ValueError(f"shrink: {key} of the optimizer must have its parameter's shape {shapes}")
    for group in optimizer.param_groups:
        names = group.get("param_names", [""] * len(group["params"]))
        moved = list[tuple[str, Tensor]]()
        for name, p in zip(names, group["params"], strict=True):
            state = optimizer.state.pop(p, {}) if p in heirs else {}
            for new_p, (new_name, take) in heirs.get(p, {p: (name, None)}).items():
                moved.append((new_name if p in heirs else name, new_p))
                if take is not None and state:
                    cut = {k: take(v) if isinstance(v, Tensor) and v.dim() else v for k, v in state.items()}
                    optimizer.state[new_p] = cut
        group["params"] = [p for _, p in moved]
        if "param_names" in group:
            group["param_names"] = [name for name, _ in moved]
