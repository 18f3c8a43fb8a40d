"""Whole files of MNIST's LeNets at a stated test error: surgery and quantisation by several seeds, beside others'.

    CREST_DATA=folder python bench/papers/size.py lenet_300_100_small --seeds 0 1 2
    CREST_DATA=folder python bench/papers/size.py lenet_5_small --seeds 0 1 2
    CREST_DATA=folder python bench/papers/size.py lenet_5_accurate --seeds 0 1 2

Minutes a seed on an idle core. The network after each phase, and a finished seed, are kept in --work and not run
again. Each call writes bench/papers/results/size_<recipe>.json, which bench/results.py puts into bench/RESULTS.md.

    CREST_DATA=folder python bench/papers/size.py lenet_5_small --choose lam=0.1 lam=0.13,lr=0.03

How a recipe's numbers were chosen: trains on all but the last 10,000 training images and evaluates on these, with the
recipe's settings but for those given: lam (the price of a bit) and lr of the quantisation, and cut (a factor of all
thresholds of the surgery). Writes size_<recipe>_choice.json.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from crest_ext import data, train
from crest_ext.container import load_model, save, save_model
from crest_ext.models import create_model

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Goal:
    """What a file has to reach, and what has been published: method, bytes, error in %."""

    title: str
    size: int
    error: float  # a fraction
    published: tuple[tuple[str, int, float], ...]
    data: str = "MNIST"


LENET_5 = (
    ("Deep Compression", 44_000, 0.74),
    ("DeepCABAC", 12_400, 0.84),
    ("Weightless", 4_520, 1.0),
    ("MIRACLE", 3_030, 0.69),
    ("entropy-penalised reparameterisation", 2_840, 1.0),
    ("MIRACLE, smaller", 1_520, 0.96),
)
HELD_OUT = 10_000
GOALS = {
    "lenet_300_100_small": Goal(
        "LeNet-300-100",
        8_500,
        0.019,
        (
            ("Deep Compression", 27_000, 1.58),
            ("DeepCABAC", 19_400, 1.92),
            ("sparse variational dropout", 9_380, 1.8),
            ("entropy-penalised reparameterisation", 8_560, 1.9),
        ),
    ),
    "lenet_5_small": Goal("LeNet-5", 2_800, 0.010, LENET_5),
    "lenet_5_accurate": Goal("LeNet-5, low error", 12_000, 0.008, LENET_5),
}


@dataclass(frozen=True)
class Run:
    seed: int
    before: float  # error before quantisation
    error: float
    kept: int
    total: int
    size: int  # bytes of the .crest file
    seconds: float  # of quantisation


def run(name: str, recipe: train.Recipe, images: data.Dataset, seed: int, work: Path) -> Run:
    """Train, prune and quantise by the recipe, save, and evaluate what the file gives back."""
    last = len(recipe.phases) - 1
    done = work / f"{name}_{_key(recipe.phases, seed, len(images.train.x))}.json"
    if done.exists():
        return Run(**json.loads(done.read_text()))
    model = trained(recipe, last, images, seed, work)
    test = data.Loader(images.test, 500)
    before = train.evaluate(model, test)
    (phase,) = train.run(recipe, model, images, seed=seed, first=last)
    path = done.with_suffix(".crest")
    save_model(model, path)
    loaded = create_model(recipe.model or "")
    load_model(loaded, path)
    error = train.evaluate(loaded, test)
    result = Run(seed, before, error, *train.count(loaded), path.stat().st_size, phase.seconds)
    print(f"{name}: {result}", flush=True)
    done.write_text(json.dumps(asdict(result)))
    return result


def trained(recipe: train.Recipe, stop: int, images: data.Dataset, seed: int, work: Path) -> nn.Module:
    """The network after the phases before `stop`, each of which is kept in a file."""
    torch.manual_seed(seed)
    model = create_model(recipe.model or "")
    if stop == 0:
        return model
    path = work / f"{recipe.model}_{_key(recipe.phases[:stop], seed, len(images.train.x))}.crest"
    if not path.exists():
        before = trained(recipe, stop - 1, images, seed, work)
        train.run(recipe, before, images, seed=seed, first=stop - 1, last=stop)
        save_model(before, path)
    train.restore(model, path)
    return model


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def with_setting(recipe: train.Recipe, setting: str) -> train.Recipe:
    """Another price of a bit and rate of the quantisation, and thresholds of the surgery times `cut`."""
    given = {key: float(value) for key, value in (pair.split("=") for pair in setting.split(","))}
    lam, lr, cut = (given.pop(key, None) for key in ("lam", "lr", "cut"))
    assert not given, f"lam, lr and cut can be set, got {', '.join(given)}"
    phases = []
    for phase in recipe.phases:
        if phase.surgery and cut:
            assert isinstance(phase.surgery.c_rate, Mapping)
            c_rate = {layer: cut * c for layer, c in phase.surgery.c_rate.items()}
            phase = replace(phase, surgery=replace(phase.surgery, c_rate=c_rate))
        if phase.quantize and lam:
            phase = replace(phase, quantize=replace(phase.quantize, lam=lam))
        if phase.quantize and lr:
            phase = replace(phase, lr=train.Cosine(lr))
        phases.append(phase)
    return replace(recipe, phases=tuple(phases))


def choice(name: str, settings: list[str], mnist: data.Dataset, work: Path, command: str) -> dict[str, object]:
    """What each setting gives on images that it was not trained on and that are no test images."""
    x, y = mnist.train
    held_out = data.Dataset(data.Split(x[:-HELD_OUT], y[:-HELD_OUT]), data.Split(x[-HELD_OUT:], y[-HELD_OUT:]))
    recipe, rows = train.load_recipe(name), []
    for setting in settings:
        r = run(name, with_setting(recipe, setting), held_out, 0, work)
        rows.append([setting.replace(",", ", "), f"{r.error:.2%}", f"{r.before:.2%}", f"{r.kept:,}", f"{r.size:,}"])
    return {
        "title": f"Choosing how {GOALS[name].title} is made small, on held-out training images",
        "command": command,
        "columns": [
            "setting",
            "error",
            "before quantisation",
            "parameters kept",
            "bytes",
        ],
        "rows": rows,
        "notes": [f"Seed 0, trained on all but the last {HELD_OUT:,} training images; the error is on these."],
    }


def dense_rows(recipe: train.Recipe, images: data.Dataset, seed: int, work: Path) -> list[list[object]]:
    """The network before it is compressed, as files of others that keep every bit, beside ours that does."""
    model = trained(recipe, recipe.dense, images, seed, work)
    error, total = train.evaluate(model, data.Loader(images.test, 500)), sum(p.numel() for p in model.parameters())
    plain = safetensors.torch.save(model.state_dict())
    sizes = {"float32": len(plain), "gzip -9": len(gzip.compress(plain, 9))}
    if find_spec("zstandard"):
        sizes["zstd -19"] = len(import_module("zstandard").ZstdCompressor(19).compress(plain))
    sizes["crest, lossless"] = len(save(model.state_dict()))
    return [
        [f"dense, {who}", f"{error:.2%}"[:-1], "", f"{total:,}", f"{size:,}", f"{4 * total / size:.1f}x smaller"]
        for who, size in sizes.items()
    ]


def _seeds(runs: list[Run]) -> str:
    return f"median of {len(runs)} seeds" if len(runs) > 1 else "one seed"


def section(goal: Goal, runs: list[Run], command: str, chosen: str) -> dict[str, Any]:
    """What bench/results.py shows; `chosen` says what settings were chosen on."""
    total = runs[0].total
    columns = ["network", "test error %", "before quantisation %", "parameters kept", "bytes", "of float32"]

    def row(who: str, error: float, before: float, kept: float, size: float) -> list[object]:
        cells = [who, f"{100 * error:.2f}", f"{100 * before:.2f}", f"{kept:,.0f}"]
        return [*cells, f"{size:,.0f}", f"{4 * total / size:.3g}x smaller"]

    def median(field: str) -> float:
        return statistics.median(getattr(r, field) for r in runs)

    rows = [row(f"seed {r.seed}", r.error, r.before, r.kept, r.size) for r in runs]
    if len(runs) > 1:
        rows.append(row("median", *(median(field) for field in ("error", "before", "kept", "size"))))
    for who, size, error in goal.published:
        rows.append([who, f"{error:.2f}", "", "", f"{size:,}", f"{4 * total / size:.3g}x smaller"])
    of = "the median" if len(runs) > 1 else "the one seed run"
    reached = median("error") <= goal.error and median("size") <= goal.size
    notes = [
        "Ours are whole files, with names, shapes, checksums and codebooks; published bytes are their authors'.",
        f"Goal: at most {goal.size:,} bytes at {goal.error:.1%}, {'reached' if reached else 'missed'} by {of}.",
        f"Settings were chosen on {chosen}.",
    ]
    title = f"Bytes of a whole file: {goal.title} on {goal.data}"
    headline = f"{goal.title} on {goal.data}, {_seeds(runs)}: bytes of the file at {median('error'):.2%}"
    headlines = [[headline, f"{4 * total:,}", f"{median('size'):,.0f}", f"{4 * total / median('size'):.0f}x"]]
    result = {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes}
    return result | {"headlines": headlines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=GOALS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--choose", nargs="+", metavar="NAME=NUMBER[,...]", help="compare settings on held-out images instead"
    )
    parser.add_argument("--work", type=Path, default=Path("build/papers"), help="where runs are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    mnist, command = data.load("mnist"), f"python bench/papers/size.py {args.recipe}"
    if args.choose:
        command += f" --choose {' '.join(args.choose)}"
        result, path = choice(args.recipe, args.choose, mnist, args.work, command), f"size_{args.recipe}_choice.json"
    else:
        command += f" --seeds {' '.join(map(str, args.seeds))}"
        recipe = train.load_recipe(args.recipe)
        runs = [run(args.recipe, recipe, mnist, seed, args.work) for seed in args.seeds]
        chosen = "the test error of these seeds: the published protocols have no validation set"
        if (RESULTS / f"size_{args.recipe}_choice.json").exists():
            chosen = "held-out training images: see the table of these"
        result, path = section(GOALS[args.recipe], runs, command, chosen), f"size_{args.recipe}.json"
        result["rows"] = dense_rows(recipe, mnist, args.seeds[0], args.work) + result["rows"]
        if any(phase.shift for phase in recipe.phases):
            result["notes"].append("Ours are trained on images shifted at random; the published ones may not be.")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / path).write_text(json.dumps([result], indent=1) + "\n")


if __name__ == "__main__":
    main()
