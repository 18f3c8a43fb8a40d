"""Bytes of the same integers by the coder of NNC (ISO/IEC 15938-17) and by ours.

    python -m venv build/nnc && build/nnc/bin/pip install numpy pybind11 setuptools wheel
    build/nnc/bin/pip install --no-deps --no-build-isolation nncodec==2.1.3
    CREST_DATA=folder python bench/papers/nnc.py --python build/nnc/bin/python

Given weights lose their smallest in each layer, and the others become one of 14 integers; a MobileNet has the integers
it was trained with. Ours are whole files, with names, shapes and checksums; of NNC the arithmetic-coded bytes alone, by
the better of its two models of each layer. Writes bench/papers/results/nnc.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from crest_ext.container import load, save, scaled

RESULTS = Path(__file__).parent / "results"
SPARSITIES = (0.7, 0.8, 0.9, 0.95)
NETWORKS = {
    "LeNet-300-100": ("dns_lenet300100_original", SPARSITIES),
    "LeNet-300-100 after surgery": ("dns_lenet300100_sparse", (0,)),
    "LeNet-5": ("dns_lenet5_original", SPARSITIES),
    "LeNet-5 after surgery": ("dns_lenet5_sparse", (0,)),
    "ResNet-20": ("resnet20", SPARSITIES[1:]),
    "ResNet-32": ("resnet32", SPARSITIES[1:]),
    "ResNet-44": ("resnet44", SPARSITIES[1:]),
    "MobileNet-v1 0.25": ("mobilenet_v1_0.25_128", (None,)),
}
LEVELS = 7  # of either sign
NNC = """
import sys, numpy as np
from nncodec.extensions import deepCABAC
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF
total = 0
for name, layer in np.load(sys.argv[1]).items():
    sizes = []
    for adapt in (0, 1):
        for skip in (0, 1):
            coder = deepCABAC.Encoder()
            coder.initCtxModels(11, adapt)
            rows = np.array([not row.any() for row in layer], np.int32) if skip else np.zeros(len(layer), np.int32)
            coder.encodeLayer(layer.astype(np.int32), 0, 0, skip, 0, skip, rows, *HDSP_OPTS_OFF(), 0, 0)
            sizes.append(len(coder.finish()))
    total += min(sizes)
print(total)
"""


def pruned(weight: Tensor, sparsity: float) -> Tensor:
    """Integers from -LEVELS to LEVELS, so that a weight becomes 0 by its rank alone, or was 0."""
    size = weight.abs()
    step = size.max() / LEVELS
    dropped = size <= size.flatten().kthvalue(int(sparsity * size.numel())).values if sparsity else size == 0
    return torch.where(dropped, 0, weight.sign() * (size / step).ceil()).to(torch.int8)


def integers(path: Path, sparsity: float | None) -> Iterator[tuple[str, Tensor]]:
    """The weights of the layers; None for what they were trained with."""
    for name, weight in load_file(path).items():
        if weight.dim() < 2:
            continue
        if sparsity is not None:
            yield name, pruned(weight, sparsity)
        elif found := scaled.factor(weight.flatten()):
            yield name, found[1].view(weight.shape)


def by_nnc(python: str, layers: dict[str, Tensor]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.npz"
        np.savez(path, **{name: layer.flatten(1).numpy() for name, layer in layers.items()})
        done = subprocess.run([python, "-c", NNC, path], check=True, capture_output=True, text=True)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment with nncodec")
    weights = Path(os.environ.get("CREST_DATA") or ".") / "weights"
    parser.add_argument("--weights", type=Path, default=weights, help="default $CREST_DATA/weights")
    args = parser.parse_args()
    rows = []
    for network, (file, sparsities) in NETWORKS.items():
        for sparsity in sparsities:
            layers = dict(integers(args.weights / f"{file}.safetensors", sparsity))
            data = save(layers)
            assert all(torch.equal(layer, layers[name]) for name, layer in load(data).items())
            count = sum(layer.numel() for layer in layers.values())
            zeros = 1 - sum(int(layer.count_nonzero()) for layer in layers.values()) / count
            ours, theirs = len(data), by_nnc(args.python, layers)
            rows.append(
                [network, f"{zeros:.1%}", f"{count:,}", f"{theirs:,}", f"{ours:,}", f"{ours / theirs - 1:+.1%}"]
            )
            print(*rows[-1], flush=True)
    section = {
        "title": "The same integers by NNC",
        "command": "python bench/papers/nnc.py --python <of an environment with nncodec 2.1.3>",
        "columns": ["network", "zeros", "weights", "NNC bytes", "crest bytes", "difference"],
        "rows": rows,
        "notes": [
            "Of NNC the arithmetic-coded bytes alone, by the best of four ways for each layer; ours are whole files.",
            "Weights pruned by size in each layer, without training, to 14 integers and 0; MobileNet has its own.",
        ],
    }
    (RESULTS / "nnc.json").write_text(json.dumps([section], indent=1) + "\n")


if __name__ == "__main__":
    main()
