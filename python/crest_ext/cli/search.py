"""`crest search`: the best student of an ensemble within a budget of parameters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from crest_ext import data as datasets
from crest_ext import report, train
from crest_ext.cli.common import Json, Threads, imported, prepare
from crest_ext.methods import Ensemble

IMAGES = 40_000  # of CIFAR-10 for training, as in the paper; the others validate


def search(
    teachers: Annotated[str, typer.Option(help="package.module:function that returns networks on uint8 images.")],
    storage: Annotated[Path, typer.Option(help="SQLite file; another call goes on with it, or helps meanwhile.")],
    cache: Annotated[Path, typer.Option(help="Folder for augmented images and logits; written once.")],
    conv_layers: Annotated[int, typer.Option(min=0, max=4, help="Convolutions of the student.")] = 2,
    hidden_layers: Annotated[int, typer.Option(min=1, help="ReLU layers, without convolutions.")] = 1,
    params: Annotated[float, typer.Option(help="Budget of parameters.")] = 1e6,
    trials: Annotated[int, typer.Option(min=1, help="Students in all, those of earlier calls among them.")] = 20,
    passes: Annotated[int, typer.Option(min=1, help="Over the images; 160 in the paper.")] = 160,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    lr: Annotated[tuple[float, float], typer.Option(help="Bounds of the learning rate.")] = train.LR,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of CIFAR-10, or package.module:function that returns ((images, labels), (images, labels))."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the draws; processes that search side by side need different ones.")
    ] = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Search learning rate, momentum, scales and widths of a student in the paper's ranges. Data: CIFAR-10, or
    uint8 images (n, 3, 32, 32) and int64 labels to train and to validate."""
    prepare(seed, threads)
    training, validation = _splits(data)
    members = imported(teachers, "--teachers")
    if not isinstance(members, (list, tuple)) or not all(isinstance(m, nn.Module) for m in members):
        raise ValueError(f"--teachers: {teachers} must return a list of nn.Module, got {type(members).__name__}")
    logits = train.LogitCache(
        cache, *training, Ensemble(members), passes=passes, batch_size=batch_size, classes=int(training.y.max()) + 1
    )
    typer.echo(f"{len(logits)} batches and their logits: {logits.nbytes / 1e9:.2f} GB in {cache}", err=True)
    found = train.search(
        logits,
        validation,
        storage,
        conv_layers=conv_layers,
        hidden_layers=hidden_layers,
        params=params,
        trials=trials,
        lr=lr,
        seed=seed,
        done=lambda t: typer.echo(f"trial {t.number}: {'no width' if t.error is None else f'{t.error:.2%}'}", err=True),
    )
    report.show(report.SearchReport(str(storage), tuple(found)), as_json)


def _splits(data: str | None) -> datasets.Dataset:
    """Bytes to train and to validate."""
    if data and ":" in data and not Path(data).is_dir():
        made = imported(data, "--data")
        if not (isinstance(made, tuple) and len(made) == 2 and all(_is_split(split) for split in made)):
            raise ValueError(
                f"--data: {data} must return ((images, labels), (images, labels)), uint8 and int64, not empty"
            )
        return datasets.Dataset(*(datasets.Split(*split) for split in made))
    x, y = datasets.cifar10_bytes(Path(data or os.environ.get("CREST_DATA") or ".")).train
    return datasets.Dataset(datasets.Split(x[:IMAGES], y[:IMAGES]), datasets.Split(x[IMAGES:], y[IMAGES:]))


def _is_split(value: object) -> bool:
    if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(tensor, Tensor) for tensor in value)):
        return False
    return value[0].dtype == torch.uint8 and value[1].dtype == torch.int64 and value[1].numel() > 0
