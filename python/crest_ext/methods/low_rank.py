"""Compression-aware training: a nuclear norm that takes layers to low rank, for `factorize` to make them thinner.

Source: Alvarez, Salzmann, "Compression-aware Training of Deep Networks", NIPS 2017; its sparse group lasso from
Alvarez, Salzmann, "Learning the Number of Neurons in Deep Networks", NIPS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crest_ext.methods.checks import is_number, require, require_by_layer
from crest_ext.methods.method import Method
from crest_ext.methods.select import select
from crest_ext.methods.summary import Summary, summarize
from crest_ext.nn.masked import Masked, mask_
from crest_ext.ops import group_norms, singular_value_threshold, sparse_group_soft_threshold_
from crest_ext.ops.group_norms import spread
from crest_ext.ops.truncated_svd import rank_of, singular_values

Factor = float | Mapping[str, float]


@dataclass(frozen=True)
class LowRankConfig:
    """How hard to press layers towards low rank, and neurons towards zero.

    tau and sparse_group are one number for all layers, or {name or fnmatch pattern: number}: the first match wins, and
    a layer that matches nothing, or 0, is left alone. Biases are never penalised.

    Attributes:
        tau: of the nuclear norm: the sum of the singular values of the layer as a matrix with a row for each neuron or
            filter; of a grouped convolution, of each group's.
        sparse_group: lambda of the sparse group lasso, a group being a neuron's or filter's weights.
        alpha: the share of |w|_1 in it, in [0, 1]; the rest is the groups' norms times the square root of their size.
        interval: steps of the optimizer from one proximal step to the next, which is as long as all of them together.
            The paper makes one at the end of each epoch.
        energy: in (0, 1]; the share of the singular values that the ranks in `summary()` hold.
        squared: energy is of the squared singular values, or of the singular values themselves.
    """

    tau: Factor = 0.0
    sparse_group: Factor = 0.0
    alpha: float = 0.5
    interval: int = 1
    energy: float = 0.9
    squared: bool = True

    def __post_init__(self) -> None:
        for field in ("tau", "sparse_group"):
            require_by_layer(self, field, 0)
        factors = [x for f in (self.tau, self.sparse_group) for x in (f.values() if isinstance(f, Mapping) else [f])]
        require(self, any(factors), "one of tau, sparse_group", "be above 0", 0.0)
        require(self, is_number(self.alpha, 0) and self.alpha <= 1, "alpha", "be in [0, 1]", self.alpha)
        require(
            self, isinstance(self.interval, int) and self.interval >= 1, "interval", "be an int >= 1", self.interval
        )
        require(self, is_number(self.energy) and 0 < self.energy <= 1, "energy", "be in (0, 1]", self.energy)


@dataclass
class _Layer:
    name: str
    module: nn.Linear | nn.Conv2d
    tau: float
    sparse_group: float
    length: float = 0.0  # of the optimizer's steps since the last proximal one

    def weight(self) -> Tensor:
        """Contiguous, without what a mask drops."""
        module = self.module
        return (module.effective_weight() if isinstance(module, Masked) else module.weight).detach().contiguous()

    def matrices(self, weight: Tensor) -> Tensor:
        """(groups, neurons or filters of a group, inputs of each); float32 for half precision."""
        groups = self.module.groups if isinstance(self.module, nn.Conv2d) else 1
        wide = weight if weight.dtype == torch.float64 else weight.float()
        return wide.reshape(groups, len(weight) // groups, -1)

    def shrink(self, alpha: float) -> None:
        """The proximal operators of what the penalty is made of, one after the other."""
        weight = self.weight()
        if self.tau:
            low = singular_value_threshold(self.matrices(weight), self.length * self.tau)
            weight = low.view_as(weight).to(weight.dtype)
        if self.sparse_group:
            press = self.length * self.sparse_group
            groups = press * (1 - alpha) * math.sqrt(weight[0].numel())
            sparse_group_soft_threshold_(weight, "filter", groups, press * alpha)
        self.module.weight.copy_(weight)
        self.length = 0.0

    def note(self, config: LowRankConfig) -> str:
        weight = self.weight()
        matrices = self.matrices(weight)
        rank = rank_of(singular_values(matrices), config.energy, config.squared)
        said = f"rank {rank} of {min(matrices.shape[1:])}"
        if self.sparse_group:
            said += f", {int(group_norms(weight, 'filter').count_nonzero())} of {len(weight)} filters"
        return said


class LowRank(Method):
    """A nuclear norm, and a sparse group lasso if asked for, on the layers of a model.

        method = LowRank(model, LowRankConfig(tau=0.01), optimizer)
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            method.step()
        print(method.finish())
        small = factorize(model, energy=0.9)

    The proximal step is as long as the optimizer's: its lr, over 1 - momentum where it has one, as a gradient that
    stays the same moves a weight that far; of all steps since the last one. So tau means the same for every interval,
    and nothing shrinks while the lr is 0. Momentum is left as it is. BatchNorm after a layer makes up for the scale of
    its weights, not for their rank.

    With sparse_group, layers become MaskedLinear and MaskedConv2d in place, for `finish()` to fix the neurons at zero.

    Args:
        model: changed in place.
        config: how hard to press.
        optimizer: of the model, whose steps set the length of these; `train.fit` gives its own.

    Raises:
        ValueError: a pattern names no layer, two layers share a parameter, or the optimizer lacks a weight.
    """

    def __init__(self, model: nn.Module, config: LowRankConfig, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.model = model
        self.config = config
        self.finished = False
        self._since = 0
        factors = dict[str, dict[str, float]]()
        modules = dict[str, nn.Linear | nn.Conv2d]()
        for field in ("tau", "sparse_group"):
            if wanted := getattr(config, field):
                for name, module, factor in select("LowRank", model, wanted, "all"):
                    if factor:
                        modules[name] = module
                        factors.setdefault(name, {"tau": 0.0, "sparse_group": 0.0})[field] = factor
        self._layers = [_Layer(name, modules[name], **factors[name]) for name in factors]
        for layer in self._layers:
            if layer.sparse_group:
                layer.module = mask_(layer.module, mask_bias=False)
        self.optimizer = optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        there = {p for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
        for layer in self._layers if optimizer else ():
            if layer.module.weight not in there:
                raise ValueError(f"LowRank: optimizer must have the weight of layer {layer.name!r}, got one without")
        self._optimizer = optimizer

    @torch.no_grad()
    def step(self) -> None:
        """Count a step of the optimizer, and shrink at every `interval`-th. Call it after `optimizer.step()`.

        Raises:
            ValueError: a weight is not finite.
            RuntimeError: the method is finished, or has no optimizer.
        """
        if self.finished:
            raise RuntimeError("LowRank: step() must come before finish()")
        if self.optimizer is None:
            raise RuntimeError("LowRank: step() must come after an optimizer is given")
        lengths = {
            p: float(group["lr"]) / (1 - group.get("momentum", 0.0))
            for group in self.optimizer.param_groups
            for p in group["params"]
        }
        for layer in self._layers:
            if layer.module.weight.requires_grad:
                layer.length += lengths[layer.module.weight]
        self._since += 1
        if self._since == self.config.interval:
            self._shrink()

    def _shrink(self) -> None:
        self._since = 0
        for layer in self._layers:
            if layer.length:
                layer.shrink(self.config.alpha)

    @torch.no_grad()
    def finish(self) -> Summary:
        """Shrink by the steps since the last time, and fix neurons at zero. Returns the summary.

        Training that goes on raises the rank again, unless `factorize` has fixed it.
        """
        if not self.finished:
            self._shrink()
            for layer in self._layers:
                if layer.sparse_group:
                    assert isinstance(layer.module, Masked)
                    norms = group_norms(layer.weight(), "filter")
                    layer.module.mask &= spread(norms != 0, "filter", layer.module.mask.dim())
        self.finished = True
        return self.summary()

    def summary(self) -> Summary:
        """Each Linear and Conv2d with the weights that are not zero, its rank and its neurons that are not zero."""
        masks = {layer.module.weight: layer.weight() != 0 for layer in self._layers}
        notes: dict[nn.Module, str] = {layer.module: layer.note(self.config) for layer in self._layers}
        return summarize(self.model, dict.fromkeys(notes), masks, notes)

    def state_dict(self) -> dict[str, Any]:
        """The steps since the last proximal one, and their lengths by layer; whether it is finished."""
        return {
            "finished": self.finished,
            "since": self._since,
            "lengths": {layer.name: layer.length for layer in self._layers},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from `state_dict()`. Load the model's own state_dict as well, before or after.

        Raises:
            ValueError: it is not a state of these layers.
        """
        names, given = [layer.name for layer in self._layers], list(state_dict.get("lengths", ()))
        if given != names:
            raise ValueError(f"LowRank: state_dict must be of the layers {names}, got {given}")
        self.finished, self._since = state_dict["finished"], state_dict["since"]
        for layer in self._layers:
            layer.length = state_dict["lengths"][layer.name]
