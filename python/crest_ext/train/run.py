"""All phases of a recipe, one after another."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from crest_ext.container import load_file, load_model, safe_open, save_model
from crest_ext.data import Dataset, Loader
from crest_ext.methods import LowRank, Quantize, Surgery
from crest_ext.methods.select import Kind, select
from crest_ext.nn import Masked, mask_
from crest_ext.nn.masked import reason_not_to_mask
from crest_ext.train.fit import Batches, Report, bake, evaluate, fit
from crest_ext.train.recipe import Phase, Recipe

Data = Dataset | tuple[Batches, Batches]


@dataclass(frozen=True)
class PhaseResult:
    """One phase's end: error is a fraction of the test samples."""

    name: str
    iterations: int
    error: float
    kept: int
    total: int
    seconds: float


def run(
    recipe: Recipe,
    model: nn.Module,
    data: Data,
    *,
    seed: int = 0,
    first: int = 0,
    last: int | None = None,
    checkpoint: Path | None = None,
    start: Callable[[Phase], Report | None] | None = None,
    done: Callable[[PhaseResult], None] | None = None,
) -> list[PhaseResult]:
    """Train and compress a model in place, phase by phase.

    A phase starts from the effective weights (see `bake`) and with its own seed, so a run that goes on from a
    checkpoint gives the same bits as one that was never interrupted.

    Args:
        recipe: what to do.
        model: as the recipe's, or another whose layers fit its names.
        data: a data set, or the train and the test loader (which decide batch size and shifts themselves).
        seed: of batches, dropout and mask updates.
        first: phases before it are skipped.
        last: phases from it on are skipped.
        checkpoint: written after each phase, and read at the start if it is there.
        start: called before a phase; gives what to call while it works.
        done: called after a phase.

    Returns:
        One result a phase, those of this call.

    Raises:
        ValueError: the checkpoint is of another recipe or seed, or the recipe does not fit the model.
    """
    stop = len(recipe.phases) if last is None else last
    identity = hashlib.sha256(f"{recipe.phases[first:stop]} {seed}".encode()).hexdigest()[:16]
    if checkpoint and checkpoint.exists():
        first = _resume(model, checkpoint, identity)
    results = []
    with _channels_last(model):
        for number in range(first, stop):
            phase = recipe.phases[number]
            torch.manual_seed(1000 * seed + number)
            before = time.perf_counter()
            train, test = loaders(data, phase.batch_size, 1000 * seed + number, phase.shift)
            bake(model)
            with _frozen(model, phase):
                surgery, quantize, low_rank = methods = _methods(model, phase, seed)
                fit(
                    model,
                    train,
                    phase.iterations,
                    phase.lr,
                    momentum=phase.momentum,
                    weight_decay=phase.weight_decay,
                    bias_lr=phase.bias_lr,
                    surgery=surgery,
                    quantize=quantize,
                    low_rank=low_rank,
                    progress=start(phase) if start else None,
                )
            for method in methods:
                if method:
                    method.finish()
            bake(model)
            kept, total = count(model)
            error = evaluate(model, test)
            result = PhaseResult(phase.name, phase.iterations, error, kept, total, time.perf_counter() - before)
            results.append(result)
            if checkpoint:
                save_model(model, checkpoint, {"recipe": identity, "phases": str(number + 1)})
            if done:
                done(result)
    return results


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Convolutions and the pooling after them train faster so, at least on a CPU; others may not save what is so."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.is_contiguous()]
    for module in convolutions:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        for module in convolutions:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _methods(model: nn.Module, phase: Phase, seed: int) -> tuple[Surgery | None, Quantize | None, LowRank | None]:
    """The phase's method, on the layers that are not frozen."""

    def trained(who: str, values: float | Mapping[str, float], kind: Kind) -> dict[str, float]:
        chosen = select(who, model, values, kind)
        found = {name: value for name, layer, value in chosen if layer.weight.requires_grad}
        if not found:
            raise ValueError(f"recipe: phase {phase.name}: freeze must leave a layer to {who}")
        return found

    surgery, quantize = phase.surgery, phase.quantize
    if surgery:
        c_rate = trained("Surgery", surgery.c_rate, surgery.kind)
        surgery = replace(surgery, c_rate=c_rate, seed=surgery.seed + seed)
    if quantize:
        quantize = replace(quantize, lam=trained("Quantize", quantize.lam, "all"))
    return (
        Surgery(model, surgery) if surgery else None,
        Quantize(model, quantize) if quantize else None,
        LowRank(model, phase.low_rank) if phase.low_rank else None,  # leaves by itself what is frozen
    )


@contextmanager
def _frozen(model: nn.Module, phase: Phase) -> Iterator[None]:
    """Without gradients for the layers that the phase leaves alone."""
    modules = {pattern: [m for n, m in model.named_modules() if fnmatchcase(n, pattern)] for pattern in phase.freeze}
    for pattern, found in modules.items():
        if not found:
            raise ValueError(f"recipe: phase {phase.name}: freeze must name a layer, got {pattern!r}")
    frozen = {p for found in modules.values() for m in found for p in m.parameters() if p.requires_grad}
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def count(model: nn.Module) -> tuple[int, int]:
    """Parameters that are not zero where they act, and all parameters."""
    masks = {p: mask for m in model.modules() if isinstance(m, Masked) for p, mask in m.masked_parameters()}
    parameters = list(model.parameters())
    kept = sum(int((p.detach() * masks[p] if p in masks else p.detach()).count_nonzero()) for p in parameters)
    return kept, sum(p.numel() for p in parameters)


def restore(model: nn.Module, path: Path) -> None:
    """Load a file into a plain model, and mask what is dropped in it: training goes on with the weights left."""
    tensors = load_file(path)
    for name, module in model.named_modules():
        weight = tensors.get(f"{name}.weight" if name else "weight")
        if weight is not None and (weight == 0).any() and reason_not_to_mask(module) is None:
            mask_(module)
    load_model(model, path)


def _resume(model: nn.Module, checkpoint: Path, identity: str) -> int:
    with safe_open(checkpoint) as file:
        metadata = file.metadata()
    if metadata.get("recipe") != identity:
        raise ValueError(f"{checkpoint}: checkpoint must be of this recipe and seed: remove it to start over")
    restore(model, checkpoint)
    return int(metadata["phases"])


def loaders(data: Data, batch_size: int = 64, seed: int = 0, shift: int = 0) -> tuple[Batches, Batches]:
    """Train and test batches of a data set; loaders stay what they are."""
    if isinstance(data, Dataset):
        return Loader(data.train, batch_size, shuffle=True, seed=seed, shift=shift), Loader(data.test, 500)
    return data
