"""What the commands share: options, errors, progress, and the user's own networks."""

from __future__ import annotations

import ast
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

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
    str | None,
    typer.Option(
        "--model",
        help='A name, also with arguments as in "mobilenet_v1(width_mult=0.5)", or package.module:function that '
        "returns an nn.Module.",
    ),
]
Rows = Annotated[int, typer.Option(min=1, help="Samples in a batch.")]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data", help="Folder of the data set, or package.module:function that returns (train, test) loaders."
    ),
]

Shape = Annotated[
    str | None,
    typer.Option("--input", help="Sizes of a sample as in 3x224x224, without --data. Default: the model's own."),
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
    if "(" in name or ":" not in name:
        return _created(name)
    model = imported(name, "--model")
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model: {name} must return an nn.Module, got {type(model).__name__}")
    return model


def _created(name: str) -> nn.Module:
    """create_model of `name` or `name(argument=value, ...)`, which runs no code but the network's own."""
    if "(" not in name:
        return create_model(name)
    try:
        call = ast.parse(name.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        arguments = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
        if "" in arguments:  # **
            raise ValueError
    except (SyntaxError, ValueError):
        raise ValueError(f"--model: must be as in mobilenet_v1(width_mult=0.5, small=True), got {name}") from None
    try:
        return create_model(call.func.id, **arguments)
    except TypeError as error:  # an argument it does not have, or one of another type
        raise ValueError(f"--model: {error}") from None


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


def first_samples(batches: Iterable[tuple[Tensor, Tensor]], rows: int) -> Tensor:
    """As many samples, or all there are."""
    parts, count = [], 0
    for x, _ in batches:
        parts.append(x)
        count += len(x)
        if count >= rows:
            break
    return torch.cat(parts)[:rows]


def make_batch(network: nn.Module, data: str | None, otherwise: str | None, shape: str | None, rows: int) -> Tensor:
    """Test samples of the user's data or the file's; of a model without, numbers in [0, 1) of its dtype."""
    if data is not None and shape is not None:
        raise ValueError(f"--input: must be left out with --data, got {shape}")
    if data is not None or (otherwise is not None and shape is None):
        return first_samples(train.loaders(make_data(data, otherwise))[1], rows)
    sizes = getattr(network, "input_shape", None)
    if shape is not None:
        sizes = [int(size) if size.isdecimal() else 0 for size in shape.split("x")]
        if not all(sizes):
            raise ValueError(f"--input: must be sizes as in 3x224x224, got {shape}")
    if sizes is None:
        raise ValueError("--input: must be given, or --data: the model has no input_shape")
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    return torch.rand(rows, *sizes, dtype=dtype)


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
