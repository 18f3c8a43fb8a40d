"""Dynamic Network Surgery: prune small weights, and splice back those that grow.

Source: Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, and the authors' Caffe layers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crest_ext.methods.checks import is_number, require, require_by_layer
from crest_ext.methods.method import Method
from crest_ext.methods.select import CLASSES, Kind, select
from crest_ext.methods.summary import Summary, summarize
from crest_ext.nn.masked import Masked, MaskedConv2d, MaskedLinear, mask_
from crest_ext.ops import prune_splice_


@dataclass(frozen=True)
class SurgeryConfig:
    """How to cut. Defaults are the authors' (README example); c_rate depends on the network.

    Attributes:
        c_rate: c of each layer's threshold max(mu + c * std, 0), where mu and std are the mean and the standard
            deviation of |w|. One number for all layers, or {name or fnmatch pattern: number}: the first match
            wins, and a layer that matches nothing is left alone. May be negative.
        kind: which layers take part. The paper prunes "conv" and "linear" in separate runs, conv first; the other
            kind keeps the masks it has.
        low: a_k over the threshold: a weight below is dropped.
        high: b_k over the threshold: a weight from here on is restored; between low and high the mask stays.
        gamma: the masks of a layer are updated with probability (1 + gamma * iteration)^-power, sigma of the paper.
        power: see gamma.
        iter_stop: no update from this iteration on. Train on well beyond it: the survivors adapt.
        ramp: c of every layer moves from c_start to its c_rate, evenly, over this many iterations, so that many
            weights are not dropped at once. Ours: the authors' c is constant, ramp=0.
        c_start: see ramp.
        mask_bias: biases are measured and dropped like weights, as the authors do.
        seed: of the draws.
    """

    c_rate: float | Mapping[str, float]
    kind: Kind = "all"
    low: float = 0.9
    high: float = 1.1
    gamma: float = 1e-4
    power: float = 1.0
    iter_stop: int = 14_000
    ramp: int = 0
    c_start: float = 0.0
    mask_bias: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.c_rate, Mapping):
            require(self, len(self.c_rate) > 0, "c_rate", "name a layer", self.c_rate)
        require_by_layer(self, "c_rate")
        require(self, self.kind in CLASSES, "kind", f"be one of {', '.join(CLASSES)}", self.kind)
        require(self, is_number(self.low, 0), "low", "be a finite number >= 0", self.low)
        require(self, is_number(self.high, self.low), "high", f"be a number >= low, {self.low}", self.high)
        require(self, is_number(self.gamma, 0), "gamma", "be a finite number >= 0", self.gamma)
        require(self, is_number(self.power, 0), "power", "be a finite number >= 0", self.power)
        require(
            self, isinstance(self.iter_stop, int) and self.iter_stop >= 0, "iter_stop", "be an int >= 0", self.iter_stop
        )
        require(self, isinstance(self.ramp, int) and self.ramp >= 0, "ramp", "be an int >= 0", self.ramp)
        require(self, is_number(self.c_start), "c_start", "be a finite number", self.c_start)
        require(self, isinstance(self.seed, int), "seed", "be an int", self.seed)


class Part(NamedTuple):
    """A parameter under surgery in this iteration."""

    parameter: Tensor
    mask: Tensor
    low: float
    high: float
    due: bool  # whether its layer's masks are to be updated

    def prune_splice(self) -> None:
        if self.due:
            mask, parameter = in_memory_order(self.mask, self.parameter.detach())
            prune_splice_(parameter, mask, self.low, self.high)


def in_memory_order(mask: Tensor, *others: Tensor) -> list[Tensor]:
    """The tensors with their dimensions in the order that makes mask contiguous: channels_last ones are not as is."""
    order = sorted(range(mask.dim()), key=mask.stride, reverse=True)
    return [t.permute(order) for t in (mask, *others)]


def _moments(name: str, layer: nn.Linear | nn.Conv2d, mask_bias: bool) -> tuple[float, float]:
    """Mean and standard deviation, over n, of |w| over the weights that are neither dropped nor 0; in float64."""
    masks = dict(layer.masked_parameters()) if isinstance(layer, Masked) else {}
    parameters = [layer.weight, *([layer.bias] if mask_bias and layer.bias is not None else [])]
    kept = [p.detach()[masks[p]] if p in masks else p.detach().flatten() for p in parameters]
    sizes = torch.cat(kept).double().abs()
    sizes = sizes[sizes != 0]
    if not len(sizes) or not sizes.isfinite().all():
        what = "weights that are not finite" if len(sizes) else "nothing but zeros"
        raise ValueError(f"Surgery: layer {name!r} must hold trained weights, got {what}")
    return sizes.mean().item(), sizes.std(correction=0).item()


@dataclass
class _Layer:
    name: str
    module: MaskedLinear | MaskedConv2d
    c_rate: float
    mu: float
    std: float


class Surgery(Method):
    """Prune and splice while training goes on.

    The chosen Linear and Conv2d layers of `model` become MaskedLinear and MaskedConv2d, in place, on the same
    Parameter objects: an optimizer made before keeps working. Their thresholds are measured now and then frozen, so
    the model must hold its trained weights already (to resume, make Surgery first and then load all state_dicts).
    While surgery lasts, the gradients of these layers are dense: a dropped weight moves on, and returns once it is
    large enough.

        surgery = Surgery(model, SurgeryConfig(c_rate={"conv1": 1.4, "conv2": 4.5}, kind="conv"))
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            surgery.step()
        print(surgery.finish())

    After `finish()` the masks are fixed and gradients are masked: going on with the loop, without `step()`, is
    ordinary fine-tuning of what is left. A second Surgery on the same model starts from its masks and measures the
    survivors, so that the thresholds go up. Layers outside a run keep the masks they have.

    Masks depend on nothing but weights, seed and iteration: ranks that train the same weights (make Surgery when
    they hold them already) keep the same masks without talking, and a resumed run repeats the uninterrupted one.

    Raises:
        ValueError: c_rate names no layer, no layer is left to prune, or a layer cannot be measured.
    """

    def __init__(self, model: nn.Module, config: SurgeryConfig) -> None:
        self.model = model
        self.config = config
        self.iteration = 0
        self.finished = False
        self.fused = False  # PruneSpliceSGD calls `updating`; `step` would do it twice
        chosen = select("Surgery", model, config.c_rate, config.kind)
        measured = [_moments(name, module, config.mask_bias) for name, module, _ in chosen]  # may fail: before changes
        self._layers = [
            _Layer(name, mask_(module, config.mask_bias), c_rate, mu, std)
            for (name, module, c_rate), (mu, std) in zip(chosen, measured, strict=True)
        ]
        self._set_straight_through()

    def step(self) -> None:
        """Update the masks from the weights. Call it after `optimizer.step()`.

        Raises:
            RuntimeError: a layer would lose all its weights (its masks stay as they were), or the surgery is
                finished, or an optimizer does this already.
        """
        if self.finished:
            raise RuntimeError("Surgery: step() must come before finish()")
        if self.fused:
            raise RuntimeError("Surgery: step() must be left to PruneSpliceSGD, whose own step() does it")
        with self.updating() as parts:
            for part in parts:
                part.prune_splice()

    @contextmanager
    def updating(self) -> Iterator[list[Part]]:
        """One iteration: gives what to update to `step` or PruneSpliceSGD, and checks what they did."""
        if self.finished:
            yield []
            return
        due = [self._is_due(index) for index in range(len(self._layers))]
        masks = [
            [mask for _, mask in self._pairs(layer)] if d else [] for layer, d in zip(self._layers, due, strict=True)
        ]
        before = [[mask.clone() for mask in of_layer] for of_layer in masks]
        yield [
            Part(parameter, mask, self.config.low * threshold, self.config.high * threshold, d)
            for layer, d in zip(self._layers, due, strict=True)
            for threshold in [self._threshold(layer)]
            for parameter, mask in self._pairs(layer)
        ]
        for layer, now, old in zip(self._layers, masks, before, strict=True):
            if now and not now[0].view(torch.uint8).max():  # any(), 30 times as fast
                for mask, copy in zip(now, old, strict=True):
                    mask.copy_(copy)
                raise RuntimeError(self._emptied(layer))
        self.iteration += 1

    def finish(self) -> Summary:
        """Fix the masks, and mask gradients from here on. Returns the summary."""
        self.finished = True
        self._set_straight_through()
        return self.summary()

    def summary(self) -> Summary:
        """Each Linear and Conv2d with what is kept of it, and the parameters outside them in one row."""
        return summarize(self.model, {layer.module: self._threshold(layer) for layer in self._layers})

    def state_dict(self) -> dict[str, Any]:
        """Iteration and moments; the masks are buffers of the model."""
        measured = {layer.name: {"mu": layer.mu, "std": layer.std} for layer in self._layers}
        return {"iteration": self.iteration, "finished": self.finished, "moments": measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from `state_dict()`. Load the model's own state_dict as well, before or after.

        Raises:
            ValueError: it is not a state of these layers.
        """
        measured = state_dict.get("moments", {})
        names = [layer.name for layer in self._layers]
        if list(measured) != names:
            raise ValueError(f"Surgery: state_dict must be of the layers {names}, got {list(measured)}")
        self.iteration, self.finished = state_dict["iteration"], state_dict["finished"]
        for layer in self._layers:
            layer.mu, layer.std = measured[layer.name]["mu"], measured[layer.name]["std"]
        self._set_straight_through()

    def _set_straight_through(self) -> None:
        for layer in self._layers:
            layer.module.straight_through = not self.finished

    def _pairs(self, layer: _Layer) -> list[tuple[Tensor, Tensor]]:
        """Its parameters that take part, each with its mask; the weight first."""
        return layer.module.masked_parameters()[: 2 if self.config.mask_bias else 1]

    def _threshold(self, layer: _Layer) -> float:
        c, config = layer.c_rate, self.config
        if self.iteration < config.ramp:
            c = config.c_start + (c - config.c_start) * self.iteration / config.ramp
        return max(layer.mu + c * layer.std, 0.0)

    def _is_due(self, index: int) -> bool:
        """sigma of the paper, by a draw that only seed, iteration and layer decide: no generator state to keep."""
        draw = random.Random(f"{self.config.seed} {self.iteration} {index}").random()
        probability = (1 + self.config.gamma * self.iteration) ** -self.config.power
        return self.iteration < self.config.iter_stop and draw < probability

    def _emptied(self, layer: _Layer) -> str:
        largest = layer.module.weight.detach().abs().max().item()
        return (
            f"Surgery: layer {layer.name!r} must keep a weight, got the largest |w| = {largest:.6g} below "
            f"{self.config.low:g} of the threshold {self._threshold(layer):.6g} at iteration {self.iteration}: "
            f"lower its c_rate ({layer.c_rate:g}), or the learning rate or the weight decay"
        )
