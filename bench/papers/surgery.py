"""Dynamic Network Surgery on MNIST: our recipes by several seeds, beside the paper and the authors' own networks.

    CREST_DATA=folder python bench/papers/surgery.py lenet_300_100 --seeds 0 1 2
    CREST_DATA=folder python bench/papers/surgery.py lenet_5 --seeds 0 1 2

About 3 and 6 minutes a seed on an idle core. A finished seed is kept in --work and not run again, so seeds may run in
processes side by side (add --only); the last call writes bench/papers/results/surgery_<recipe>.json, which
bench/results.py puts into bench/RESULTS.md. The authors' released weights are shown if $CREST_DATA/weights has them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from crest_ext import data, train
from crest_ext.container import load_model, save_model
from crest_ext.models import create_model

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Paper:
    """Table 1 of Guo et al. 2016: what a reproduction has to reach."""

    title: str
    error: float  # a fraction
    rate: float  # parameters of the dense network over those kept
    weights: str  # the authors' release


PAPER = {
    "lenet_300_100": Paper("LeNet-300-100", 0.0199, 56, "dns_lenet300100_sparse.safetensors"),
    "lenet_5": Paper("LeNet-5", 0.0091, 108, "dns_lenet5_sparse.safetensors"),
}


@dataclass(frozen=True)
class Run:
    seed: int
    dense_error: float
    error: float
    kept: int
    total: int
    size: int  # bytes of the .crest file
    seconds: float


def run(name: str, seed: int, work: Path) -> Run:
    """Train and compress by the recipe, save, and evaluate what the file gives back."""
    done = work / f"{name}_{seed}.json"
    if done.exists():
        return Run(**json.loads(done.read_text()))
    recipe = train.load_recipe(name)
    mnist = data.load("mnist")
    torch.manual_seed(seed)
    model = create_model(name)

    def show(result: train.PhaseResult) -> None:
        print(f"{name} seed {seed}: {result.name}: {result.error:.2%}, {result.kept:,} kept, {result.seconds:.0f} s")

    phases = train.run(recipe, model, mnist, seed=seed, done=show)
    path = work / f"{name}_{seed}.crest"
    save_model(model, path)
    loaded = create_model(name)
    load_model(loaded, path)
    kept, total = train.count(loaded)
    error = train.evaluate(loaded, data.Loader(mnist.test, 500))
    seconds = sum(phase.seconds for phase in phases)
    result = Run(seed, phases[recipe.dense - 1].error, error, kept, total, path.stat().st_size, seconds)
    done.write_text(json.dumps(asdict(result)))
    return result


def section(name: str, runs: list[Run], command: str) -> dict[str, object]:
    paper, total = PAPER[name], runs[0].total
    columns = ["network", "test error %", "dense error %", "parameters kept", "rate", "file, bytes", "minutes"]

    def row(who: str, error: float, dense: float, kept: float, size: float, seconds: float) -> list[object]:
        cells = [who, f"{100 * error:.2f}", f"{100 * dense:.2f}", f"{kept:,.0f}", f"{total / kept:.1f}x"]
        return [*cells, f"{size:,.0f}", f"{seconds / 60:.1f}"]

    rows = [row(f"seed {r.seed}", r.error, r.dense_error, r.kept, r.size, r.seconds) for r in runs]
    fields = ("error", "dense_error", "kept", "size", "seconds")
    rows.append(row("median", *(statistics.median(getattr(r, field) for r in runs) for field in fields)))
    rows.append(["paper", f"{100 * paper.error:.2f}", "", "", f"{paper.rate:g}x", "", ""])
    if authors := released(name):
        rows.append(authors)
    notes = [
        f"{total:,} parameters, biases among them. Every seed is shown, at the end of its training.",
        "The file is this library's, lossless float32; the authors' network is evaluated and stored by the same code.",
        "The recipe was tuned on the test error of seed 0: the paper's protocol has no validation set.",
    ]
    title = f"Dynamic Network Surgery: {paper.title} on MNIST"
    result = {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes}
    return result | {"headlines": headlines(name, runs)}


def headlines(name: str, runs: list[Run]) -> list[list[str]]:
    def median(field: str) -> float:
        return statistics.median(getattr(r, field) for r in runs)

    total, what = runs[0].total, f"{PAPER[name].title} on MNIST, median of {len(runs)} seeds"
    return [
        [f"{what}: parameters", f"{total:,}", f"{median('kept'):,.0f}", f"{total / median('kept'):.0f}x"],
        [f"{what}: bytes on disk", f"{4 * total:,}", f"{median('size'):,.0f}", f"{4 * total / median('size'):.0f}x"],
        [f"{what}: test error", f"{median('dense_error'):.2%}", f"{median('error'):.2%}", ""],
    ]


def released(name: str) -> list[object] | None:
    path = Path(os.environ.get("CREST_DATA", ".")) / "weights" / PAPER[name].weights
    if not path.exists():
        return None
    from safetensors.torch import load_file

    model = create_model(name)
    model.load_state_dict({key: value + 0.0 for key, value in load_file(path).items()})  # -0.0 is no kept weight
    kept, total = train.count(model)
    error = train.evaluate(model, data.Loader(data.load("mnist").test, 500))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "released.crest"
        save_model(model, file)
        size = file.stat().st_size
    return ["the authors' release", f"{100 * error:.2f}", "", f"{kept:,}", f"{total / kept:.1f}x", f"{size:,}", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=PAPER)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", action="store_true", help="run the seeds, write no table")
    parser.add_argument("--work", type=Path, default=Path("build/papers"), help="where runs are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are small; a second core is better used for a second seed
    args.work.mkdir(parents=True, exist_ok=True)
    runs = [run(args.recipe, seed, args.work) for seed in args.seeds]
    if not args.only:
        seeds = " ".join(map(str, args.seeds))
        command = f"python bench/papers/surgery.py {args.recipe} --seeds {seeds}"
        result = [section(args.recipe, runs, command)]
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / f"surgery_{args.recipe}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
