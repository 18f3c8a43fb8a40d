"""The commands on recipes and files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from crest_ext import __version__, report, train
from crest_ext.cli.common import (
    DataName,
    File,
    Json,
    ModelName,
    Out,
    RecipeName,
    Rows,
    Seed,
    Shape,
    Threads,
    bars,
    closed_name,
    make_batch,
    make_data,
    make_model,
    prepare,
    user_errors,
)
from crest_ext.cli.convert import convert
from crest_ext.cli.demo import demo
from crest_ext.cli.doctor import doctor
from crest_ext.cli.inspect import inspect
from crest_ext.cli.search import search
from crest_ext.container import load_model, safe_open, save_model
from crest_ext.data import Dataset
from crest_ext.rewrite import pack

app = typer.Typer(
    help="Train a network smaller, store it in fewer bytes, run it faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(user_errors(convert))
app.command()(user_errors(demo))
app.command()(user_errors(doctor))
app.command()(user_errors(inspect))
app.command()(user_errors(search))


def _run(
    recipe: train.Recipe,
    first: int,
    last: int,
    file: Path | None,
    model: str | None,
    data: str | None,
    seed: int,
    threads: int | None,
    out: Path,
) -> report.TrainReport:
    if not out.parent.is_dir():
        raise ValueError(f"--out: folder must exist, got {out.parent}")
    prepare(seed, threads)
    network, samples = make_model(model, recipe.model), make_data(data, recipe.data)
    if file:
        train.restore(network, file)
    with bars() as start:
        results = train.run(recipe, network, samples, seed=seed, first=first, last=last, start=start)
    metadata = {"crest_ext": __version__, "seed": str(seed), "error": f"{results[-1].error:.6f}"}
    if name := closed_name(model, recipe.model):
        metadata["model"] = name
    if isinstance(samples, Dataset):
        metadata["data"] = str(recipe.data)
    save_model(network, out, metadata)
    return report.TrainReport(str(out), out.stat().st_size, tuple(results))


@app.command(name="train", help=f"Train the dense network of a recipe. Recipes: {', '.join(train.recipe_names())}.")
@user_errors
def train_(
    out: Out,
    recipe: RecipeName,
    model: ModelName = None,
    data: DataName = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    phases = train.load_recipe(recipe)
    if not phases.dense:
        raise ValueError(f"--recipe: {recipe} must have a phase before its first surgery, quantize or low_rank")
    report.show(_run(phases, 0, phases.dense, None, model, data, seed, threads, out), as_json)


@app.command()
@user_errors
def compress(
    out: Out,
    recipe: RecipeName,
    file: Annotated[
        Path | None, typer.Argument(help="A trained .crest file. Without it the recipe starts from nothing.")
    ] = None,
    model: ModelName = None,
    data: DataName = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run what a recipe does to a trained file (surgery, quantisation, low rank), or all of it from nothing."""
    phases = train.load_recipe(recipe)
    first = phases.dense if file else 0
    if phases.dense == len(phases.phases):
        raise ValueError(f"--recipe: {recipe} must have a surgery, quantize or low_rank")
    report.show(_run(phases, first, len(phases.phases), file, model, data, seed, threads, out), as_json)


def _load(file: Path, model: str | None) -> tuple[nn.Module, str | None]:
    """A saved network, and the name of the data set that it was trained on, where the file has it."""
    with safe_open(file) as opened:
        metadata = opened.metadata()
    network = make_model(model, closed_name(None, metadata.get("model")))
    load_model(network, file)
    return network, metadata.get("data")


@app.command(name="eval")
@user_errors
def eval_(file: File, model: ModelName = None, data: DataName = None, as_json: Json = False) -> None:
    """The test error of a saved network."""
    network, trained_on = _load(file, model)
    samples = make_data(data, trained_on)
    kept, total = train.count(network)
    error = train.evaluate(network, train.loaders(samples)[1])
    report.show(report.EvalReport(str(file), error, kept, total, file.stat().st_size), as_json)


@app.command()
@user_errors
def bench(
    file: Annotated[Path | None, typer.Argument(help="A .crest file; or --model.")] = None,
    model: ModelName = None,
    data: DataName = None,
    shape: Shape = None,
    rows: Rows = 64,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Which layers of a saved network, or of any by --model, are faster on sparse kernels here, and by how much."""
    if file is None and model is None:
        raise ValueError("bench: must be given a file or --model, got neither")
    prepare(0, threads)
    network, trained_on = _load(file, model) if file else (make_model(model, None), None)
    batch = make_batch(network, data, trained_on, shape, rows)
    _, found = pack(network, batch, explain=True)
    measured = report.BenchReport(
        str(file or model), len(batch), torch.get_num_threads(), found.layers, found.dense, found.packed, found.reason
    )
    report.show(measured, as_json)
