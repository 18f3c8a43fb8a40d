"""Draws docs/size.svg of bench/papers/results: error over bytes of LeNet-5, by ours and by others.

pip install matplotlib
python bench/papers/picture.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
RECIPES = ("lenet_5_small", "lenet_5_accurate")


def points(recipe: str) -> dict[str, tuple[float, float]]:
    """Bytes and error in % by the name of the row; of our seeds the median alone."""
    (section,) = json.loads((HERE / "results" / f"size_{recipe}.json").read_text())
    who, error, size = (section["columns"].index(name) for name in ("network", "test error %", "bytes"))
    rows = {row[who]: (float(row[size].replace(",", "")), float(row[error])) for row in section["rows"]}
    return {name: point for name, point in rows.items() if not name.startswith("seed")}


def main() -> None:
    ours = {recipe: points(recipe) for recipe in RECIPES}
    others = {name: point for found in ours.values() for name, point in found.items() if name != "median"}
    mpl.rcParams |= {"svg.hashsalt": "size", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.set(xscale="log", xlabel="bytes of the file", ylabel="test error, %", title="LeNet-5 on MNIST")
    for name, (size, error) in others.items():
        kept = name.startswith("dense")
        axes.plot(size, error, "s" if kept else "o", color="tab:gray" if kept else "tab:blue")
        axes.annotate(name, (size, error), (4, 4), textcoords="offset points", rotation=30 if kept else 0)
    for found in ours.values():
        axes.plot(*found["median"], "*", color="tab:red", markersize=12)
        axes.annotate("crest", found["median"], (6, -10), textcoords="offset points", color="tab:red")
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    figure.savefig(HERE.parents[1] / "docs" / "size.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
