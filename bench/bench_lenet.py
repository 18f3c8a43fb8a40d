"""LeNets with the weights that Dynamic Network Surgery's authors released, by `pack` and by engines.

Source: Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016. The images are MNIST's test set; all of
them are classified alike by the network as it is and packed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import crest_ext
import peers
from crest_ext import data, train
from crest_ext.models import create_model
from timing import compare

NETWORKS = {
    "LeNet-300-100": ("lenet_300_100", "dns_lenet300100_sparse"),
    "LeNet-5": ("lenet_5", "dns_lenet5_sparse"),
}


@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def bench_lenet(benchmark: Any, network: str, n: int, threads: int) -> None:
    name, weights = NETWORKS[network]
    path = Path(os.environ.get("CREST_DATA") or ".") / "weights" / f"{weights}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    model = create_model(name).eval().requires_grad_(False)
    model.load_state_dict(load_file(path))
    images = data.load("mnist").test.x
    x = images[:n].clone()
    packed = crest_ext.pack(model, x)
    others = peers.engines(model, x) if benchmark.enabled else {"torch": peers.in_torch(model, x)}
    compare(
        benchmark,
        peers.in_torch(packed, x),
        others,
        group="LeNets with the authors' weights after surgery, float32",
        case=f"{network}, {n} image{'s'[: n > 1]}, {threads} thread{'s'[: threads > 1]}",
        headline=f"{network} with the authors' weights after surgery, {n} image{'s'[: n > 1]}" if threads == 1 else "",
        rounds=50,
        **{"parameters kept": train.count(model)[0]},
    )
    with torch.no_grad():
        assert torch.equal(packed(images).argmax(1), model(images).argmax(1))
