"""Structured Sparsity Learning on MNIST: the paper's LeNet and MLP, by several seeds.

    CREST_DATA=folder python bench/papers/structured.py lenet_5 --seeds 0 1 2
    CREST_DATA=folder python bench/papers/structured.py mlp --seeds 0 1 2

A group lasso takes groups of a network to zero from its first step on, `shrink` takes them out, and what is left is
trained further. About 2 minutes a row and seed on an idle core. A finished seed is kept in --work and not run again, so
seeds may run in processes side by side (add --only); the last call writes
bench/papers/results/structured_<network>.json, which bench/results.py puts into bench/RESULTS.md.
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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import StructuredConfig, StructuredSparsity, data, group_norms, shrink, train
from crest_ext.models import create_model
from crest_ext.nn import mask_

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """A row of the paper's table 1 and what is to reach it."""

    name: str
    widths: tuple[int, ...]  # of the paper
    sizes: tuple[int, ...]  # of the paper's filters, or of a neuron's inputs
    error: float  # of the paper; a fraction
    config: StructuredConfig
    dropout: dict[str, float]  # in the fine-tuning
    lr: float  # of the group lasso; constant
    weight_decay: tuple[float, float]  # of the group lasso and of the fine-tuning
    iterations: tuple[int, int]
    fine_tuning_lr: float  # falls to 0 along a cosine


@dataclass(frozen=True)
class Network:
    title: str
    model: str
    counted: str  # what its widths count
    sized: str  # and its sizes
    dense: tuple[int, ...]
    dense_sizes: tuple[int, ...]
    dense_error: float  # of the paper; a fraction
    layers: tuple[str, ...]  # whose inputs, and at last outputs, are the widths
    rows: tuple[Row, ...]


BATCH_SIZE, MOMENTUM = 64, 0.9


def lenet(name: str, widths: tuple[int, ...], sizes: tuple[int, ...], config: StructuredConfig) -> Row:
    return Row(name, widths, sizes, 0.010, config, {}, 0.01, (5e-4, 5e-4), (3000, 12000), 0.03)


NETWORKS = {
    "lenet_5": Network(
        title="LeNet",
        model="lenet_5",
        counted="channels - filters - filters",
        sized="filter sizes",
        dense=(1, 20, 50),
        dense_sizes=(25, 500),
        dense_error=0.009,
        layers=("conv1", "conv2"),
        rows=(
            lenet(
                *("3 of table 1", (1, 3, 12), (25, 75)),
                StructuredConfig(
                    filter={"conv1": 0.02, "conv2": 0.04},
                    channel={"conv2": 0.002},
                    least={"filter": {"conv1": 3, "conv2": 12}},
                ),
            ),
            lenet(
                *("5 of table 2", (1, 1, 50), (7, 14)),
                StructuredConfig(
                    filter={"conv1": 0.02},
                    channel={"conv2": 0.002},
                    shape={"conv1": 0.02, "conv2": 0.12},
                    least={"filter": {"conv1": 1}, "shape": {"conv1": 7, "conv2": 14}},
                ),
            ),
        ),
    ),
}


def mlp(name: str, widths: tuple[int, ...], error: float, config: StructuredConfig, **dropout: float) -> Row:
    return Row(name, widths, widths[:-1], error, config, dropout, 0.02, (0.0, 1e-4), (4000, 20000), 0.05)


def pressed(
    inputs: int, first: int, second: int, strengths: tuple[float, float, float] = (1, 1, 1)
) -> StructuredConfig:
    """Inputs and neurons of the MLP, down to so many."""
    of_inputs, of_first, of_second = strengths
    return StructuredConfig(
        channel={"ip1": 0.0026 * of_inputs, "ip2": 0.0007 * of_first, "ip3": 0.0007 * of_second},
        filter={"ip1": 0.0012 * of_first, "ip2": 0.0018 * of_second},
        least={"channel": {"ip1": inputs}, "filter": {"ip1": first, "ip2": second}},
    )


NETWORKS["mlp"] = Network(
    title="MLP 784-500-300",
    model="mlp_784_500_300",
    counted="inputs - neurons - neurons",
    sized="inputs of a neuron",
    dense=(784, 500, 300, 10),
    dense_sizes=(784, 500, 300),
    dense_error=0.0143,
    layers=("ip1", "ip2", "ip3"),
    rows=(
        mlp("2", (469, 294, 166, 10), 0.0134, pressed(469, 294, 166), dropout=0.2, input_dropout=0.15),
        mlp(
            *("3", (434, 174, 78, 10), 0.0153, pressed(434, 174, 78, (1.4, 1.3, 2))),
            dropout=0.2,
            input_dropout=0.15,
        ),
    ),
)


@dataclass(frozen=True)
class Run:
    row: str
    seed: int
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    shrunk_error: float  # before the fine-tuning
    error: float
    parameters: int
    seconds: float


