"""Bytes of AlexNet with few weights of few values, at the densities that two papers reached on ImageNet.

    python bench/papers/size_alexnet.py

There is no ImageNet here: weights are drawn at random, the largest of each layer are kept and become one of 31 values
by k-means. So their places say nothing about one another, and a trained network's file would be a little smaller. About
a minute. Writes bench/papers/results/size_alexnet.json.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from crest_ext.container import load_model, save_model
from crest_ext.methods import Quantize, QuantizeConfig
from crest_ext.models import create_model

RESULTS = Path(__file__).parent / "results"
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
# Share of weights kept, by layer: Guo et al., NIPS 2016, table 4, which also has Han et al.'s.
KEPT = {
    "Dynamic Network Surgery": (0.538, 0.406, 0.290, 0.323, 0.325, 0.037, 0.066, 0.046),
    "Deep Compression": (0.84, 0.38, 0.35, 0.37, 0.37, 0.09, 0.09, 0.25),
}
LEVELS = 31  # and 0: 5 bits
PUBLISHED = 6_900_000  # Han, Mao, Dally, "Deep Compression", ICLR 2016, table 1


@torch.no_grad()
def pruned(densities: tuple[float, ...]) -> nn.Module:
    """A network whose layers keep their largest weights, and no biases."""
    torch.manual_seed(0)
    network = create_model("alexnet")
    for name, kept in zip(LAYERS, densities, strict=True):
        layer = network.get_submodule(name)
        weight = layer.weight.normal_(std=layer.weight[0].numel() ** -0.5)
        layer.bias.zero_()
        size = weight.abs().flatten()
        weight[weight.abs() < size.kthvalue(max(1, round((1 - kept) * size.numel()))).values] = 0
    return network


def row(who: str, densities: tuple[float, ...], folder: Path) -> list[object]:
    network, path = pruned(densities), folder / "alexnet.crest"
    Quantize(network, QuantizeConfig(lam=0, levels=LEVELS)).finish()
    total = sum(p.numel() for p in network.parameters())
    kept = sum(int(p.count_nonzero()) for p in network.parameters())
    start = time.perf_counter()
    save_model(network, path)
    saved = time.perf_counter()
    loaded = create_model("alexnet")
    load_model(loaded, path)
    times = saved - start, time.perf_counter() - saved
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters(), strict=True))
    size = path.stat().st_size
    cells = [f"{kept:,}", f"{size:,}", f"{8 * size / kept:.2f}", f"{4 * total / size:.1f}x smaller"]
    return [f"densities of {who}", *cells, *(f"{seconds:.1f}" for seconds in times)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(who, densities, Path(folder)) for who, densities in KEPT.items()]
    total = sum(p.numel() for p in create_model("alexnet").parameters())
    rows.append(
        ["Deep Compression, published", "", f"{PUBLISHED:,}", "", f"{4 * total / PUBLISHED:.1f}x smaller", "", ""]
    )
    section = {
        "title": "Bytes of a whole file: AlexNet at published densities, 31 values a layer",
        "command": "python bench/papers/size_alexnet.py",
        "columns": ["network", "parameters kept", "bytes", "bits a parameter", "of float32", "save s", "load s"],
        "rows": rows,
        "notes": ["Not trained: weights are drawn at random, and no accuracy goes with these bytes."],
    }
    (RESULTS / "size_alexnet.json").write_text(json.dumps([section], indent=1) + "\n")


if __name__ == "__main__":
    main()
