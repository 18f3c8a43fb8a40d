"""MobileNet-v1 of each width and resolution of the paper: latency over multiply-adds, beside dense engines.

    python bench/mobilenet.py

One image, one thread, all engines of a point interleaved. Writes docs/mobilenet.json, and docs/mobilenet.svg from it.
--width measures one width only and keeps the others; --draw draws again what was measured. About half a minute for a
width; needs matplotlib (`pip install --group picture`).
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

import crest_ext
import peers
from bench_mobilenet import by_torch
from crest_ext.models import create_model, multiply_adds
from timing import interleaved

PATH = Path(__file__).parent.parent / "docs" / "mobilenet.json"
WIDTHS = (0.25, 0.5, 0.75, 1.0)
SIZES = (128, 160, 192, 224)
OURS = "crest, packed"


def measure(width: float) -> list[dict[str, Any]]:
    """Seconds by name, and multiply-adds, of each size."""
    points = []
    for size in SIZES:
        model = create_model("mobilenet_v1", width_mult=width).eval().requires_grad_(False)
        x = torch.randn(1, 3, size, size)
        packed, plain = crest_ext.pack(model, x), by_torch(model)
        calls = {OURS: peers.in_torch(packed, x)}
        calls |= {name: peer for name, peer in peers.dense(plain, x).items() if not isinstance(peer, str)}
        torch.testing.assert_close(packed(x), model(x), rtol=1e-3, atol=1e-4)
        macs = sum(multiply_adds(model, x).values())
        points.append({"width": width, "size": size, "multiply-adds": macs, "seconds": interleaved(calls, 31, 3)})
    return points


def draw(measured: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "crest"  # the same bytes each time
    from matplotlib import pyplot as plt

    points = sorted(measured["points"], key=lambda point: point["multiply-adds"])
    macs = [point["multiply-adds"] / 1e6 for point in points]
    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in points[0]["seconds"]:
        line = {"marker": "o", "linewidth": 2.5} if name == OURS else {"marker": ".", "linewidth": 1}
        panel.plot(macs, [1e3 * point["seconds"][name] for point in points], label=name, **line)
    for at, point in zip(macs, points, strict=True):
        where = at, 1e3 * min(point["seconds"].values())
        label = f"{point['width']:g}-{point['size']}"
        panel.annotate(label, where, (2, -14), textcoords="offset points", fontsize=7, rotation=-45)
    panel.set(xlabel="million multiply-adds", ylabel="milliseconds an image", xscale="log", yscale="log")
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize="small")
    figure.suptitle(f"MobileNet-v1, float32; {measured['machine']}", fontsize="small")
    figure.savefig(PATH.with_suffix(".svg"), metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, action="append", choices=WIDTHS, help="measure this width; all")
    parser.add_argument("--draw", action="store_true", help="draw docs/mobilenet.json, measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured = json.loads(PATH.read_text()) if PATH.exists() else {"points": []}
    if not args.draw:
        widths = args.width or WIDTHS
        kept = [point for point in measured["points"] if point["width"] not in widths]
        machine = [f"torch {torch.__version__}", f"{torch.get_num_threads()} thread", platform.machine()]
        measured = {"machine": ", ".join([*machine, crest_ext._C.active_isa()])}
        measured["points"] = kept + [point for width in widths for point in measure(width)]
        PATH.write_text(json.dumps(measured, indent=1) + "\n")
    draw(measured)


if __name__ == "__main__":
    main()