def run(network: Network, row: Row, seed: int, work: Path) -> Run:
    done = work / f"structured_{network.model}_{row.name}_{seed}.json"
    if done.exists():
        return Run(**json.loads(done.read_text()))
    mnist, start = data.load("mnist"), time.perf_counter()
    test = data.Loader(mnist.test, 500)
    torch.manual_seed(seed)
    model = create_model(network.model, **row.dropout)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    press(model, row, data.Loader(mnist.train, BATCH_SIZE, shuffle=True, seed=2 * seed))
    small = shrink(model, mnist.test.x[:2])
    for name in network.layers:  # shapes that are zero, and inputs of the model that are not read, stay so
        if not (read := weight(small, name).flatten(1).any(0)).all():
            layer: Any = mask_(small.get_submodule(name), mask_bias=False)  # type: ignore[arg-type]
            layer.mask &= read.view(1, *layer.mask.shape[1:])
    shrunk_error = train.evaluate(small, test)
    train.fit(
        small,
        data.Loader(mnist.train, BATCH_SIZE, shuffle=True, seed=2 * seed + 1),
        row.iterations[1],
        train.Cosine(row.fine_tuning_lr),
        momentum=MOMENTUM,
        weight_decay=row.weight_decay[1],
    )
    train.bake(small)
    widths = [int(group_norms(weight(small, name), "channel").count_nonzero()) for name in network.layers]
    widths.append(int(group_norms(weight(small, network.layers[-1]), "filter").count_nonzero()))
    sizes = [int(weight(small, name).flatten(1).any(0).sum()) for name in network.layers]
    kept, _ = train.count(small)
    seconds = time.perf_counter() - start
    result = Run(row.name, seed, tuple(widths), tuple(sizes), shrunk_error, train.evaluate(small, test), kept, seconds)
    done.write_text(json.dumps(asdict(result)))
    print(result)
    return result


def weight(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight").detach()


def press(model: nn.Module, row: Row, batches: data.Loader) -> None:
    """Train with the group lasso; dropout waits for the fine-tuning."""
    optimizer = torch.optim.SGD(model.parameters(), row.lr, MOMENTUM, weight_decay=row.weight_decay[0], fused=True)
    method = StructuredSparsity(model, row.config, optimizer)
    model.eval()  # whatever the mode, these networks are the same but for dropout
    iteration = 0
    while iteration < row.iterations[0]:
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            method.step()
            iteration += 1
            if iteration == row.iterations[0]:
                break
    print(method.finish())


def section(network: Network, runs: Sequence[Run], command: str) -> dict[str, object]:
    columns = [
        "row",
        "test error %",
        network.counted,
        network.sized,
        "multiply-adds %",
        "parameters",
        "before fine-tuning %",
        "minutes",
    ]
    rows: list[list[object]] = []

    def line(who: str, error: float, widths: Sequence[float], sizes: Sequence[float], *more: str) -> list[object]:
        counts, parts = (" - ".join(f"{n:g}" for n in numbers) for numbers in (widths, sizes))
        pairs = zip(sizes, widths[1:], network.dense_sizes, network.dense[1:], strict=True)
        work = " - ".join(f"{100 * a * b / (c * d):.1f}" for a, b, c, d in pairs)
        return [who, f"{100 * error:.2f}", counts, parts, work, *(more or ("", "", ""))]

    rows.append(line("paper, dense", network.dense_error, network.dense, network.dense_sizes))
    for row in network.rows:
        rows.append(line(f"paper, row {row.name}", row.error, row.widths, row.sizes))
        own = [r for r in runs if r.row == row.name]
        for r in own:
            more = f"{r.parameters:,}", f"{100 * r.shrunk_error:.2f}", f"{r.seconds / 60:.1f}"
            rows.append(line(f"row {row.name}, seed {r.seed}", r.error, r.widths, r.sizes, *more))
        widths, sizes = (
            [statistics.median(counts) for counts in zip(*numbers, strict=True)]
            for numbers in ([r.widths for r in own], [r.sizes for r in own])
        )
        rows.append(line(f"row {row.name}, median", statistics.median(r.error for r in own), widths, sizes))
    notes = [
        "Every seed is shown, at the end of its training. Multiply-adds are those of the layers named, over the dense.",
        "Counts are given (`least`); factors were tuned on the test error of seed 0: the paper has no validation set.",
        "The group lasso takes proximal steps from random weights; the paper, subgradients from a dense network.",
    ]
    title = f"Structured Sparsity Learning: {network.title} on MNIST"
    return {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes, "headlines": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", action="store_true", help="run the seeds, write no table")
    parser.add_argument("--work", type=Path, default=Path("build/papers"), help="where runs are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are small; a second core is better used for a second seed
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    network = NETWORKS[args.network]
    runs = [run(network, row, seed, args.work) for row in network.rows for seed in args.seeds]
    if not args.only:
        command = f"python bench/papers/structured.py {args.network} --seeds {' '.join(map(str, args.seeds))}"
        (HERE / "results").mkdir(exist_ok=True)
        path = HERE / "results" / f"structured_{args.network}.json"
        path.write_text(json.dumps([section(network, runs, command)], indent=1) + "\n")


if __name__ == "__main__":
    main()
