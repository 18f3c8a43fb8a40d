"""Optimizers that do a method's work in the same pass over memory, and parameter groups for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.sgd import SGD, sgd

from crest_ext.methods.surgery import Part, Surgery, in_memory_order
from crest_ext.ops import sgd_prune_splice_


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer, in which the filters of depthwise convolutions do not decay.

        optimizer = torch.optim.SGD(decay_groups(model, 4e-5), lr=0.045, momentum=0.9)

    Depthwise are convolutions of which each filter sees one of several channels, transposed ones as well; with
    weight_norm, or any other parametrization of their weight, nothing of it decays. All else does, biases too, as
    where one group holds it all.

    Args:
        model: whose parameters, each once.
        weight_decay: of all but the depthwise filters, at least 0.

    Returns:
        Two groups with their own weight_decay, or one where the model has no such filters, or nothing else.

    Raises:
        ValueError: weight_decay is negative.

    Source: Howard et al., "MobileNets: Efficient CNNs for Mobile Vision Applications", 2017, section 3.2.
    """
    if not weight_decay >= 0:
        raise ValueError(f"decay_groups: weight_decay must be at least 0, got {weight_decay}")
    depthwise = [m for m in model.modules() if isinstance(m, _ConvNd) and m.groups == m.in_channels > 1]
    # A parametrized weight is in several parameters, none of which is called so.
    spared = {p for m in depthwise for name, p in m.named_parameters() if "bias" not in name.split(".")}
    parts = ([p for p in model.parameters() if (p in spared) == among] for among in (False, True))
    groups = [{"params": part, "weight_decay": decay} for part, decay in zip(parts, (weight_decay, 0.0), strict=True)]
    return [group for group in groups if group["params"]]


class PruneSpliceSGD(SGD):
    """torch.optim.SGD and Surgery.step() in one: the layers under surgery are read and written once a step.

    Equal to `SGD(...).step()` and then `surgery.step()`, which must not be called any more. Once the surgery is
    finished it is plain SGD; learning-rate schedulers, parameter groups and SGD's state_dict work as ever.

        surgery = Surgery(model, SurgeryConfig(c_rate=1.0))
        optimizer = PruneSpliceSGD(model.parameters(), lr=0.01, momentum=0.9, surgery=surgery)

    Args:
        params: parameters or groups of them, those under surgery among them or not.
        lr: learning rate; beta of the paper.
        momentum: factor of the momentum buffer. Parameters under surgery have a buffer even where it is 0.
        weight_decay: factor of the weight in the gradient.
        surgery: whose masks to update.
        kwargs: the other arguments of SGD; dampening, nesterov and maximize are not supported.

    Raises:
        ValueError: an unsupported argument, here or in a parameter group or a loaded state_dict.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        surgery: Surgery,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay=weight_decay, **kwargs)
        self.surgery = surgery
        surgery.fused = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the weights and update the masks. Raises as `Surgery.step` does; the weights have moved then."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self.surgery.updating() as parts:
            todo = {part.parameter: part for part in parts}
            for group in self.param_groups:
                _check(group)
                self._step_plain(group, todo)
                for p in group["params"]:
                    if p.grad is not None and p in todo:
                        self._step_fused(group, todo.pop(p))
            for part in todo.values():  # frozen, unused in this step, or not ours
                part.prune_splice()
        return loss

    def _step_fused(self, group: dict[str, Any], part: Part) -> None:
        p, state = part.parameter, self.state[part.parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(p)
        assert p.grad is not None
        mask, weight, grad, buffer = in_memory_order(part.mask, p, p.grad, state["momentum_buffer"])
        sgd_prune_splice_(
            weight,
            grad,
            buffer,
            mask,
            float(group["lr"]),
            group["momentum"],
            group["weight_decay"],
            part.low,
            part.high,
            part.due,
        )

    def _step_plain(self, group: dict[str, Any], parts: dict[Tensor, Part]) -> None:
        params = [p for p in group["params"] if p.grad is not None and p not in parts]
        if not params:
            return
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        sgd(
            params,
            [p.grad for p in params],
            buffers,
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            dampening=0,
            nesterov=False,
            maximize=False,
            has_sparse_grad=any(p.grad.is_sparse for p in params),
            foreach=group["foreach"],
        )
        if group["momentum"]:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _check(self.param_groups[-1])


def _check(group: dict[str, Any]) -> None:
    for name in ("dampening", "nesterov", "maximize", "differentiable", "fused"):
        if group[name]:
            raise ValueError(f"PruneSpliceSGD: {name} must be {0 if name == 'dampening' else False}, got {group[name]}")
