"""Structured Sparsity Learning on CIFAR-10: whole residual branches of a trained ResNet-20 taken out.

    PYTHONPATH=bench CREST_DATA=folder python bench/papers/structured_depth.py --seeds 0

Takes trained weights from $CREST_DATA/weights/resnet20.safetensors (or --weights). A group lasso whose groups are whole
layers, the second convolutions of the residual branches, presses until so many are zero; `shrink(depth=True)` takes
them out, with the first ones, and what is left is trained further. About 30 minutes a seed on an idle core with AMX. A
finished seed is kept in --work and not run again, and one cut short goes on at its last epoch. Writes
results/structured_depth.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass

import cifar10
import torch
from cifar10 import Crops
from safetensors.torch import load_file
from torch import nn

from crest_ext import StructuredConfig, data, shrink, train
from crest_ext.models import create_model
from crest_ext.models.cost import multiply_adds

BRANCHES = 3  # to take out, of 9: two convolutions each
# Of the first stage, whose layers are the smallest; of the others with the square root of their channels. BatchNorm
# stays as it is meanwhile: in training it makes up for a layer's scale, so that the loss does not hold on to any layer,
# gradients grow as weights shrink, and all end small and none at zero.
FACTOR = 0.1
PRESSING = StructuredConfig(depth={f"layer{n}*conv2": FACTOR * 2 ** ((n - 1) / 2) for n in (1, 2, 3)})
MOST_PRESSING_EPOCHS, PRESSING_RATE = 8, 0.01
FINE_TUNING_EPOCHS, FINE_TUNING_RATE = 20, 0.1
PRESSING_DECAY, FINE_TUNING_DECAY = 1e-4, 5e-4


@dataclass(frozen=True)
class Run:
    seed: int
    given_error: float
    shrunk_error: float  # before the fine-tuning
    error: float
    removed: tuple[str, ...]  # branches
    convolutions: tuple[int, int]  # before and after, as the next
    parameters: tuple[int, int]
    work: tuple[int, int]  # multiply-adds
    milliseconds: tuple[float, float]  # of a batch of 64, interleaved
    minutes: float  # of a processor


def zero(network: nn.Module) -> list[str]:
    """The layers whose weights are all zero."""
    return [name.removesuffix(".weight") for name, p in network.named_parameters() if p.dim() > 1 and not p.any()]


def press(network: nn.Module, split: data.Split, seed: int) -> nn.Module:
    """Until so many branches are zero."""
    given = Crops(split, seed), MOST_PRESSING_EPOCHS, PRESSING_RATE, PRESSING_DECAY
    cifar10.press(network, PRESSING, *given, training=False, enough=lambda: len(zero(network)) >= BRANCHES)
    if len(zero(network)) < BRANCHES:
        raise RuntimeError(f"FACTOR must be larger: {zero(network)} are at zero")
    return network


def run(args: argparse.Namespace, images: data.Dataset, seed: int) -> Run:
    done = args.work / f"structured_depth_{seed}.json"
    if done.exists():
        return Run(**json.loads(done.read_text()))
    test = cifar10.test_images(images)
    torch.manual_seed(seed)
    given, network = (create_model("resnet20").to(memory_format=torch.channels_last) for _ in range(2))
    for model in (given, network):
        model.load_state_dict(load_file(args.weights))
    weights, seconds = cifar10.pressed(done.with_suffix(".pressed"), lambda: press(network, images.train, seed))
    network = create_model("resnet20").to(memory_format=torch.channels_last)
    network.load_state_dict(weights)
    example = next(iter(test))[0][:2]
    small, report = shrink(network, example, depth=True, explain=True)
    shrunk_error = train.evaluate(small, test)
    print(f"{report}\nshrunk: {shrunk_error:.2%}", flush=True)
    tuning = FINE_TUNING_EPOCHS, FINE_TUNING_RATE, FINE_TUNING_DECAY
    seconds += cifar10.train_on(small, images.train, *tuning, seed, done.with_suffix(".pt"))
    pair = given.eval(), small.eval()
    work_of = [sum(multiply_adds(model, example[:1]).values()) for model in pair]
    result = Run(
        seed,
        train.evaluate(given, test),
        shrunk_error,
        train.evaluate(small, test),
        removed=tuple(name.rpartition(".")[0] for name in zero(network)),
        convolutions=(convolutions(given), convolutions(small)),
        parameters=(train.count(given)[1], train.count(small)[1]),
        work=(work_of[0], work_of[1]),
        milliseconds=cifar10.latency(pair, torch.cat([example] * 32)),
        minutes=seconds / 60,
    )
    print(result, flush=True)
    done.write_text(json.dumps(asdict(result)))
    return result


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


def section(runs: list[Run], command: str) -> dict[str, object]:
    columns = [
        "",
        "test error %",
        "convolutions",
        "multiply-adds removed %",
        "parameters",
        "faster",
        "branches taken out",
        "before fine-tuning %",
        "minutes",
    ]
    r = runs[0]
    rows: list[list[str]] = [
        ["paper, ResNet-20", "8.82", "19", *("",) * 6],
        ["paper, SSL-ResNet-14", "8.54", "13", *("",) * 6],
        [
            "given weights",
            f"{100 * r.given_error:.2f}",
            str(r.convolutions[0]),
            "0",
            f"{r.parameters[0]:,}",
            *("",) * 4,
        ],
    ]
    for r in runs:
        removed, faster = 100 * (1 - r.work[1] / r.work[0]), r.milliseconds[0] / r.milliseconds[1]
        cells = [f"{100 * r.error:.2f}", str(r.convolutions[1]), f"{removed:.1f}", f"{r.parameters[1]:,}"]
        cells += [f"{faster:.2f}x", ", ".join(r.removed), f"{100 * r.shrunk_error:.2f}", f"{r.minutes:.0f}"]
        rows.append([f"seed {r.seed}", *cells])
    rows.append(["median", f"{100 * statistics.median(r.error for r in runs):.2f}", *("",) * 7])
    notes = [
        f"The group lasso presses until {BRANCHES} branches are zero; then {FINE_TUNING_EPOCHS} epochs of fine-tuning.",
        "Every seed is shown, at the end of its training; bfloat16. The ratio of the stages' factors was chosen by the",
        "norms of the given weights, and their size by whether layers came to zero. The setting is the best of three",
        "that were trained to the end: the others, by outputs of given networks instead of labels, left larger errors.",
        "Faster: time of a float32 batch of 64 images, one thread, given over shrunk, interleaved.",
    ]
    title = "Structured Sparsity Learning: ResNet-20 on CIFAR-10, depth"
    return {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes, "headlines": []}


if __name__ == "__main__":
    cifar10.by_seeds(__doc__, "structured_depth", run, section)
