"""Search for a student's learning rate, momentum, scales and widths in the paper's ranges.

Source: Urban et al., "Do Deep Convolutional Nets Really Need to be Deep and Convolutional?", ICLR 2017; its Gaussian
process is Spearmint's, ours is optuna's default sampler.
"""

from __future__ import annotations

import fcntl
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crest_ext.augment import standardize
from crest_ext.data import Loader, Split
from crest_ext.methods import Mimic, MimicConfig
from crest_ext.models import create_model
from crest_ext.models.shallow import FILTERS, HIDDEN
from crest_ext.train.fit import evaluate
from crest_ext.train.logit_cache import LogitCache
from crest_ext.train.schedules import Plateau

LR, MOMENTUM = (0.0013, 0.016), (0.68, 0.97)  # on log scales
INPUT_SCALE, INIT_SCALE = (0.8, 1.25), (0.4, 2.0)


@dataclass(frozen=True)
class Trial:
    """One student: the lowest validation error it had, and what was drawn for it; None if no width met the budget."""

    number: int
    error: float | None
    drawn: dict[str, float]


def search(
    cache: LogitCache,
    validation: Split,
    storage: Path,
    *,
    conv_layers: int,
    params: float = 1e6,
    hidden_layers: int = 1,
    trials: int = 20,
    lr: tuple[float, float] = LR,
    seed: int = 0,
    done: Callable[[Trial], None] | None = None,
) -> list[Trial]:
    """Train students on a cache until so many are done; goes on where an earlier call stopped.

    Several processes may search side by side, each with a seed of its own, on one storage: together they make about
    this number of trials.

    Args:
        cache: written already.
        validation: x as bytes, (n, 3, 32, 32) uint8.
        storage: an SQLite file, made if it is not there; a study in it for each kind of student, budget and cache.
        conv_layers: see `Shallow`.
        params: see `Shallow`.
        hidden_layers: see `Shallow`.
        trials: in all, earlier ones among them; not those that were interrupted.
        lr: bounds of the learning rate, drawn on a log scale; lower ones suit teachers with larger logits.
        seed: of the draws; first weights are those of torch's seed 0.
        done: called after each.

    Returns:
        All trials that are done, the best first.

    Raises:
        ValueError: optuna is missing, trials or lr is not as above, or the cache is not whole.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError('search: needs optuna: pip install "crest_ext[search]"') from None
    if trials < 1:
        raise ValueError(f"search: trials must be at least 1, got {trials}")
    if not 0 < lr[0] <= lr[1] < math.inf:
        raise ValueError(f"search: lr must be two rates > 0, the lower first, got {lr}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    batches = Loader(Split(standardize(validation.x), validation.y), 500)

    def train(trial: optuna.Trial) -> float:
        model, config = draw(trial, conv_layers, hidden_layers, lr)
        torch.manual_seed(0)
        try:
            student = create_model("shallow", conv_layers=conv_layers, params=params, classes=cache.classes, **model)
        except ValueError:  # the convolutions alone exceed the budget
            raise optuna.TrialPruned from None
        return min(learn(Mimic(student, cache.teachers, config), cache, batches))

    name = f"{conv_layers} conv, {hidden_layers} hidden, {params:.0f} parameters, cache {cache.identity}"
    with storage.open("ab") as file:  # the tables must not be made twice at once
        fcntl.flock(file, fcntl.LOCK_EX)
        study = optuna.create_study(study_name=name, storage=f"sqlite:///{storage}", load_if_exists=True)
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    before = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed + 1000 * before)
    if len(study.get_trials(deepcopy=False, states=states)) < trials:
        calls: list[Any] = [optuna.study.MaxTrialsCallback(trials, states)]
        if done:
            calls.append(lambda _, trial: done(_of(trial)))
        study.optimize(train, callbacks=calls)
    found = [_of(trial) for trial in study.get_trials(deepcopy=False, states=states)]
    return sorted(found, key=lambda trial: math.inf if trial.error is None else trial.error)


def draw(
    trial: Any, conv_layers: int, hidden_layers: int = 1, lr: tuple[float, float] = LR
) -> tuple[dict[str, Any], MimicConfig]:
    """Arguments of Shallow and of Mimic from the paper's ranges.

    Widths are the constants C1 and C2 in [0, 1] of the paper, from a lower to an upper bound: C1 that of the first
    layer, or of the first two of four, C2 that of the others.
    """
    config = MimicConfig(
        trial.suggest_float("lr", *lr, log=True),
        trial.suggest_float("momentum", *MOMENTUM, log=True),
    )
    model: dict[str, Any] = {
        "input_scale": trial.suggest_float("input_scale", *INPUT_SCALE),
        "init_scale": trial.suggest_float("init_scale", *INIT_SCALE),
    }
    if conv_layers == 0:
        layers = max(hidden_layers, 2)  # a single one has its bottleneck
        model |= {"hidden_layers": hidden_layers}
        return model | {"ratios": [trial.suggest_float(f"ratio{i + 1}", 0.01, 1) for i in range(layers)]}, config
    first, second = (trial.suggest_float(name, 0, 1) for name in ("C1", "C2"))
    shares = {1: [first], 2: [first, second], 3: [first, second, second], 4: [first, first, second, second]}
    bounds = FILTERS[conv_layers]
    sizes = [round(low + c * (high - low)) for c, (low, high) in zip(shares[conv_layers], bounds, strict=True)]
    model["filters"] = sizes
    if conv_layers == 1:
        model["hidden"] = round(HIDDEN[0] + second * (HIDDEN[1] - HIDDEN[0]))
    return model, config


def learn(mimic: Mimic, cache: LogitCache, validation: Loader) -> list[float]:
    """Train on logits, the rate halved on a plateau; the validation error after each pass."""
    optimizer, schedule, errors = mimic.optimizer(), Plateau(mimic.config.lr), list[float]()
    for number, batch in enumerate(cache, 1):
        optimizer.zero_grad()
        mimic.loss(standardize(batch.x), batch.z).backward()
        optimizer.step()
        if number % cache.batches_per_pass == 0:
            errors.append(evaluate(mimic.student, validation))
            rate = schedule.after(errors)
            if rate is None:
                break
            optimizer.param_groups[0]["lr"] = rate
    return errors


def _of(trial: Any) -> Trial:
    return Trial(trial.number, trial.value, dict(trial.params))
