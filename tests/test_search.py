from __future__ import annotations

import builtins
import json
import math
import signal
import sqlite3
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


def teachers() -> Ensemble:
    torch.manual_seed(1)
    return Ensemble([OfBytes(3072, 10)])


@pytest.fixture
def cache(tmp_path: Path) -> LogitCache:
    made = LogitCache(tmp_path / "cache", X[:32], Y[:32], teachers(), passes=2, batch_size=16)
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
    found = search(cache, Split(X[32:], Y[32:]), tmp_path / "s.db", trials=3, conv_layers=2, params=1.4e5)
    assert [trial.error for trial in found] == [None] * 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"params": math.nan}, "Shallow: params must be > 0 and at most 1e+15, got nan"),
        ({"params": -5}, "Shallow: params must be > 0 and at most 1e+15, got -5"),
        ({"params": math.inf}, "Shallow: params must be > 0 and at most 1e+15, got inf"),
        ({"params": 10}, "Shallow: params must be at least 3,094 with 1 hidden layers, got 10"),
        (
            {"conv_layers": 2, "params": 1e5},
            "Shallow: params must be at least 135,321 with filters (50, 100), got 100,000",
        ),
        ({"conv_layers": 7}, "Shallow: conv_layers must be 0 to 4, got 7"),
        ({"hidden_layers": 0}, "Shallow: hidden_layers must be at least 1, got 0"),
        ({"conv_layers": 2, "hidden_layers": 3}, "Shallow: hidden_layers must be 1 with convolutions, got 3"),
    ],
)
def test_refuses_students_that_cannot_be(
    cache: LogitCache, tmp_path: Path, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        search(cache, Split(X[32:], Y[32:]), tmp_path / "s.db", **(MLP | kwargs))
    assert str(caught.value) == message
    assert not (tmp_path / "s.db").exists()


@pytest.mark.parametrize("conv_layers", range(5))
def test_the_least_budget_is_that_of_the_narrowest_draw(cache: LogitCache, tmp_path: Path, conv_layers: int) -> None:
    model, _ = draw(fixed(min), conv_layers)
    with pytest.raises(ValueError) as caught, torch.device("meta"):
        Shallow(conv_layers, 1, **model)
    with pytest.raises(ValueError) as refused:
        search(cache, Split(X[32:], Y[32:]), tmp_path / "s.db", conv_layers=conv_layers, params=1)
    assert str(refused.value) == str(caught.value)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:0], Y[:0], "validation must have a sample, got none"),
        (X[:4, :, :28, :28], Y[:4], "validation must be (n, 3, 32, 32) uint8 and (n,) int64, got (4, 3, 28, 28) uint8"),
        (X[:4].float(), Y[:4], "validation must be (n, 3, 32, 32) uint8 and (n,) int64, got (4, 3, 32, 32) float32"),
        (X[:4], Y[:3], "validation must be (n, 3, 32, 32) uint8 and (n,) int64, got (4, 3, 32, 32) uint8, (3,) int64"),
        (X[:4], Y[:4] + 9, "labels of validation must be of the cache's classes, 0 to 9, got 9 to 12"),
    ],
)
def test_refuses_validation(cache: LogitCache, tmp_path: Path, x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        search(cache, Split(x, y), tmp_path / "s.db", **MLP)
    assert str(caught.value).startswith(f"search: {message}")


def test_refuses_before_the_cache_is_written(tmp_path: Path) -> None:
    x = X[:32, :, :28, :28].contiguous()
    cache = LogitCache(tmp_path / "cache", x, Y[:32], Ensemble([OfBytes(2352, 10)]), passes=1, batch_size=16)
    with pytest.raises(ValueError, match=r"^search: cache must be of images \(n, 3, 32, 32\), got \(32, 3, 28, 28\)$"):
        search(cache, Split(X[32:], Y[32:]), tmp_path / "s.db", **MLP)
    assert not (tmp_path / "cache").exists()


def test_refuses_a_study_of_other_rates_or_validation(cache: LogitCache, tmp_path: Path) -> None:
    storage, validation = tmp_path / "s.db", Split(X[32:], Y[32:])
    found = search(cache, validation, storage, trials=1, **MLP)
    for kwargs, message in (
        (
            {"lr": (1e-6, 1e-5)},
            rf"lr must be as in {storage}, \[0\.0013, 0\.016\], got \[1e-06, 1e-05\]: .* another file$",
        ),
        ({"params": 4e4 + 0.2}, rf"params must be as in {storage}, 40000\.0, got 40000\.2: "),
        ({"validation": Split(X[33:], Y[33:])}, rf"validation must be as in {storage}, \w+ \w+, got \w+ \w+: "),
        ({"validation": Split(X[32:], Y[32:].flip(0))}, rf"validation must be as in {storage}, "),
    ):
        with pytest.raises(ValueError, match=rf"^search: {message}"):
            search(cache, **({"validation": validation, "storage": storage, "trials": 1} | MLP | kwargs))
    assert search(cache, validation, str(storage), trials=1, **MLP) == found


def test_any_name_of_a_file_is_that_file(cache: LogitCache, tmp_path: Path) -> None:
    storage = tmp_path / "q?x {a}#%41.db"
    search(cache, Split(X[32:], Y[32:]), storage, trials=1, **MLP)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", storage.name, f"{storage.name}.lock"}
    with sqlite3.connect(storage) as database:
        assert database.execute("SELECT count(*) FROM trials").fetchone() == (1,)
    database.close()


def test_refuses_a_file_that_is_no_database(cache: LogitCache, tmp_path: Path) -> None:
    storage = tmp_path / "s.db"
    storage.write_text("no database " * 100)
    with pytest.raises(ValueError) as caught:
        search(cache, Split(X[32:], Y[32:]), storage, **MLP)
    assert str(caught.value) == f"search: storage must be an SQLite file, got {storage}: file is not a database"
    assert storage.read_text() == "no database " * 100


def test_what_raises_is_not_tried_again(
    cache: LogitCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("of training")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"^of training$"):
        patch.setattr(sys.modules["crest_ext.train.search"], "learn", fail)
        search(cache, Split(X[32:], Y[32:]), tmp_path / "s.db", trials=1, **MLP)
    assert capfd.readouterr() == ("", "")
    assert [trial.number for trial in search(cache, Split(X[32:], Y[32:]), tmp_path / "s.db", trials=1, **MLP)] == [1]


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_search import *

def learn(*_):
    print("learns", flush=True)
    sys.stdin.readline()

sys.modules["crest_ext.train.search"].learn = learn
cache = LogitCache(sys.argv[2], X[:32], Y[:32], teachers(), passes=2, batch_size=16)
search(cache, Split(X[32:], Y[32:]), sys.argv[3], seed=1, trials=1, **MLP)
"""


def test_what_a_killed_process_drew_is_trained_by_another(cache: LogitCache, tmp_path: Path) -> None:
    storage, validation = tmp_path / "s.db", Split(X[32:], Y[32:])
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(cache.folder), str(storage)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "learns\n"
        assert [trial.number for trial in search(cache, validation, storage, trials=1, **MLP)] == [1]  # 0 is alive
        child.send_signal(signal.SIGKILL)
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{storage}")
    lost = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{storage}").trials[0]
    assert lost.state == optuna.trial.TrialState.RUNNING
    again = {trial.number: trial for trial in search(cache, validation, storage, trials=2, **MLP)}
    assert sorted(again) == [1, 2]
    assert again[2].drawn == lost.params
    assert again[2].error is not None
    trials = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{storage}").trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE"]


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

def small():
    return tuple((x[:, :, :28, :28], y) for x, y in splits())

def none():
    training, (x, y) = splits()
    return training, (x[:0], y[:0])

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
        ("--data", "own_search:none", "--data: own_search:none must return"),
        ("--data", "nowhere", "data: CIFAR-10 must be in nowhere"),
        ("--data", "own_search:small", "search: cache must be of images (n, 3, 32, 32), got (16, 3, 28, 28)"),
        ("--params", "nan", "Shallow: params must be > 0 and at most 1e+15, got nan"),
        (
            "--storage",
            "own_search.py",
            "search: storage must be an SQLite file, got own_search.py: file is not a database",
        ),
    ],
)
def test_command_refuses(own: list[str], option: str, value: str, message: str) -> None:
    own[own.index(option) + 1] = value
    result = CliRunner().invoke(cli.app, own)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"crest: {message}")
    assert "Traceback" not in result.stderr
    assert not Path("cache").exists()


def test_help_says_what_data_and_seeds_are() -> None:
    text = " ".join(CliRunner().invoke(cli.app, ["search", "--help"], env={"COLUMNS": "300"}).stdout.split())
    assert "((images, labels), (images, labels))" in text
    assert "processes that search side by side need different ones" in text
    assert "loaders" not in text
