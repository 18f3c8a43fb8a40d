from __future__ import annotations

import builtins
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from crest_ext import cli
from crest_ext.data import Split
from crest_ext.methods import Ensemble
from crest_ext.models import Shallow
from crest_ext.models.shallow import FILTERS, HIDDEN
from crest_ext.train import LogitCache, search
from crest_ext.train.search import INIT_SCALE, INPUT_SCALE, LR, MOMENTUM, draw

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 10
MLP: dict[str, Any] = {"conv_layers": 0, "params": 4e4}


class OfBytes(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1) / 255)


@pytest.fixture
def cache(tmp_path: Path) -> LogitCache:
    torch.manual_seed(1)
    made = LogitCache(tmp_path / "cache", X[:32], Y[:32], Ensemble([OfBytes(3072, 10)]), passes=2, batch_size=16)
    made.write()
    return made


def fixed(at: Callable[[float, float], float]) -> Any:
    """A trial that draws everything at one end of its range."""

    class Fixed:
        def suggest_float(self, name: str, low: float, high: float, log: bool = False) -> float:
            assert log == (name in ("lr", "momentum"))
            return at(low, high)

    return Fixed()


@pytest.mark.parametrize("conv_layers", [1, 2, 3, 4])
def test_ranges_are_the_papers(conv_layers: int) -> None:
    for end, at in enumerate((min, max)):
        model, config = draw(fixed(at), conv_layers)
        assert (config.lr, config.momentum) == (LR[end], MOMENTUM[end])
        assert (model["input_scale"], model["init_scale"]) == (INPUT_SCALE[end], INIT_SCALE[end])
        assert model["filters"] == [bounds[end] for bounds in FILTERS[conv_layers]]
        assert model.get("hidden") == (HIDDEN[end] if conv_layers == 1 else None)
        with torch.device("meta"):
            assert isinstance(Shallow(conv_layers, 3.16e7, **model), Shallow)


@pytest.mark.parametrize(("hidden_layers", "ratios"), [(1, 2), (2, 2), (5, 5)])
def test_ratios_of_perceptrons(hidden_layers: int, ratios: int) -> None:
    model, _ = draw(fixed(max), 0, hidden_layers)
    assert model["ratios"] == [1] * ratios
    assert isinstance(Shallow(0, 1e5, **model), Shallow)


def test_goes_on_where_it_stopped(cache: LogitCache, tmp_path: Path) -> None:
    storage, seen = tmp_path / "s.db", []
    assert len(search(cache, Split(X[32:], Y[32:]), storage, trials=2, done=seen.append, **MLP)) == 2
    found = search(cache, Split(X[32:], Y[32:]), storage, trials=4, done=seen.append, **MLP)
    assert [trial.number for trial in seen] == [0, 1, 2, 3]
    assert sorted(found, key=lambda trial: trial.number) == seen
    errors = [trial.error for trial in found]
    assert errors == sorted(errors, key=lambda e: math.inf if e is None else e)
    assert len({trial.drawn["lr"] for trial in found}) == 4
    assert all(LR[0] <= trial.drawn["lr"] <= LR[1] for trial in found)
    assert search(cache, Split(X[32:], Y[32:]), storage, trials=4, done=seen.append, **MLP) == found
    assert len(seen) == 4


def test_same_seed_same_trials(cache: LogitCache, tmp_path: Path) -> None:
    runs = [search(cache, Split(X[32:], Y[32:]), tmp_path / f"{i}.db", trials=1, seed=i // 2, **MLP) for i in range(3)]
    assert runs[0] == runs[1] != runs[2]


def test_each_kind_of_student_is_a_study_of_its_own(cache: LogitCache, tmp_path: Path) -> None:
    storage = tmp_path / "s.db"
    for kwargs in (MLP, MLP | {"params": 5e4}, MLP | {"hidden_layers": 2}):
        assert len(search(cache, Split(X[32:], Y[32:]), storage, trials=1, **kwargs)) == 1
    assert len(optuna.get_all_study_names(f"sqlite:///{storage}")) == 3


def test_widths_beyond_the_budget_are_no_end(cache: LogitCache, tmp_path: Path) -> None:
    found = search(cache, Split(X[32:], Y[32:]), tmp_path / "s.db", trials=3, conv_layers=2, params=1e3)
    assert [trial.error for trial in found] == [None] * 3


def test_refuses(cache: LogitCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation, storage = Split(X[32:], Y[32:]), tmp_path / "s.db"
    with pytest.raises(ValueError, match=r"^search: trials must be at least 1, got 0$"):
        search(cache, validation, storage, trials=0, **MLP)
    with pytest.raises(ValueError, match=r"^search: lr must be two rates > 0, the lower first, got \(0\.1, 0\.01\)$"):
        search(cache, validation, storage, lr=(0.1, 0.01), **MLP)

    def without_optuna(name: str, *args: Any) -> Any:
        if name == "optuna":
            raise ImportError
        return real(name, *args)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_optuna)
    with pytest.raises(ValueError, match=r'^search: needs optuna: pip install "crest_ext\[search\]"$'):
        search(cache, validation, storage, **MLP)


OWN = """
import torch
from torch import nn

class OfBytes(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1) / 255)

def teachers():
    torch.manual_seed(0)
    return [OfBytes(3072, 3), OfBytes(3072, 3)]

def splits():
    x = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % 3
    return (x[:16], y[:16]), (x[16:], y[16:])

number = lambda: 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of `crest search` in a folder with a user's own module."""
    (tmp_path / "own_search.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"teachers": "own_search:teachers", "data": "own_search:splits", "storage": "s.db", "cache": "cache"}
    options |= {"conv-layers": "0", "params": "4e4", "passes": "2", "batch-size": "8", "trials": "4", "threads": "1"}
    return ["search", "--json", *(text for name, value in options.items() for text in (f"--{name}", value))]


def test_processes_share_a_search(own: list[str]) -> None:
    command = [sys.executable, "-m", "crest_ext", *own]
    both = [subprocess.Popen([*command, "--seed", s], stdout=subprocess.PIPE, text=True) for s in ("1", "2")]
    found = [json.loads(process.communicate()[0])["trials"] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    numbers = [{trial["number"] for trial in trials} for trials in found]
    assert max(map(len, numbers)) in (4, 5)  # both may begin a last one
    assert CliRunner().invoke(cli.app, own).exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--teachers", "own_search:number", "--teachers: own_search:number must return a list of nn.Module, got int"),
        ("--data", "own_search:number", "--data: own_search:number must return"),
        ("--data", "nowhere", "data: CIFAR-10 must be in nowhere"),
    ],
)
def test_command_refuses(own: list[str], option: str, value: str, message: str) -> None:
    own[own.index(option) + 1] = value
    result = CliRunner().invoke(cli.app, own)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"crest: {message}")
