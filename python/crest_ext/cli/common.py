"""What the commands share: options, errors, progress, and the user's own networks."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from crest_ext import data as datasets
from crest_ext import train
from crest_ext.models import MODELS, create_model

P = ParamSpec("P")

File = Annotated[Path, typer.Argument(help="A .crest file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, and nothing else there.")]
Seed = Annotated[int, typer.Option(help="Of the weights, the batches and the mask updates.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Default: torch's. One is enough for a LeNet.")]
Out = Annotated[Path, typer.Option(help="The file to write.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="A recipe's name (see `crest train --help`) or a YAML file.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A name, or package.module:function that returns an nn.Module.")
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data", help="Folder of the data set, or package.module:function that returns (train, test) loaders."
    ),
]


def user_errors(command: Callable[P, None]) -> Callable[P, None]:
    """What the user can put right is one line on standard error and exit code 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError, RuntimeError) as error:
            typer.echo(f"crest: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None

    return run


def imported(name: str, what: str) -> Any:
    """The result of package.module:function, found from the current folder as well."""
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise ValueError(f"{what}: module must exist, got {name}: {error}") from None
    except AttributeError:
        raise ValueError(f"{what}: {module} must have a function {function!r}") from None
    return made()


def make_model(name: str | None, otherwise: str | None) -> nn.Module:
    """The model asked for, or of the recipe or file."""
    name = name or otherwise
    if not name:
        raise ValueError("--model: must be given: neither recipe nor file names a model")
    if ":" not in name:
        return create_model(name)
    model = imported(name, "--model")
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model: {name} must return an nn.Module, got {type(model).__name__}")
    return model


def make_data(name: str | None, otherwise: str | None) -> train.Data:
    """The user's loaders, or the named data set in a folder."""
    if name and ":" in name and not Path(name).is_dir():
        loaders = imported(name, "--data")
        if not isinstance(loaders, tuple) or len(loaders) != 2:
            raise ValueError(f"--data: {name} must return (train, test) loaders, got {type(loaders).__name__}")
        return loaders[0], loaders[1]
    if not otherwise:
        raise ValueError("--data: must be package.module:function: neither recipe nor file names a data set")
    return datasets.load(otherwise, name)


def closed_name(model: str | None, otherwise: str | None) -> str | None:
    """What may be written into a file as its model: a name of the registry, which loading runs no code of."""
    name = model or otherwise
    return name if name in MODELS else None


@contextmanager
def bars() -> Iterator[Callable[[train.Phase], train.Report]]:
    """Progress bars on standard error: call with a phase, get what `fit` calls."""
    columns = TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=Console(stderr=True)) as progress:

        def start(phase: train.Phase) -> train.Report:
            task = progress.add_task(phase.name, total=phase.iterations, loss=float("nan"))
            return lambda p: progress.update(task, completed=p.iteration, loss=p.loss)

        yield start


def prepare(seed: int, threads: int | None) -> None:
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # Dropped weights decay towards 0 and would crawl through the denormals.
