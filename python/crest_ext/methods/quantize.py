"""Few values for many weights, chosen while training goes on so that the coded file is small.

Source: Han, Mao, Dally, "Deep Compression", ICLR 2016, section 3 (shared weights, trained); Wiedemann et al.,
"DeepCABAC", IEEE J. Sel. Top. Signal Process. 14(4), 2020 (distance plus bits of the coder); Oktay et al., "Scalable
Model Compression by Entropy Penalized Reparameterization", ICLR 2020 (bits as a penalty during training).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crest_ext import _C
from crest_ext.methods.checks import require, require_by_layer
from crest_ext.methods.codebook import Codebook
from crest_ext.methods.method import Method
from crest_ext.methods.select import select
from crest_ext.methods.summary import Summary, summarize
from crest_ext.nn.masked import Masked

ROUNDS = 10  # of assigning and averaging before the first step
MOST = 256  # values that the coder's list holds


@dataclass(frozen=True)
class QuantizeConfig:
    """What a bit may cost.

    Attributes:
        lam: lambda, the price of a bit: a weight moves to a value (or to 0) that is coded in one bit less if its
            squared change grows by less than lam times the mean square of its tensor. One number for all layers, or
            {name or fnmatch pattern: number}: the first match wins, and a layer that matches nothing is left alone. 0
            asks for nothing but the nearest value.
        levels: values a tensor starts with, beside 0. Those that do not pay for their place in the file are given up.
        ramp: the price rises from 0 to lam, evenly, over this many iterations.
        iter_stop: from this iteration on every weight keeps its value, and only the values themselves move.
    """

    lam: float | Mapping[str, float]
    levels: int = 16
    ramp: int = 0
    iter_stop: int = 14_000

    def __post_init__(self) -> None:
        if isinstance(self.lam, Mapping):
            require(self, len(self.lam) > 0, "lam", "name a layer", self.lam)
        require_by_layer(self, "lam", 0)
        levels = isinstance(self.levels, int) and 1 <= self.levels <= MOST
        require(self, levels, "levels", f"be an int from 1 to {MOST}", self.levels)
        require(self, isinstance(self.ramp, int) and self.ramp >= 0, "ramp", "be an int >= 0", self.ramp)
        require(
            self, isinstance(self.iter_stop, int) and self.iter_stop >= 0, "iter_stop", "be an int >= 0", self.iter_stop
        )


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight or bias. Bits are estimated, as they are in training; bytes are those of the real coder."""

    name: str
    kept: int
    total: int
    levels: int  # values, 0 not counted
    bits: float
    bytes: int


@dataclass(frozen=True)
class QuantizeSummary(Summary):
    """`Summary`, and the tensors with their codebooks. `str()` gives a table of these."""

    tensors: tuple[QuantizedTensor, ...]

    def __str__(self) -> str:
        head = ("tensor", "kept", "of", "values", "bytes", "bits a weight kept")
        rows = [
            (
                t.name,
                f"{t.kept:,}",
                f"{t.total:,}",
                f"{t.levels}",
                f"{t.bytes:,}",
                f"{8 * t.bytes / t.kept:.2f}" if t.kept else "",
            )
            for t in self.tensors
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join([name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))]).rstrip()
            for name, *numbers in (head, *rows)
        ]
        size = sum(t.bytes for t in self.tensors)
        return "\n".join([*lines, f"{self.kept:,} of {self.total:,} parameters kept, these tensors in {size:,} bytes"])


class _Part(NamedTuple):
    """A parameter that takes part, as the model's state_dict calls it."""

    name: str
    parameter: Tensor
    lam: float
    codebook: Codebook

    def write(self) -> None:
        flat = torch.zeros(self.parameter.numel(), dtype=self.parameter.dtype, device=self.parameter.device)
        flat[self.codebook.places] = self.codebook.quantised().to(flat.dtype)
        self.parameter.copy_(flat.view(self.parameter.shape))

    def moved(self) -> Tensor:
        """(n,) float64: the latent weights after what the optimizer did to the quantised ones."""
        book = self.codebook
        return book.latent + self.parameter.detach().reshape(-1)[book.places].double() - book.quantised()

    def summary(self) -> QuantizedTensor:
        data = self.parameter.detach().cpu().contiguous().reshape(-1)
        columns = self.codebook.shape[1]
        size = len(_C.encode_tensor(data.view(torch.uint8).numpy(), "float", data.dtype.itemsize, columns))
        counts = self.codebook.counts
        return QuantizedTensor(self.name, int(counts.sum()), len(data), len(counts), self.codebook.bits(), size)


