"""Structured Sparsity Learning: a group lasso that takes filters, channels, filter shapes and layers to zero.

Source: Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, and the authors'
Caffe solver.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from crest_ext.methods.checks import is_number, require, require_by_layer
from crest_ext.methods.method import Method
from crest_ext.methods.select import select
from crest_ext.methods.summary import Summary, summarize
from crest_ext.nn.masked import MaskedConv2d, MaskedLinear, mask_
from crest_ext.ops import group_norms, group_soft_threshold_
from crest_ext.ops.group_norms import Groups, kept_dims, spread

Mode = Literal["proximal", "subgradient"]
Factor = float | Mapping[str, float]
# The fields of StructuredConfig that penalise groups; what they are to the ops, and in the plural.
FIELDS: dict[str, tuple[Groups, str]] = {
    "filter": ("filter", "filters"),
    "channel": ("channel", "channels"),
    "shape": ("shape", "shapes"),
    "kernel": ("kernel", "kernels"),
    "depth": ("layer", "layers"),
}


@dataclass(frozen=True)
class StructuredConfig:
    """How hard to press each kind of group towards zero: lambda_g of the paper's eq. 1, by kind.

    Each factor is one number for all layers, or {name or fnmatch pattern: number}: the first match wins, and a layer
    that matches nothing, or 0, is left alone. Kinds add up, in the paper and here. Biases are never penalised.

    Attributes:
        filter: lambda_n (eq. 2), of each weight[i]; a Linear's rows, so its neurons.
        channel: lambda_c (eq. 2), of each weight[:, j]; a Linear's columns, so its inputs.
        shape: lambda_s (eq. 3), of each weight[:, j, p, q], a column of the lowered matrix.
        kernel: of each 2-D filter weight[i, j].
        depth: lambda_d, of each layer whole: for layers that a shortcut bypasses.
        mode: "proximal" gives exact zeros, by a proximal step after each step of the optimizer; "subgradient" is what
            the authors do: lambda w / ||w|| is added to the gradient, and weights below zero_below become 0.
        sqrt_size: multiply the factors by the square root of the numbers in a group, as the group lasso of statistics
            and, from layer to layer, the authors' prototxt files; their formulas do not.
        zero_below: the authors' ZEROUT_THRESHOLD; "subgradient" only.
        least: {kind: {name or pattern: count}}, "proximal" only. This kind's factor leaves a layer as many of its
            groups; when no more are left, they are pressed no further, and the others stay at zero. So the factors need
            only be large enough, whereas how many groups a factor alone leaves differs from seed to seed.

    A grouped convolution has channels and shapes in each of its groups: it is as many convolutions.
    """

    filter: Factor = 0.0
    channel: Factor = 0.0
    shape: Factor = 0.0
    kernel: Factor = 0.0
    depth: Factor = 0.0
    mode: Mode = "proximal"
    sqrt_size: bool = False
    zero_below: float = 1e-4
    least: Mapping[str, Mapping[str, int]] | None = None

    def __post_init__(self) -> None:
        for kind in FIELDS:
            require_by_layer(self, kind, 0)
        positive = [f for f in FIELDS for x in [getattr(self, f)] if any(x.values() if isinstance(x, dict) else [x])]
        require(self, bool(positive), "one of " + ", ".join(FIELDS), "be above 0", 0.0)
        require(self, self.mode in get_args(Mode), "mode", f"be one of {', '.join(get_args(Mode))}", self.mode)
        require(self, is_number(self.zero_below, 0), "zero_below", "be a finite number >= 0", self.zero_below)
        if self.least is not None:
            require(self, self.mode == "proximal", "least", "be None in mode 'subgradient'", self.least)
            for kind, counts in self.least.items():
                require(self, kind in FIELDS and bool(getattr(self, kind)), "least", "be of kinds with a factor", kind)
                for layer, count in counts.items():
                    require(
                        self, isinstance(count, int) and count > 0, f"least {kind} of {layer!r}", "be an int > 0", count
                    )
            object.__setattr__(self, "least", {kind: dict(counts) for kind, counts in self.least.items()})


@dataclass
class _Layer:
    name: str
    module: MaskedLinear | MaskedConv2d
    factors: dict[str, float]  # by field, those above 0
    masked: bool  # before the method came
    least: dict[str, int]  # by field
    settled: set[str]  # the fields whose groups are no more than that

    def parts(self, field: str, weight: Tensor) -> list[Tensor]:
        """A contiguous weight; of a grouped convolution those of its groups, where that matters."""
        conv_groups = self.module.groups if isinstance(self.module, nn.Conv2d) else 1
        return list(weight.chunk(conv_groups)) if field in ("channel", "shape") else [weight]

    def kept(self, field: str) -> Tensor:
        """bool, of the weight's shape: whether a number's group is not all zeros."""
        groups, weight = FIELDS[field][0], self.module.effective_weight().detach().contiguous()
        norms = [(part, group_norms(part, groups)) for part in self.parts(field, weight)]
        return torch.cat([spread(norm != 0, groups, part.dim()).expand_as(part) for part, norm in norms])

    def shrink(self, field: str, weight: Tensor, thresholds: list[float]) -> None:
        """Soft thresholds, a number for each part. The first step that would leave no more than `least` settles it."""
        groups, parts = FIELDS[field][0], self.parts(field, weight)
        least = self.least.get(field, 0)
        if least:
            norms = [group_norms(part, groups) for part in parts]
            over = [norm.flatten() - threshold for norm, threshold in zip(norms, thresholds, strict=True)]
            if int((torch.cat(over) > 0).sum()) <= least:
                return self.settle(field, weight, norms)
        for part, threshold in zip(parts, thresholds, strict=True):
            group_soft_threshold_(part, groups, threshold)
        return None

    def settle(self, field: str, weight: Tensor, norms: list[Tensor]) -> None:
        """Zero all groups but the `least` largest, for good."""
        groups, flat = FIELDS[field][0], torch.cat([norm.flatten() for norm in norms])
        largest = torch.zeros_like(flat, dtype=torch.bool)
        largest[flat.topk(min(self.least[field], len(flat))).indices] = True
        parts = zip(self.parts(field, weight), norms, largest.split([norm.numel() for norm in norms]), strict=True)
        kept = [spread(keep.view_as(norm), groups, part.dim()).expand_as(part) for part, norm, keep in parts]
        self.module.mask &= torch.cat(kept)
        weight.masked_fill_(~self.module.mask, 0)
        self.masked = True
        self.settled.add(field)

    @contextmanager
    def writable(self) -> Iterator[Tensor]:
        """The weight, contiguous and without what an earlier mask drops; written back at the end."""
        weight = self.module.weight.detach()
        flat = weight.contiguous()
        if self.masked:
            flat.masked_fill_(~self.module.mask, 0)
        yield flat
        if flat.data_ptr() != weight.data_ptr():
            weight.copy_(flat)


class StructuredSparsity(Method):
    """A group lasso on the layers of a model, which it makes MaskedLinear and MaskedConv2d in place.

        method = StructuredSparsity(model, StructuredConfig(filter=0.01, channel=0.002), optimizer)
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            method.step()
        print(method.finish())
        small = shrink(model, example_input)

    The proximal step is as long as the optimizer's: its lr, over 1 - momentum where it has one, as a gradient that
    stays the same moves a weight that far. So a factor means the same in both modes, under SGD. Adam and the like
    scale gradients, but not this step: their factors are others. Kinds of groups are shrunk one after the other, in
    the order of the config's fields. Groups at zero come back if the loss wants it, until `finish()` fixes them: from
    there on they are exactly 0, whatever the optimizer does to them.

    In "subgradient" mode the loop needs `method.add_gradients()` between backward and `optimizer.step()`.

    A filter at zero still gives its bias, and BatchNorm its beta: a constant. `shrink` folds it into the biases of
    what reads it. It cannot where zero padding follows; there use channel factors as well, which bring the weights
    that read a constant to zero.

    Raises:
        ValueError: a pattern names no layer, two layers share a parameter, or the mode is "proximal" and no optimizer
            is given that has all weights.
    """

    def __init__(
        self, model: nn.Module, config: StructuredConfig, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        self.model = model
        self.config = config
        self.optimizer = optimizer
        self.finished = False
        self._added = False  # whether the gradients of this iteration have their share
        found = dict[str, tuple[nn.Linear | nn.Conv2d, dict[str, float]]]()
        for field in FIELDS:
            if factors := getattr(config, field):
                for name, module, factor in select("StructuredSparsity", model, factors, "all"):
                    if factor:
                        found.setdefault(name, (module, {}))[1][field] = factor
        if config.mode == "proximal":
            there = {p for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
            for name, (module, _) in found.items():
                if module.weight not in there:
                    raise ValueError(
                        f"StructuredSparsity: optimizer must have the weight of layer {name!r}, whose steps set those "
                        f"of mode 'proximal', got {'one without' if optimizer else None}"
                    )
        least = dict[str, dict[str, int]]()
        for field, counts in (config.least or {}).items():
            for name, _, count in select("StructuredSparsity", model, counts, "all"):
                least.setdefault(name, {})[field] = int(count)
        self._layers = []
        for name, (plain, factors_of) in found.items():
            module = mask_(plain, mask_bias=False)
            self._layers.append(_Layer(name, module, factors_of, not module.mask.all(), least.get(name, {}), set()))

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add lambda w / ||w|| of each group to the gradient; 0 where the norm is. Before `optimizer.step()`.

        Raises:
            RuntimeError: the mode is "proximal", or the method is finished.
        """
        self._require_unfinished("add_gradients()")
        if self.config.mode != "subgradient":
            raise RuntimeError(
                f"StructuredSparsity: add_gradients() must be of mode 'subgradient', got {self.config.mode!r}"
            )
        for layer in self._layers:
            if layer.module.weight.grad is None:
                continue
            weight = layer.module.effective_weight().detach().contiguous()
            for field, factor in layer.factors.items():
                groups, shares = FIELDS[field][0], []
                for part in layer.parts(field, weight):
                    norms = group_norms(part, groups)
                    scale = torch.where(norms == 0, 0, factor * self._scale(field, part) / norms)
                    shares.append(part * spread(scale, groups, part.dim()))
                layer.module.weight.grad.add_(torch.cat(shares))
        self._added = True

    @torch.no_grad()
    def step(self) -> None:
        """Shrink the groups, or in "subgradient" mode zero what is small. Call it after `optimizer.step()`.

        Raises:
            RuntimeError: the method is finished, or add_gradients() was left out.
        """
        self._require_unfinished("step()")
        if self.config.mode == "subgradient" and not self._added:
            raise RuntimeError("StructuredSparsity: step() must follow add_gradients(), before optimizer.step()")
        self._added = False
        lengths = self._step_lengths()
        for layer in self._layers:
            if not layer.module.weight.requires_grad:
                continue  # frozen
            with layer.writable() as weight:
                if self.config.mode == "subgradient":
                    weight.masked_fill_(weight.abs() < self.config.zero_below, 0)
                    continue
                for field, factor in layer.factors.items():
                    if field not in layer.settled:
                        length, parts = lengths[layer.module.weight] * factor, layer.parts(field, weight)
                        layer.shrink(field, weight, [length * self._scale(field, part) for part in parts])

    @torch.no_grad()
    def finish(self) -> Summary:
        """Fix the groups that are zero, for whatever trains the model from here on. Returns the summary."""
        if not self.finished:
            for layer in self._layers:
                for field in layer.factors:
                    layer.module.mask &= layer.kept(field)
        self.finished = True
        return self.summary()

    def summary(self) -> Summary:
        """Each Linear and Conv2d with the weights that are not zero, and how many of its groups are not."""
        masks = {layer.module.weight: layer.module.effective_weight().detach() != 0 for layer in self._layers}
        notes: dict[nn.Module, str] = {layer.module: self._note(layer) for layer in self._layers}
        return summarize(self.model, dict.fromkeys(notes), masks, notes)

    def state_dict(self) -> dict[str, Any]:
        """Whether it is finished, and of which layers; what is zero is in the model's weights and masks."""
        settled = {layer.name: sorted(layer.settled) for layer in self._layers if layer.settled}
        return {"finished": self.finished, "layers": [layer.name for layer in self._layers], "settled": settled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from `state_dict()`. Load the model's own state_dict as well, before or after.

        Raises:
            ValueError: it is not a state of these layers.
        """
        names, given = [layer.name for layer in self._layers], state_dict.get("layers")
        if given != names:
            raise ValueError(f"StructuredSparsity: state_dict must be of the layers {names}, got {given}")
        self.finished = state_dict["finished"]
        for layer in self._layers:
            layer.settled = set(state_dict["settled"].get(layer.name, ()))
            layer.masked = layer.masked or bool(layer.settled)
        self._added = False

    def _require_unfinished(self, call: str) -> None:
        if self.finished:
            raise RuntimeError(f"StructuredSparsity: {call} must come before finish()")

    def _scale(self, field: str, part: Tensor) -> float:
        if not self.config.sqrt_size:
            return 1.0
        count = math.prod(part.shape[i] for i in kept_dims(FIELDS[field][0], part.dim()))
        return math.sqrt(part.numel() / count)

    def _step_lengths(self) -> dict[Tensor, float]:
        groups = self.optimizer.param_groups if self.optimizer else []
        return {p: float(g["lr"]) / (1 - g.get("momentum", 0.0)) for g in groups for p in g["params"]}

    @staticmethod
    def _note(layer: _Layer) -> str:
        said = []
        for field in layer.factors:
            groups, plural = FIELDS[field]
            weight = layer.module.effective_weight().detach().contiguous()
            norms = torch.stack([group_norms(part, groups) for part in layer.parts(field, weight)])
            said.append(f"{int(norms.count_nonzero())} of {norms.numel()} {plural}")
        return ", ".join(said)
