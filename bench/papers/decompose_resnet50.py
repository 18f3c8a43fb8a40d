"""ResNet-50 of one-dimensional convolutions: what `decompose` makes of its size, its file and its speed.

    PYTHONPATH=bench python bench/papers/decompose_resnet50.py

Weights are random, as training takes ImageNet: the figures are of the structure, and no accuracy is among them. About
a minute on an idle core. Writes results/decompose_resnet50.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

from crest_ext import decompose, train
from crest_ext.container import save_model
from crest_ext.models import multiply_adds
from resnet50 import resnet50
from timing import interleaved

RESULTS = Path(__file__).parent / "results"
ROUNDS = 15


def file_sizes(model: nn.Module) -> tuple[int, int]:
    """Bytes of torch's file of the weights, and of ours."""
    with tempfile.TemporaryDirectory() as folder:
        torchs, ours = Path(folder) / "weights.pt", Path(folder) / "weights.crest"
        torch.save(model.state_dict(), torchs)
        save_model(model, ours)
        return torchs.stat().st_size, ours.stat().st_size


def section() -> dict[str, object]:
    torch.manual_seed(0)
    dense = resnet50()
    networks = {"ResNet-50": dense, "decomposed": decompose(dense)}
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        calls = {name: lambda n=n: n(x) for name, n in networks.items()}
        seconds = interleaved(calls, ROUNDS, 2)
    columns = ["", "convolutions", "parameters", "multiply-adds, M", "file of torch, MB", "file of ours, MB", "ms"]
    rows: list[list[str]] = []
    measured: dict[str, list[float]] = {}
    for name, network in networks.items():
        costs = [sum(multiply_adds(network, x).values()) / 1e6, *(size / 1e6 for size in file_sizes(network))]
        convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
        measured[name] = [convolutions, train.count(network)[1], *costs, 1000 * seconds[name]]
        rows.append([name, str(convolutions), f"{train.count(network)[1]:,}", f"{costs[0]:,.0f}"])
        rows[-1] += [f"{costs[1]:.1f}", f"{costs[2]:.1f}", f"{1000 * seconds[name]:.0f}"]
    ratios = zip(measured["decomposed"], measured["ResNet-50"], strict=True)
    rows.append(["decomposed over dense", *(f"{a / b:.2f}" for a, b in ratios)])
    notes = [
        f"One image of 224x224, float32, one thread, eager torch, median of {ROUNDS} interleaved rounds.",
        "Each 3x3 convolution becomes a vertical one, ReLU and a horizontal one. The 1x1 ones stay as they are.",
        "So does the first, of 7x7: its pair would have more weights.",
        "The paper announces a decomposed ResNet-50 and gives no results.",
        "Weights are random here: there is no error, and files hold random numbers.",
    ]
    title, command = "DecomposeMe: ResNet-50", "PYTHONPATH=bench python bench/papers/decompose_resnet50.py"
    return {"title": title, "command": command, "columns": columns, "rows": rows, "notes": notes, "headlines": []}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=raw).parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "decompose_resnet50.json").write_text(json.dumps([section()], indent=1) + "\n")


if __name__ == "__main__":
    main()
