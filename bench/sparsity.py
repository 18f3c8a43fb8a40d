"""A packed sparse layer over the share of zeros, against its peers, as a picture.

    python bench/sparsity.py

One thread, all of a point interleaved. Writes docs/sparsity.json, and docs/sparsity.svg from it; --draw draws again
what was measured. Under a minute; needs matplotlib (`pip install --group picture`).
"""

from __future__ import annotations

import argparse
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import crest_ext
from bench_sparse_linear import peers
from timing import interleaved

DOCS = Path(__file__).parent.parent / "docs"
ZEROS = [0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
LAYER = (1024, 1024)
ROWS = (1, 8, 64)
OURS, DENSE = "crest sparse_linear", "torch, dense"


def measure() -> dict[str, Any]:
    """Seconds by rows of x, by share of zeros, by name."""
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    for n in ROWS:
        seconds[str(n)] = {}
        x = torch.randn(n, LAYER[1])
        for zeros in ZEROS:
            weight, packed, others = peers(*LAYER, zeros, torch.get_num_threads())
            calls = {OURS: partial(crest_ext.sparse_linear, x, *packed), DENSE: partial(F.linear, x, weight)}
            calls |= {name: peer(x) for name, peer in others.items() if not isinstance(peer, str)}
            torch.testing.assert_close(calls[OURS](), calls[DENSE](), rtol=1e-4, atol=1e-3)
            seconds[str(n)][str(zeros)] = interleaved(calls, 31 if n < 64 else 15, 3)
    machine = [f"torch {torch.__version__}", f"{torch.get_num_threads()} thread", platform.machine()]
    return {"layer": LAYER, "machine": ", ".join([*machine, crest_ext._C.active_isa()]), "seconds": seconds}


def draw(measured: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "crest"  # the same bytes each time
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(measured["seconds"]), figsize=(12, 4), layout="constrained")
    for panel, (n, points) in zip(panels, measured["seconds"].items(), strict=True):
        zeros = [100 * float(z) for z in points]
        for name in next(iter(points.values())):
            speed = [point[DENSE] / point[name] for point in points.values()]
            panel.plot(zeros, speed, label=name, marker=".", linewidth=2.5 if name == OURS else 1)
        panel.set(xlabel="zeros, %", yscale="log", title=f"{n} row{'s'[: n != '1']} of x")
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("speed, dense torch = 1")
    panels[0].legend(fontsize="small")
    figure.suptitle(f"Linear {tuple(measured['layer'])}, float32; {measured['machine']}", fontsize="small")
    figure.savefig(DOCS / "sparsity.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="draw docs/sparsity.json, measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = DOCS / "sparsity.json"
    if not args.draw:
        path.write_text(json.dumps(measure(), indent=1) + "\n")
    draw(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
