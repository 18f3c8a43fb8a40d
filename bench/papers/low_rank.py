"""Compression-aware training of ResNet-20 on CIFAR-10: what it leaves after factorisation, beside plain training.

    CREST_DATA=folder python bench/papers/low_rank.py

The network starts from the weights in $CREST_DATA/weights (or --weights) and trains on for a few epochs, once with each
tau, 0 being none; all else is equal. Then `factorize` keeps the same share of energy of each. Runs are kept in --work
and not made again; the last step writes bench/papers/results/low_rank.json, which bench/results.py puts into
bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import LowRank, LowRankConfig, data, factorize, recalibrate, train
from crest_ext.models import create_model, multiply_adds

HERE = Path(__file__).parent
BATCH, LR, MOMENTUM, WEIGHT_DECAY, INTERVAL = 128, 0.02, 0.9, 1e-4, 10
RECALIBRATED = 2000  # training images for the statistics of BatchNorm
ENERGIES = (0.99, 0.95, 0.9)


@dataclass(frozen=True)
class Run:
    """A training and what factorisation makes of it: energy, parameters, multiply-adds, accuracy, by energy."""

    tau: float
    accuracy: float  # before
    parameters: int
    factorized: list[list[float]]
    seconds: float


def forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x.contiguous(memory_format=torch.channels_last)).float()


@torch.no_grad()
def accuracy(model: nn.Module, split: data.Split) -> float:
    model.eval()
    return sum(int((forward(model, x).argmax(1) == y).sum()) for x, y in data.Loader(split, 500)) / len(split.x)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror images of a half, and crops of 32x32 of the images with four zeros around."""
    x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)
    padded = F.pad(x, (4, 4, 4, 4))
    places = torch.randint(9, (len(x), 2), generator=generator)
    return torch.stack([p[:, i : i + 32, j : j + 32] for p, (i, j) in zip(padded, places.tolist(), strict=True)])


def run(tau: float, epochs: int, cifar10: data.Dataset, weights: Path, work: Path) -> Run:
    done = work / f"low_rank_{epochs}_{tau:g}.json"
    if done.exists():
        return Run(**json.loads(done.read_text()))
    start = time.perf_counter()
    torch.manual_seed(0)
    model = create_model("resnet20").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.load_state_dict(load_file(weights / "resnet20.safetensors"))
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    method = LowRank(model, LowRankConfig(tau, interval=INTERVAL), optimizer) if tau else None
    generator = torch.Generator().manual_seed(0)
    batches = data.Loader(cifar10.train, BATCH, shuffle=True, seed=0)
    schedule, iterations = train.Cosine(LR), epochs * len(batches)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for i, (x, y) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = schedule.at(epoch * len(batches) + i, iterations)
            optimizer.zero_grad()
            loss = F.cross_entropy(forward(model, augmented(x, generator)), y)
            loss.backward()
            optimizer.step()
            if method:
                method.step()
            total += loss.item()
        print(f"tau {tau:g}: epoch {epoch + 1}, loss {total / len(batches):.3f}", flush=True)
    if method:
        print(method.finish(), flush=True)
    rows = []
    for energy in ENERGIES:
        small = factorize(model, energy=energy)
        small = recalibrate(small, cifar10.train.x[:RECALIBRATED].split(500))
        work_of = sum(multiply_adds(small, cifar10.test.x[:1]).values())
        rows.append([energy, count(small), work_of, accuracy(small, cifar10.test)])
        print(f"tau {tau:g}: {rows[-1]}", flush=True)
    result = Run(tau, accuracy(model, cifar10.test), count(model), rows, time.perf_counter() - start)
    done.write_text(json.dumps(asdict(result)))
    return result


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def section(runs: list[Run], epochs: int, command: str) -> dict[str, Any]:
    columns = [
        "tau",
        "energy",
        "parameters",
        "multiply-adds, M",
        "test accuracy %",
        "parameters over tau 0's",
        "points",
    ]
    rows: list[list[object]] = []
    plain = next(run for run in runs if not run.tau)
    for run in runs:
        rows.append([f"{run.tau:g}", "dense", f"{run.parameters:,}", "", f"{100 * run.accuracy:.2f}", "", ""])
        for row, beside in zip(run.factorized, plain.factorized, strict=True):
            energy, parameters, work, found = row
            more = (
                [f"{100 * parameters / beside[1]:.1f} %", f"{100 * (found - beside[3]):+.2f}"] if run.tau else ["", ""]
            )
            cells = [f"{parameters:,.0f}", f"{work / 1e6:.1f}", f"{100 * found:.2f}"]
            rows.append([f"{run.tau:g}", f"{energy:g}", *cells, *(more if run.tau else ["", ""])])
    trained = f"{epochs} epochs from trained weights, batches of {BATCH}, lr {LR} to 0 along a cosine"
    factorized = "After factorisation nothing is trained; BatchNorm's statistics are taken anew"
    notes = [
        f"{trained}, momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, bfloat16 products; one seed.",
        f"A proximal step every {INTERVAL} steps. {sum(run.seconds for run in runs) / 60:.0f} minutes in all.",
        f"Energy is of the squared singular values. {factorized} on {RECALIBRATED:,} training images.",
        "Points: of accuracy, over tau 0 at the same energy.",
        "tau was chosen by the test accuracy: the paper's protocol has no validation set. It has no ResNet-20.",
    ]
    title = "Compression-aware training: ResNet-20 on CIFAR-10"
    return {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes, "headlines": []}


def main() -> None:
    folder = Path(os.environ.get("CREST_DATA", "."))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--taus", type=float, nargs="+", default=[0.0, 0.02])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--weights", type=Path, default=folder / "weights")
    parser.add_argument("--data", type=Path, default=folder)
    parser.add_argument("--work", type=Path, default=Path("build/papers"), help="where runs are kept")
    args = parser.parse_args()
    if 0.0 not in args.taus:
        parser.error("--taus must have 0, which the others are compared with")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    cifar10 = data.cifar10(args.data)
    runs = [run(tau, args.epochs, cifar10, args.weights, args.work) for tau in args.taus]
    command = f"python bench/papers/low_rank.py --taus {' '.join(f'{t:g}' for t in args.taus)} --epochs {args.epochs}"
    (HERE / "results").mkdir(exist_ok=True)
    path = HERE / "results" / "low_rank.json"
    path.write_text(json.dumps([section(runs, args.epochs, command)], indent=1) + "\n")


if __name__ == "__main__":
    main()
