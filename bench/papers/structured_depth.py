"""Structured Sparsity Learning on CIFAR-10: whole residual branches of a trained ResNet-20 taken out.

    PYTHONPATH=bench CREST_DATA=folder python bench/papers/structured_depth.py --seeds 0

Takes trained weights from $CREST_DATA/weights/resnet20.safetensors (or --weights). A group lasso whose groups are whole
layers, the second convolutions of three residual branches, presses until they are zero; `shrink(depth=True)` takes them
out, with the first ones, and what is left learns the outputs of the given network. About 80 minutes a seed on an
idle core with AMX. A finished seed is kept in --work and not run again, and one cut short goes on at its last epoch.
Writes results/structured_depth.json.
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
from taught import taught_by
from torch import nn

from crest_ext import StructuredConfig, data, shrink, train
from crest_ext.models import create_model
from crest_ext.models.cost import multiply_adds

# Of all sets of three branches, the given network's loss on 2,000 training images is the least without these. What they
# leave of the stages, 5, 2 and 6 convolutions, is what the paper's SSL-ResNet-14 has.
BRANCHES = ("layer1.0", "layer2.1", "layer2.2")  # of 9: two convolutions each
# Of the first stage, whose layers are the smallest; of the second with the square root of its channels. BatchNorm
# stays as it is meanwhile: in training it makes up for a layer's scale, so that the loss does not hold on to any layer,
# gradients grow as weights shrink, and all end small and none at zero.
FACTOR = 0.1
PRESSING = StructuredConfig(depth={"layer1.0.conv2": FACTOR, "layer2.[12].conv2": FACTOR * 2**0.5})
MOST_PRESSING_EPOCHS, PRESSING_RATE = 8, 0.01
FINE_TUNING_EPOCHS, FINE_TUNING_RATE = 60, 0.05
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
    """Until the branches are zero."""
    given = Crops(split, seed), MOST_PRESSING_EPOCHS, PRESSING_RATE, PRESSING_DECAY
    cifar10.press(network, PRESSING, *given, training=False, enough=lambda: len(zero(network)) == len(BRANCHES))
    if len(zero(network)) < len(BRANCHES):
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
    seconds += cifar10.train_on(small, images.train, *tuning, seed, done.with_suffix(".pt"), **taught_by(given))
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
        f"The group lasso presses {', '.join(BRANCHES)} until they are zero; of all sets of three, the given network",
        f"needs these least. Then {FINE_TUNING_EPOCHS} epochs of fine-tuning, {cifar10.PRECISION}: by the outputs of",
        "the given network for the same crops, not by labels. Every seed is shown, at the end of its training. The",
        "setting is the fourth that was trained to the end; in the others the group lasso chose among all branches.",
        "Faster: time of a float32 batch of 64 images, one thread, given over shrunk, interleaved.",
    ]
    title = "Structured Sparsity Learning: ResNet-20 on CIFAR-10, depth"
    return {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes, "headlines": []}


if __name__ == "__main__":
    cifar10.by_seeds(__doc__, "structured_depth", run, section)
