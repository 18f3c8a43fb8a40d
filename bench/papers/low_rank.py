"""Compression-aware training of ResNet-20 on CIFAR-10: what it leaves after factorisation, beside plain training.

    CREST_DATA=folder python bench/papers/low_rank.py

The network starts from $CREST_DATA/weights/resnet20.safetensors (or --weights) and trains on for a few epochs, once
with each tau, 0 being none; all else is equal. Then `factorize` keeps the same share of energy of each, and what it
makes is trained for a few epochs more. Runs are kept in --work and not made again; the last step writes
bench/papers/results/low_rank.json, which bench/results.py puts into bench/RESULTS.md.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cifar10
import torch
from cifar10 import BATCH, EPOCH, Crops, InBfloat16, standardized
from safetensors.torch import load_file

from crest_ext import LowRank, LowRankConfig, data, factorize, recalibrate, train
from crest_ext.models import create_model, multiply_adds

HERE = Path(__file__).parent
LR, MOMENTUM, WEIGHT_DECAY, INTERVAL = 0.02, 0.9, 1e-4, 10
RECALIBRATED = 2000  # training images for the statistics of BatchNorm
ENERGIES = (0.99, 0.95)
TUNING_RATE, TUNING_DECAY = 0.05, 5e-4


@dataclass(frozen=True)
class Run:
    """A training and what factorisation makes of it: energy, parameters, multiply-adds, accuracy, and that tuned."""

    tau: float
    accuracy: float  # before
    parameters: int
    factorized: list[list[float]]
    seconds: float


def run(tau: float, epochs: int, tuning: int, images: data.Dataset, weights: Path, work: Path) -> Run:
    done = work / f"low_rank_{epochs}_{tuning}_{tau:g}.json"
    if done.exists():
        return Run(**json.loads(done.read_text()))

    def show(now: train.Progress) -> None:
        print(f"tau {tau:g}: {now.iteration} of {now.iterations}, loss {now.loss:.3f}", flush=True)

    start, test = time.perf_counter(), cifar10.test_images(images)
    torch.manual_seed(0)
    model = create_model("resnet20").to(memory_format=torch.channels_last)
    model.load_state_dict(load_file(weights))
    method = LowRank(model, LowRankConfig(tau, interval=INTERVAL)) if tau else None
    train.fit(
        InBfloat16(model),
        Crops(images.train, 0),
        epochs * EPOCH,
        train.Cosine(LR),
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        low_rank=method,
        progress=show,
    )
    if method:
        print(method.finish(), flush=True)
    some, rows = standardized(images.train.x[:RECALIBRATED]), []
    for energy in ENERGIES:
        small = recalibrate(factorize(model, energy=energy), some.split(500))
        work_of = sum(multiply_adds(small, some[:1]).values())
        rows.append([energy, train.count(small)[1], work_of, 1 - train.evaluate(small, test)])
        unfinished = work / f"low_rank_{epochs}_{tuning}_{tau:g}_{energy:g}.pt"
        cifar10.train_on(small, images.train, tuning, TUNING_RATE, TUNING_DECAY, 0, unfinished)
        rows[-1].append(1 - train.evaluate(small, test))
        print(f"tau {tau:g}: {rows[-1]}", flush=True)
    accuracy, parameters = 1 - train.evaluate(model, test), train.count(model)[1]
    result = Run(tau, accuracy, parameters, rows, time.perf_counter() - start)
    done.write_text(json.dumps(asdict(result)))
    return result


def section(runs: list[Run], epochs: int, tuning: int, command: str) -> dict[str, Any]:
    columns = [
        "tau",
        "energy",
        "parameters",
        "multiply-adds, M",
        "test accuracy %",
        f"after {tuning} epochs more",
        "parameters over tau 0's",
        "points",
    ]
    rows: list[list[object]] = []
    plain = next(run for run in runs if not run.tau)
    for run in runs:
        rows.append([f"{run.tau:g}", "dense", f"{run.parameters:,}", "", f"{100 * run.accuracy:.2f}", *[""] * 3])
        for row, beside in zip(run.factorized, plain.factorized, strict=True):
            energy, parameters, work, found, tuned = row
            more = [f"{100 * parameters / beside[1]:.1f} %", f"{100 * (tuned - beside[4]):+.2f}"]
            cells = [f"{parameters:,.0f}", f"{work / 1e6:.1f}", f"{100 * found:.2f}", f"{100 * tuned:.2f}"]
            rows.append([f"{run.tau:g}", f"{energy:g}", *cells, *(more if run.tau else ["", ""])])
    trained = f"{epochs} epochs from trained weights, batches of {BATCH}, lr {LR} to 0 along a cosine"
    factorized = "After factorisation BatchNorm's statistics are taken anew"
    notes = [
        f"{trained}, momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, bfloat16 products; one seed.",
        f"A proximal step every {INTERVAL} steps. {sum(run.seconds for run in runs) / 60:.0f} minutes in all.",
        f"Energy is of the squared singular values. {factorized} on {RECALIBRATED:,} training images;",
        f"the epochs more are with lr {TUNING_RATE} to 0 and weight decay {TUNING_DECAY}, and no tau.",
        "Points: of accuracy after them, over tau 0 at the same energy.",
        "tau was chosen by the parameters that are left. The paper has no ResNet-20.",
    ]
    title = "Compression-aware training: ResNet-20 on CIFAR-10"
    return {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes, "headlines": []}


def main() -> None:
    parser = cifar10.parser(__doc__)
    parser.add_argument("--taus", type=float, nargs="+", default=[0.0, 0.03])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--tuning", type=int, default=6, help="epochs after factorisation")
    args = parser.parse_args()
    if 0.0 not in args.taus:
        parser.error("--taus must have 0, which the others are compared with")
    images = cifar10.start(args)
    runs = [run(tau, args.epochs, args.tuning, images, args.weights, args.work) for tau in args.taus]
    command = f"python bench/papers/low_rank.py --taus {' '.join(f'{t:g}' for t in args.taus)} --epochs {args.epochs}"
    command += f" --tuning {args.tuning}"
    (HERE / "results").mkdir(exist_ok=True)
    path = HERE / "results" / "low_rank.json"
    path.write_text(json.dumps([section(runs, args.epochs, args.tuning, command)], indent=1) + "\n")


if __name__ == "__main__":
    main()
