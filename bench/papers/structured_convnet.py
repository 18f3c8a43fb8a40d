"""Structured Sparsity Learning on CIFAR-10: rows and columns of Caffe's ConvNet taken out, as in the paper's table 3.

    PYTHONPATH=bench CREST_DATA=folder python bench/papers/structured_convnet.py --seeds 0

A dense network learns the outputs of a trained ResNet-20 (--weights) for the images and their mirrored ones. A group
lasso on the channels and filter shapes that layers read, and on the filters that the last layer reads, leaves as many
as the paper; `shrink` takes out what nothing reads, and what is left learns the same outputs further. About 40 minutes
a seed on an idle core without AMX. A finished seed is kept in --work and not run again, and one cut short goes on at
its last epoch. Writes results/structured_convnet.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cifar10
import torch
from cifar10 import AsTheyAre
from safetensors.torch import load_file, save_file
from taught import taught_once_by
from torch import Tensor, nn

from crest_ext import StructuredConfig, data, materialize, shrink, train
from crest_ext.models import create_model
from crest_ext.models.cost import multiply_adds
from crest_ext.nn import mask_
from timing import interleaved

LAYERS = ("conv1", "conv2", "conv3")
DENSE = ((32, 75), (32, 800), (64, 800))  # rows and columns of their matrices: filters, and numbers in one
SIDES = (32, 16, 8)  # of their images
LEFT = ((16, 75), (23, 326), (63, 519))  # the paper's ConvNet 2
# Channels first: the filters that give those that are not read go with them. Then shapes of what is left.
PRESSING = (
    StructuredConfig(
        filter={"conv3": 0.1},
        channel={"conv2": 0.1, "conv3": 0.1},
        least={"filter": {"conv3": LEFT[2][0]}, "channel": {"conv2": LEFT[0][0], "conv3": LEFT[1][0]}},
    ),
    StructuredConfig(
        shape={"conv2": 0.03, "conv3": 0.03},
        least={"shape": {"conv2": LEFT[1][1], "conv3": LEFT[2][1]}},
    ),
)
DROPOUT = 0.1
DENSE_EPOCHS, DENSE_RATE, DENSE_DECAY = 20, 0.015, 2e-3
PRESSING_EPOCHS, PRESSING_RATE = 4, 0.01  # of each
TUNING_EPOCHS, TUNING_RATE, TUNING_DECAY = 60, 0.004, 1e-3


@dataclass(frozen=True)
class Run:
    seed: int
    dense_error: float
    shrunk_error: float  # before the fine-tuning
    error: float
    matrices: list[list[int]]  # rows and columns of each layer that are not zero
    parameters: list[int]  # of the dense network and what is left, as the next
    work: list[int]  # multiply-adds, zero columns and all
    milliseconds: list[float]  # of a batch of 64, interleaved
    layers: list[float]  # how many times faster each is, as the next
    products: list[float]  # the matrix without its zero rows and columns, times the images'
    minutes: float  # of this call, if it went on with another's


def convnet() -> nn.Module:
    return create_model("convnet", dropout=DROPOUT).to(memory_format=torch.channels_last)


def matrix(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight").detach().flatten(1)


def hold_zeros(model: nn.Module) -> None:
    for name in LAYERS:
        layer: Any = mask_(model.get_submodule(name), mask_bias=False)
        layer.mask &= layer.weight != 0


def run(args: argparse.Namespace, images: data.Dataset, seed: int) -> Run:
    done, trained, pressed, first, last = (
        args.work / f"structured_convnet_{seed}{end}"
        for end in (".json", "_dense.safetensors", "_pressed.safetensors", "_dense.pt", "_tuned.pt")
    )
    if done.exists():
        return Run(**json.loads(done.read_text()))
    start, test = time.perf_counter(), cifar10.test_images(images)
    torch.manual_seed(seed)
    dense, network = convnet(), convnet()
    teacher = create_model("resnet20").to(memory_format=torch.channels_last)
    teacher.load_state_dict(load_file(args.weights))
    taught = taught_once_by(teacher, images.train)
    if not trained.exists():
        cifar10.train_on(dense, images.train, DENSE_EPOCHS, DENSE_RATE, DENSE_DECAY, seed, first, **taught)
        save(dense, trained)
    dense.load_state_dict(load_file(trained))
    if not pressed.exists():
        network.load_state_dict(load_file(trained))
        for i, config in enumerate(PRESSING):
            cifar10.press(network, config, AsTheyAre(images.train, 10 * seed + i), PRESSING_EPOCHS, PRESSING_RATE)
        save(materialize(network), pressed)
        network = convnet()
    network.load_state_dict(load_file(pressed))
    example = next(iter(test))[0][:2]
    small, report = shrink(network, example, shape=True, explain=True)
    shrunk_error = train.evaluate(small, test)
    print(f"{report}\nshrunk: {shrunk_error:.2%}", flush=True)
    hold_zeros(small)
    cifar10.train_on(small, images.train, TUNING_EPOCHS, TUNING_RATE, TUNING_DECAY, seed + 100, last, **taught)
    small = materialize(small)
    pair = dense.eval(), small.eval()
    result = Run(
        seed,
        train.evaluate(dense, test),
        shrunk_error,
        train.evaluate(small, test),
        matrices=[[int(matrix(small, name).any(side).sum()) for side in (1, 0)] for name in LAYERS],
        parameters=[train.count(model)[0] for model in pair],
        work=[sum(multiply_adds(model, example[:1]).values()) for model in pair],
        milliseconds=list(cifar10.latency(pair, torch.cat([example] * 32))),
        layers=[layer_ratio(pair, i) for i in range(len(LAYERS))],
        products=[product_ratio(pair, i) for i in range(len(LAYERS))],
        minutes=(time.perf_counter() - start) / 60,
    )
    print(result, flush=True)
    done.write_text(json.dumps(asdict(result)))
    return result


def save(model: nn.Module, path: Path) -> None:
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)


def layer_ratio(pair: tuple[nn.Module, nn.Module], i: int) -> float:
    """Time of a dense layer over that of what is left of it, 64 images."""
    convs: list[Any] = [model.get_submodule(LAYERS[i]) for model in pair]
    inputs = [torch.randn(64, conv.in_channels, SIDES[i], SIDES[i]) for conv in convs]
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    return ratio([lambda c=c, x=x: c(x) for c, x in zip(convs, inputs, strict=True)])


def product_ratio(pair: tuple[nn.Module, nn.Module], i: int) -> float:
    """Of the products with a lowered image alone, as the paper takes times."""
    weights = [matrix(model, LAYERS[i]) for model in pair]
    weights = [w[w.any(1)][:, w.any(0)].contiguous() for w in weights]
    images = [torch.randn(w.shape[1], SIDES[i] ** 2) for w in weights]
    return ratio([lambda w=w, x=x: [w @ x for _ in range(64)] for w, x in zip(weights, images, strict=True)])


def ratio(calls: Sequence[Any]) -> float:
    with torch.no_grad():
        seconds = interleaved({str(i): call for i, call in enumerate(calls)}, 31, 3)
    return seconds["0"] / seconds["1"]


def dashed(numbers: Sequence[float], digits: int) -> str:
    return " - ".join(f"{n:.{digits}f}" for n in numbers)


def shares(matrices: Sequence[Sequence[int]]) -> list[str]:
    """In percent: zero rows, zero columns, and what is left of the matrices."""
    pairs = list(zip(matrices, DENSE, strict=True))
    zero = [[100 * (1 - left[side] / dense[side]) for left, dense in pairs] for side in (0, 1)]
    kept = [100 * left[0] * left[1] / (dense[0] * dense[1]) for left, dense in pairs]
    return [dashed(numbers, 1) for numbers in (*zero, kept)]


def section(runs: list[Run], command: str) -> dict[str, object]:
    columns = [
        *("", "test error %", "zero rows %", "zero columns %", "matrices left %", "multiply-adds left %"),
        *("parameters", "products faster", "layers faster", "network faster", "before fine-tuning %", "minutes"),
    ]
    rows: list[list[str]] = [
        ["paper, ConvNet 1", "17.9", "12.5 - 0 - 0", "0 - 0 - 0", *("",) * 8],
        ["paper, ConvNet 2", "17.9", *shares(LEFT), "", "", "1.43 - 3.05 - 1.57", *("",) * 4],
    ]
    for r in runs:
        rows.append([f"dense, seed {r.seed}", f"{100 * r.dense_error:.2f}", *shares(DENSE)])
        rows[-1] += ["100", f"{r.parameters[0]:,}", *("",) * 5]
        cells = [f"{100 * r.error:.2f}", *shares(r.matrices), f"{100 * r.work[1] / r.work[0]:.1f}"]
        cells += [f"{r.parameters[1]:,}", dashed(r.products, 2), dashed(r.layers, 2)]
        cells += [f"{r.milliseconds[0] / r.milliseconds[1]:.2f}x, {r.milliseconds[1]:.1f} ms"]
        rows.append([f"shrunk, seed {r.seed}", *cells, f"{100 * r.shrunk_error:.2f}", f"{r.minutes:.0f}"])
    rows.append(["shrunk, median", f"{100 * statistics.median(r.error for r in runs):.2f}", *("",) * 10])
    epochs = f"{DENSE_EPOCHS} epochs dense, {2 * PRESSING_EPOCHS} of the group lasso and {TUNING_EPOCHS} of fine-tuning"
    notes = [
        f"{epochs}, {cifar10.PRECISION}: by a ResNet-20's outputs for the images and their mirrored ones, where the",
        "paper learns labels of the images alone. The group lasso has the labels. Every seed is shown, at the end of",
        "its training. The setting is the third that was trained to the end.",
        "Rows are filters, columns their shapes. The least that may be left is given (`least`): the paper's ConvNet 2;",
        "of conv2's columns more are left, as the group lasso ended before.",
        "Products: of the matrix without zeros and one lowered image, as in the paper's times.",
        "Layers and network: of 64 images, as they run, with the zero columns of channels that are read.",
        "Faster: dense over shrunk, float32, one thread, interleaved medians.",
    ]
    title = "Structured Sparsity Learning: ConvNet on CIFAR-10, rows and columns"
    return {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes, "headlines": []}


if __name__ == "__main__":
    cifar10.by_seeds(__doc__, "structured_convnet", run, section)
