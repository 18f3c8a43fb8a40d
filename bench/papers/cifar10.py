"""What the scripts on CIFAR-10 share: arguments, its images at random crops, and training in bfloat16."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crest_ext import data

BATCH = 128
EPOCH = 50_000 // BATCH  # steps
MARGIN = 4  # pixels of black around an image, out of which it is cropped again


def parser(description: str | None) -> argparse.ArgumentParser:
    folder = Path(os.environ.get("CREST_DATA") or ".")
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=folder, help="CIFAR-10's binary version; default $CREST_DATA")
    made.add_argument("--weights", type=Path, default=folder / "weights" / "resnet20.safetensors")
    made.add_argument("--work", type=Path, default=Path("build/papers"), help="where runs are kept")
    return made


def start(args: argparse.Namespace) -> data.Dataset:
    """One thread, a folder for the runs, and the images as bytes."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    return data.cifar10_bytes(args.data)


def test_images(images: data.Dataset) -> data.Loader:
    return data.Loader(data.Split(standardized(images.test.x), images.test.y), 250)


class Crops:
    """Batches of standardised images, mirrored and shifted at random. Iterating is one epoch."""

    def __init__(self, split: data.Split, seed: int) -> None:
        self.loader = data.Loader(split, BATCH, shuffle=True, seed=seed)
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.loader:
            n, _, _, side = x.shape
            down, right, mirrored = (torch.randint(k, (n,), generator=self.generator) for k in (9, 9, 2))
            windows = F.pad(x, (MARGIN,) * 4).unfold(2, side, 1).unfold(3, side, 1)
            x = windows[torch.arange(n), :, down, right]
            x = torch.where(mirrored.bool().view(-1, 1, 1, 1), x.flip(3), x)
            yield standardized(x), y


def standardized(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.CIFAR10_MEAN, data.CIFAR10_STD))
    return ((x.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class InBfloat16(nn.Module):
    """What is trained: twice as fast where the processor has AMX. Parameters and sums stay float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(x).float()
