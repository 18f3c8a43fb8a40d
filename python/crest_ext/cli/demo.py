"""`crest demo`: the whole library on a network small enough to watch."""

from __future__ import annotations

import copy
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from crest_ext import report, train
from crest_ext.cli.common import Json, Seed, bars, make_data, make_model, prepare
from crest_ext.container import load_model, save_model
from crest_ext.data import Dataset, Loader
from crest_ext.rewrite import materialize, pack, shrink


def demo(seed: Seed = 0, as_json: Json = False) -> None:
    """Train a small LeNet on handwritten digits, prune it, save it, load it back and measure it."""
    prepare(seed, threads=1)  # The network is too small to share.
    begin = time.perf_counter()
    recipe = train.load_recipe("demo")
    model, data = make_model(None, recipe.model), make_data(None, recipe.data)
    assert isinstance(data, Dataset)  # of the recipe
    with bars() as start:
        train.run(recipe, model, data, seed=seed, last=recipe.dense, start=start)
        dense = copy.deepcopy(model)
        train.run(recipe, model, data, seed=seed, first=recipe.dense, start=start)
    networks = [dense.eval(), model.eval()]
    test = Loader(data.test, 500)
    with tempfile.TemporaryDirectory() as folder:
        sides = [_measure(network, recipe, Path(folder), test) for network in networks]
    latencies = [_latencies(networks[0], networks[1], data.test.x[:rows]) for rows in (1, report.BATCH)]
    before, after = (
        report.Side(*side, *times) for side, times in zip(sides, zip(*latencies, strict=True), strict=True)
    )
    seconds = time.perf_counter() - begin
    report.show(report.DemoReport(before, after, seconds, torch.get_num_threads()), as_json)


def _measure(
    model: nn.Module, recipe: train.Recipe, folder: Path, test: Loader
) -> tuple[int, int, int, int, int, float]:
    """Parameters, bytes in four formats, and the error of what the .crest file gives back."""
    paths = [folder / name for name in ("w.pt", "w.safetensors", "w.safetensors.gz", "w.crest")]
    state = materialize(model).state_dict()
    torch.save(state, paths[0])
    safetensors.torch.save_file(state, paths[1])
    paths[2].write_bytes(gzip.compress(paths[1].read_bytes(), mtime=0))
    save_model(model, paths[3])
    loaded = make_model(None, recipe.model)
    load_model(loaded, paths[3])
    sizes = [path.stat().st_size for path in paths]
    return train.count(loaded)[0], sizes[0], sizes[1], sizes[2], sizes[3], train.evaluate(loaded, test)


def _latencies(dense: nn.Module, pruned: nn.Module, x: Tensor) -> list[float]:
    """Of the dense network, and of the pruned one without its dead channels and on sparse kernels."""
    fast = pack(shrink(pruned, x), x)
    with torch.inference_mode():
        return interleaved([lambda: dense(x), lambda: fast(x)], 300)


def interleaved(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each call, all measured in turns so that a noisy moment hits them alike."""
    seconds: list[list[float]] = [[] for _ in calls]
    for round_ in range(rounds + rounds // 10):
        for call, taken in zip(calls, seconds, strict=True):
            begin = time.perf_counter()
            call()
            if round_ >= rounds // 10:  # The first ones warm up.
                taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in seconds]
