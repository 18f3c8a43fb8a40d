"""What scripts on CIFAR-10 share: arguments, images at random crops, and training in bfloat16 where it is faster."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import StructuredConfig, StructuredSparsity, data, materialize, train
from crest_ext.optim import decay_groups
from timing import interleaved

RESULTS = Path(__file__).parent / "results"
BATCH = 128
EPOCH = 50_000 // BATCH  # steps
MARGIN = 4  # pixels by which an image is shifted at most


def parser(description: str | None) -> argparse.ArgumentParser:
    folder = Path(os.environ.get("CREST_DATA") or ".")
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=folder, help="the official files of the images; default $CREST_DATA")
    made.add_argument("--weights", type=Path, default=folder / "weights" / "resnet20.safetensors")
    made.add_argument("--work", type=Path, default=Path("build/papers"), help="where runs are kept")
    return made


def start(args: argparse.Namespace, load: Callable[[Path], data.Dataset] = data.cifar10_bytes) -> data.Dataset:
    """One thread, a folder for the runs, and the images."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    return load(args.data)


def by_seeds(
    description: str | None,
    script: str,
    run: Callable[[argparse.Namespace, data.Dataset, int], Any],
    section: Callable[[list[Any], str], dict[str, object]],
    load: Callable[[Path], data.Dataset] = data.cifar10_bytes,
) -> None:
    """All of a script: a run for each of --seeds, and the table of them in results/script.json."""
    made = parser(description)
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = made.parse_args()
    images = start(args, load)
    runs = [run(args, images, seed) for seed in args.seeds]
    command = f"PYTHONPATH=bench python bench/papers/{script}.py --seeds {' '.join(map(str, args.seeds))}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{script}.json").write_text(json.dumps([section(runs, command)], indent=1) + "\n")


def test_images(images: data.Dataset) -> data.Loader:
    return data.Loader(data.Split(standardized(images.test.x), images.test.y), 250)


class Crops:
    """Batches of standardised images, mirrored and shifted at random. Iterating is one epoch."""

    def __init__(self, split: data.Split, seed: int) -> None:
        self.loader = data.Loader(split, BATCH, shuffle=True, seed=seed, shift=MARGIN)
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.loader:
            mirrored = torch.randint(2, (len(x),), generator=self.generator)
            x = torch.where(mirrored.bool().view(-1, 1, 1, 1), x.flip(3), x)
            yield standardized(x), y


class AsTheyAre:
    """Batches of standardised images. Iterating is one epoch."""

    def __init__(self, split: data.Split, seed: int) -> None:
        self.loader = data.Loader(split, BATCH, shuffle=True, seed=seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((standardized(x), y) for x, y in self.loader)


def standardized(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.CIFAR10_MEAN, data.CIFAR10_STD))
    return ((x.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


_has = torch.cpu.get_capabilities().get
# By AMX, and by AVX-512 on AMD's processors. On Intel's, which have float16 as well, it is slower without AMX.
FAST = bool(_has("amx_bf16") or (_has("avx512_bf16") and not _has("avx512_fp16")))
PRECISION = "bfloat16" if FAST else "float32"


class InBfloat16(nn.Module):
    """What is trained: in bfloat16, where the processor is fast at it: twice as fast, and ten times as slow elsewhere.

    Parameters and sums stay float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
            return self.network(x).float()


def latency(networks: tuple[nn.Module, nn.Module], x: Tensor) -> tuple[float, float]:
    """Milliseconds of two networks for x, interleaved."""
    calls = {str(i): lambda n=n: n(x) for i, n in enumerate(networks)}  # type: ignore[misc]
    with torch.no_grad():
        seconds = interleaved(calls, 15, 3)
    return 1000 * seconds["0"], 1000 * seconds["1"]


def press(
    network: nn.Module,
    config: StructuredConfig,
    batches: Crops | AsTheyAre,
    epochs: int,
    rate: float,
    decay: float = 0,
    training: bool = True,  # or BatchNorm stays as it is
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """SGD in bfloat16 with a group lasso, at a constant rate, for so many epochs or until it is enough."""
    optimizer = torch.optim.SGD(network.parameters(), rate, 0.9, weight_decay=decay)
    method = StructuredSparsity(network, config, optimizer)
    model = InBfloat16(network).train(training)
    for epoch in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            method.step()
            if enough():
                print(f"pressing, epoch {epoch + 1}\n{method.finish()}", flush=True)
                return
        print(f"pressing, epoch {epoch + 1}\n{method.summary()}", flush=True)
    method.finish()


def pressed(kept: Path, pressing: Callable[[], nn.Module]) -> tuple[dict[str, Tensor], float]:
    """What a pressed network is made of, and the seconds of a processor; from a file, where that has them."""
    if not kept.exists():
        start = time.process_time()
        network = materialize(pressing())
        partial = kept.with_suffix(".partial")
        torch.save({"network": network.state_dict(), "seconds": time.process_time() - start}, partial)
        partial.replace(kept)
    state = torch.load(kept, weights_only=True)
    return state["network"], state["seconds"]


def train_on(
    network: nn.Module,
    split: data.Split,
    epochs: int,
    rate: float,
    decay: float,
    seed: int,
    kept: Path,
    batches: Callable[[data.Split, int], Iterable[tuple[Tensor, Tensor]]] = Crops,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> float:
    """SGD in bfloat16, its rate along a cosine to 0. A file keeps each epoch's end: a training cut short goes on.

    batches(split, number) is an epoch. Depthwise filters do not decay. Returns seconds of a processor, of the calls
    before as well.
    """
    optimizer = torch.optim.SGD(decay_groups(network, decay), rate, 0.9, fused=True)
    state: dict[str, Any] = torch.load(kept, weights_only=True) if kept.exists() else {"epochs": 0}
    if state["epochs"]:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    model, schedule = InBfloat16(network).train(), train.Cosine(rate)
    seconds = state.get("seconds", 0.0)
    before = time.process_time() - seconds
    for epoch in range(state["epochs"], epochs):
        for step, (x, y) in enumerate(batches(split, 1000 * (seed + 1) + epoch)):
            for group in optimizer.param_groups:
                group["lr"] = schedule.at(epoch * EPOCH + step, epochs * EPOCH)
            optimizer.zero_grad()
            found = loss(model(x), y)
            found.backward()
            optimizer.step()
        seconds = time.process_time() - before
        print(f"epoch {epoch + 1} of {epochs}: loss {found.item():.3f}, {seconds:.0f} s", flush=True)
        state = {"epochs": epoch + 1, "seconds": seconds}
        partial = kept.with_suffix(".partial")
        torch.save(state | {"network": network.state_dict(), "optimizer": optimizer.state_dict()}, partial)
        partial.replace(kept)
    return seconds