class Quantize(Method):
    """Give the weights of each layer few values while training goes on, at a price for every bit of the file.

    Weights and biases of the chosen Linear and Conv2d layers, masked ones too, are quantised now and again after every
    step: the network that trains is the one that will be saved. What the optimizer did to a quantised weight is done
    to the latent weight behind it (the straight-through estimator), which then takes the value that is cheapest in
    distance and bits; a value is the mean of its latent weights, so it moves along its gradient, the sum of theirs,
    over their number. What is 0 or masked at the start stays exactly 0, whatever momentum or decay the optimizer has.

        quantize = Quantize(model, QuantizeConfig(lam=0.03, ramp=1000))
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            quantize.step()
        print(quantize.finish())
        container.save_model(model, "small.crest")

    Without the loop, this quantises a trained network as it is. A low learning rate that falls to 0 suits it: every
    change of value is a jump. `lam` decides how many weights become 0; a mapping spares layers that need their weights.
    It prunes what is sparse already: where most weights are kept, a 0 takes more bits than a value.
    Other parameters, such as those of BatchNorm, stay as they are.

    Values depend on nothing but weights and iteration: ranks that train the same weights keep the same ones without
    talking (on a CPU, where sums have an order), and a resumed run repeats the uninterrupted one.

    Raises:
        ValueError: lam names no layer, two layers share a parameter, or a weight is not finite.
        RuntimeError: a layer would lose all its weights.
    """

    def __init__(self, model: nn.Module, config: QuantizeConfig) -> None:
        self.model = model
        self.config = config
        self.iteration = 0
        self.finished = False
        chosen = select("Quantize", model, config.lam, "all")
        self._parts = [
            _Part(f"{name}.{key}".lstrip("."), parameter, lam, Codebook(effective, config.levels))
            for name, module, lam in chosen
            for key, parameter, effective in _effective(name, module)
        ]
        with torch.no_grad():
            for part in self._parts:
                for _ in range(ROUNDS):
                    self._assign(part)
                part.write()

    @torch.no_grad()
    def step(self) -> None:
        """Quantise again. Call it after `optimizer.step()`.

        Raises:
            RuntimeError: a weight is not finite (nothing is changed), a layer would lose all its weights, or the
                quantisation is finished.
        """
        if self.finished:
            raise RuntimeError("Quantize: step() must come before finish()")
        moved = [part.moved() for part in self._parts]
        for part, latent in zip(self._parts, moved, strict=True):
            if not latent.isfinite().all():
                raise RuntimeError(
                    f"Quantize: {part.name!r} must be finite, got a weight that is not at iteration {self.iteration}: "
                    f"lower the learning rate"
                )
        for part, latent in zip(self._parts, moved, strict=True):
            part.codebook.latent = latent
            self._assign(part)
            part.write()
        self.iteration += 1

    def _assign(self, part: _Part) -> None:
        if self.iteration < self.config.iter_stop:
            share = min(1.0, self.iteration / self.config.ramp) if self.config.ramp else 1.0
            part.codebook.assign(share * part.lam)
        part.codebook.average()
        if len(part.codebook.places) and not len(part.codebook.values) and part.parameter.dim() > 1:
            raise RuntimeError(
                f"Quantize: {part.name!r} must keep a weight, got none at iteration {self.iteration}: "
                f"lower the lam of its layer ({part.lam:g})"
            )

    def finish(self) -> QuantizeSummary:
        """Drop by its mask what is 0 in a masked layer. Train no further: weights would part from their values."""
        self.finished = True
        for part in self._parts:
            owner = self.model.get_submodule(part.name.rpartition(".")[0])
            if isinstance(owner, Masked):
                for parameter, mask in owner.masked_parameters():
                    mask.logical_and_(parameter.detach() != 0)
        return self.summary()

    def summary(self) -> QuantizeSummary:
        """What is kept of each layer, and each tensor's values and bytes."""
        return QuantizeSummary(summarize(self.model, {}).layers, tuple(part.summary() for part in self._parts))

    def state_dict(self) -> dict[str, Any]:
        """Iteration and, by tensor, the latent weights and their codebook."""
        books = {part.name: {key: getattr(part.codebook, key) for key in Codebook.STATE} for part in self._parts}
        return {"iteration": self.iteration, "finished": self.finished, "codebooks": books}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from `state_dict()`. Load the model's own state_dict as well, before or after.

        Raises:
            ValueError: it is not a state of these tensors.
        """
        books = state_dict.get("codebooks", {})
        names = [part.name for part in self._parts]
        if list(books) != names:
            raise ValueError(f"Quantize: state_dict must be of the tensors {names}, got {list(books)}")
        self.iteration, self.finished = state_dict["iteration"], state_dict["finished"]
        for part in self._parts:
            for key in Codebook.STATE:
                setattr(part.codebook, key, books[part.name][key].to(part.parameter.device, copy=True))
            part.write()


def _effective(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Weight and bias with what they are where they act."""
    masks = dict(module.masked_parameters()) if isinstance(module, Masked) else {}
    for key, parameter in module.named_parameters(recurse=False):
        values = parameter.detach()
        if not values.isfinite().all():
            raise ValueError(f"Quantize: {key} of layer {name!r} must be finite")
        yield key, parameter, torch.where(masks[parameter], values, 0) if parameter in masks else values
