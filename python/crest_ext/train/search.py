"""Search for a student's learning rate, momentum, scales and widths in the paper's ranges.

Source: Urban et al., "Do Deep Convolutional Nets Really Need to be Deep and Convolutional?", ICLR 2017; its Gaussian
process is Spearmint's, ours is optuna's default sampler.
"""

from __future__ import annotations

import fcntl
import math
import os
import sqlite3
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from crest_ext.augment import standardize
from crest_ext.data import Loader, Split
from crest_ext.methods import Mimic, MimicConfig
from crest_ext.models import create_model
from crest_ext.models.shallow import FILTERS, HIDDEN, SIDE
from crest_ext.train.fit import evaluate
from crest_ext.train.logit_cache import LogitCache, sha256
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
    storage: str | os.PathLike[str],
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
    this number of trials. What was drawn for a student whose process was killed or interrupted is trained by the next
    process to begin a trial.

    Args:
        cache: of images (n, 3, 32, 32); what is missing of it is written, once everything else is known to be right.
        validation: x as bytes, (n, 3, 32, 32) uint8; y: (n,) int64, 0 to the cache's classes - 1.
        storage: an SQLite file, made if it is not there; a study in it for each kind of student, budget and cache.
            Beside it, in a file whose name ends in .lock, processes lock the trials that they run.
        conv_layers: see `Shallow`.
        params: see `Shallow`; widths beyond it end a trial, not the search.
        hidden_layers: see `Shallow`.
        trials: in all, earlier ones among them; not those that were interrupted.
        lr: bounds of the learning rate, drawn on a log scale; lower ones suit teachers with larger logits.
        seed: of the draws; first weights are those of torch's seed 0.
        done: called after each.

    Returns:
        All trials that are done, the best first.

    Raises:
        ValueError: optuna is missing, an argument is not as above, no width meets the budget, the storage is no SQLite
            file, or its study is of other validation data or rates: their errors cannot be compared.
        OSError: the storage cannot be written.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError('search: needs optuna: pip install "crest_ext[search]"') from None
    if trials < 1:
        raise ValueError(f"search: trials must be at least 1, got {trials}")
    if not 0 < lr[0] <= lr[1] < math.inf:
        raise ValueError(f"search: lr must be two rates > 0, the lower first, got {lr}")
    _check_data(cache, validation)
    with torch.device("meta"):  # the narrowest student, where the budget decides: it refuses what no draw can meet
        create_model(
            "shallow", conv_layers=conv_layers, params=params, hidden_layers=hidden_layers, classes=cache.classes
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage, identity = Path(storage), " ".join(sha256(tensor)[:16] for tensor in validation)
    name = f"{conv_layers} conv, {hidden_layers} hidden, {params:.0f} parameters, cache {cache.identity}"
    study = _study(storage, name, {"params": params, "lr": list(lr), "validation": identity})

    def train(trial: optuna.Trial) -> float | None:
        model, config = draw(trial, conv_layers, hidden_layers, lr)
        torch.manual_seed(0)
        try:
            student = create_model("shallow", conv_layers=conv_layers, params=params, classes=cache.classes, **model)
        except ValueError:  # the convolutions alone exceed the budget
            return None
        return min(learn(Mimic(student, cache.teachers, config), cache, batches))

    if len(_finished(study)) < trials:
        if damaged := cache.write():
            warnings.warn(
                f"search: {damaged} batches of the cache were damaged, and have been made again", stacklevel=2
            )
        batches = Loader(Split(standardize(validation.x), validation.y), 500)
        study.sampler = optuna.samplers.TPESampler(seed=seed + 1000 * len(study.get_trials(deepcopy=False)))
        with storage.with_name(f"{storage.name}.lock").open("ab") as locks:
            while trial := _begin(study, locks, trials):
                try:
                    error = train(trial)
                except Exception:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    raise
                told = study.tell(trial, error, state=None if error is not None else optuna.trial.TrialState.PRUNED)
                if done:
                    done(_of(told))
    return sorted(map(_of, _finished(study)), key=lambda trial: math.inf if trial.error is None else trial.error)


def _check_data(cache: LogitCache, validation: Split) -> None:
    if cache.images.shape[1:] != (3, SIDE, SIDE):
        rule = f"be of images (n, 3, {SIDE}, {SIDE})"
        raise ValueError(f"search: cache must {rule}, got {tuple(cache.images.shape)}")
    x, y = validation
    if y.dim() != 1 or y.dtype != torch.int64 or x.shape != (len(y), 3, SIDE, SIDE) or x.dtype != torch.uint8:
        got = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in validation)
        raise ValueError(f"search: validation must be (n, 3, {SIDE}, {SIDE}) uint8 and (n,) int64, got {got}")
    if not len(y):
        raise ValueError("search: validation must have a sample, got none")
    if not 0 <= y.min() <= y.max() < cache.classes:
        rule = f"be of the cache's classes, 0 to {cache.classes - 1}"
        raise ValueError(f"search: labels of validation must {rule}, got {y.min()} to {y.max()}")


def _study(storage: Path, name: str, settings: dict[str, Any]) -> Any:
    """The study of this name; its user attributes are what its trials have in common."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    def connect() -> sqlite3.Connection:  # by its path: in a URL, some characters of a name have a meaning
        return sqlite3.connect(storage.absolute(), timeout=60, check_same_thread=False)

    with storage.open("ab") as file:  # neither tables nor attributes may be made twice at once
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            database = optuna.storages.RDBStorage("sqlite:///by_path", engine_kwargs={"creator": connect})
            study = optuna.create_study(study_name=name, storage=database, load_if_exists=True)
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", error)
            raise ValueError(f"search: storage must be an SQLite file, got {storage}: {cause}") from None
        fresh = not study.get_trials(deepcopy=False)
        for key, mine in settings.items():
            if fresh and key not in study.user_attrs:
                study.set_user_attr(key, mine)
            elif (there := study.user_attrs.get(key)) != mine:
                raise ValueError(
                    f"search: {key} must be as in {storage}, {there}, got {mine}: errors would not compare; "
                    "search in another file"
                )
    return study


def _finished(study: Any) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _begin(study: Any, locks: IO[bytes], trials: int) -> Any:
    """The next trial, or None if so many are done.

    A process locks a byte for the trial that it runs. The system frees the bytes of a process that is no more: what was
    drawn for a running trial whose byte is free is queued again.
    """
    from optuna.trial import TrialState

    fcntl.lockf(locks, fcntl.LOCK_EX, 1, 0)  # no trial has byte 0; until a new one is locked, nobody looks
    try:
        for running in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _lock(locks, running):
                study.enqueue_trial(running.params)
                study.tell(running.number, state=TrialState.FAIL)
        if len(_finished(study)) >= trials:
            return None
        trial = study.ask()
        _lock(locks, trial)
        return trial
    finally:
        fcntl.lockf(locks, fcntl.LOCK_UN, 1, 0)


def _lock(locks: IO[bytes], trial: Any) -> bool:
    """Whether no other process had locked the trial's byte; now this one has."""
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, trial._trial_id)
    except (BlockingIOError, PermissionError):
        return False
    return True


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
