"""Compression-aware training of ResNet-20 on CIFAR-10: what it leaves after factorisation, beside plain training.

    PYTHONPATH=bench CREST_DATA=folder python bench/papers/low_rank.py

The network starts from $CREST_DATA/weights/resnet20.safetensors (or --weights) and trains on for a few epochs, once
with each tau, 0 being none; all else is equal. Then `factorize` keeps the same share of energy of each, and what it
makes is trained for a few epochs more. All of it learns the outputs of the given network. tau is of the last stage,
which has three quarters of the parameters. A finished run is kept in --work and not made again, and one cut short goes
on at the end of its first part or of its last epoch. Writes results/low_rank.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cifar10
import torch
from cifar10 import BATCH, EPOCH, Crops, InBfloat16
from safetensors.torch import load_file
from taught import Taught, distance, taught_by
from torch import nn

from crest_ext import LowRank, LowRankConfig, data, factorize, recalibrate, train
from crest_ext.models import create_model, multiply_adds

LR, MOMENTUM, WEIGHT_DECAY, INTERVAL = 0.02, 0.9, 1e-4, 10
RECALIBRATED = 16  # batches for the statistics of BatchNorm
WHERE, ENERGY = "layer3*", 0.99
TUNING_RATE, TUNING_DECAY = 0.05, 5e-4


@dataclass(frozen=True)
class Run:
    """A training and what factorisation makes of it."""

    tau: float
    accuracy: float  # before
    whole: int  # parameters, before
    parameters: int
    work: int  # multiply-adds
    factorized: float  # accuracy, at once
    tuned: float  # and at last
    minutes: float  # of a processor


def run(tau: float, epochs: int, tuning: int, images: data.Dataset, weights: Path, work: Path) -> Run:
    done = work / f"low_rank_{epochs}_{tuning}_{tau:g}.json"
    if done.exists():
        return Run(**json.loads(done.read_text()))
    torch.manual_seed(0)
    given, model = (create_model("resnet20").to(memory_format=torch.channels_last) for _ in range(2))
    for network in (given, model):
        network.load_state_dict(load_file(weights))

    def show(now: train.Progress) -> None:
        left = train.count(factorize(model, energy=ENERGY))[1]
        print(f"tau {tau:g}: {now.iteration} of {now.iterations}, loss {now.loss:.3f}, {left:,} left", flush=True)

    def pressing() -> nn.Module:
        method = LowRank(model, LowRankConfig({WHERE: tau}, interval=INTERVAL)) if tau else None
        train.fit(
            InBfloat16(model),
            Taught(Crops(images.train, 0), given),
            epochs * EPOCH,
            train.Cosine(LR),
            loss=distance,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            low_rank=method,
            progress=show,
        )
        if method:
            print(method.finish(), flush=True)
        return model

    pressed, seconds = cifar10.pressed(done.with_suffix(".pressed"), pressing)
    model.load_state_dict(pressed)
    test, crops = cifar10.test_images(images), [x for x, _ in islice(Crops(images.train, 1), RECALIBRATED)]
    small = recalibrate(factorize(model, energy=ENERGY), crops)
    found = 1 - train.evaluate(small, test)
    print(f"tau {tau:g}: {train.count(small)[1]:,} parameters, accuracy {found:.2%}", flush=True)
    how = tuning, TUNING_RATE, TUNING_DECAY, 0, done.with_suffix(".pt")
    seconds += cifar10.train_on(small, images.train, *how, **taught_by(given))
    result = Run(
        tau,
        1 - train.evaluate(model, test),
        train.count(model)[1],
        train.count(small)[1],
        sum(multiply_adds(small, crops[0][:1]).values()),
        found,
        1 - train.evaluate(small, test),
        seconds / 60,
    )
    print(result, flush=True)
    done.write_text(json.dumps(asdict(result)))
    return result


def section(runs: list[Run], epochs: int, tuning: int, command: str) -> dict[str, Any]:
    columns = [
        "tau",
        "test accuracy %, dense",
        "parameters, factorized",
        "multiply-adds, M",
        "test accuracy %, at once",
        f"after {tuning} epochs more",
        "parameters over tau 0's",
        "points",
        "minutes",
    ]
    plain, rows = next(run for run in runs if not run.tau), []
    for r in runs:
        beside = [f"{100 * r.parameters / plain.parameters:.1f} %", f"{100 * (r.tuned - plain.tuned):+.2f}"]
        cells = [f"{100 * r.accuracy:.2f}", f"{r.parameters:,}", f"{r.work / 1e6:.1f}", f"{100 * r.factorized:.2f}"]
        cells += [f"{100 * r.tuned:.2f}", *(beside if r.tau else ["", ""]), f"{r.minutes:.0f}"]
        rows.append([f"{r.tau:g}", *cells])
    trained = f"{epochs} epochs from trained weights of {runs[0].whole:,} parameters, batches of {BATCH}, lr {LR} to 0"
    notes = [
        f"{trained} along a cosine, momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, {cifar10.PRECISION}; one seed.",
        f"By the given network's outputs for the same crops, not by labels. tau is of {WHERE}, a proximal step every",
        f"{INTERVAL} steps; factorised at {ENERGY:g} of the energy of the squared singular values. After that",
        f"BatchNorm's statistics are taken anew on {RECALIBRATED} batches of crops; the epochs more are with lr",
        f"{TUNING_RATE} to 0 and weight decay {TUNING_DECAY}, and no tau. Points: of accuracy after them, over tau 0.",
        "tau was chosen by the parameters that are left. The paper has no ResNet-20.",
    ]
    title = "Compression-aware training: ResNet-20 on CIFAR-10"
    return {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes, "headlines": []}


def main() -> None:
    parser = cifar10.parser(__doc__)
    parser.add_argument("--taus", type=float, nargs="+", default=[0.0, 0.025])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--tuning", type=int, default=22, help="epochs after factorisation")
    args = parser.parse_args()
    if 0.0 not in args.taus:
        parser.error("--taus must have 0, which the others are compared with")
    images = cifar10.start(args)
    runs = [run(tau, args.epochs, args.tuning, images, args.weights, args.work) for tau in args.taus]
    command = f"PYTHONPATH=bench python bench/papers/low_rank.py --taus {' '.join(f'{t:g}' for t in args.taus)}"
    command += f" --epochs {args.epochs} --tuning {args.tuning}"
    cifar10.RESULTS.mkdir(exist_ok=True)
    path = cifar10.RESULTS / "low_rank.json"
    path.write_text(json.dumps([section(runs, args.epochs, args.tuning, command)], indent=1) + "\n")


if __name__ == "__main__":
    main()
