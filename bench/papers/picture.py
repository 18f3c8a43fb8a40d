"""Draws of bench/papers/results docs/size.svg, error over bytes of LeNet-5 by ours and by others, and
docs/mobilenet_cifar10.svg, accuracy over the work of MobileNets of each width. About five seconds.

pip install --group picture
python bench/papers/picture.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
MOBILENETS = HERE / "results" / "mobilenet_cifar10.json"
RECIPES = ("lenet_5_small", "lenet_5_accurate")


def points(recipe: str) -> dict[str, tuple[float, float]]:
    """Bytes and error in % by the name of the row; of our seeds the median alone."""
    (section,) = json.loads((HERE / "results" / f"size_{recipe}.json").read_text())
    who, error, size = (section["columns"].index(name) for name in ("network", "test error %", "bytes"))
    rows = {row[who]: (float(row[size].replace(",", "")), float(row[error])) for row in section["rows"]}
    return {name: point for name, point in rows.items() if not name.startswith("seed")}


def size() -> None:
    ours = {recipe: points(recipe) for recipe in RECIPES}
    others = {name: point for found in ours.values() for name, point in found.items() if name != "median"}
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.set(xscale="log", xlabel="bytes of the file", ylabel="test error, %", title="LeNet-5 on MNIST")
    crest = {f"crest, {recipe}": found["median"] for recipe, found in ours.items()}
    for number, (name, (size, error)) in enumerate(sorted((others | crest).items(), key=lambda item: item[1]), 1):
        marker, color = (
            ("*", "tab:red") if name in crest else ("s", "tab:gray") if "dense" in name else ("o", "tab:blue")
        )
        axes.plot(size, error, marker, color=color, markersize=6, label=f"{number} {name}: {size:,.0f}")
        above = 6 + 9 * (number % 4 if "dense" in name else 0)  # those of the dense network are close together
        axes.annotate(str(number), (size, error), (0, above), textcoords="offset points", ha="center", color=color)
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right", fontsize=8)
    figure.savefig(DOCS / "size.svg", metadata={"Date": None})


def widths() -> None:
    (section,) = json.loads(MOBILENETS.read_text())
    alpha, error, work, milliseconds = (
        section["columns"].index(name) for name in ("alpha", "test error %", "million multiply-adds", "packed ms")
    )
    rows = section["rows"]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.set(xscale="log", xlabel="million multiply-adds", ylabel="test accuracy, %", title="MobileNet-v1 on CIFAR-10")
    at = [(float(row[work]), 100 - float(row[error])) for row in rows]
    axes.plot(*zip(*at, strict=True), "-o", color="tab:red")
    for row, point in zip(rows, at, strict=True):
        label = f"{row[alpha]}: {row[milliseconds]} ms"
        axes.annotate(label, point, (4, -12), textcoords="offset points", fontsize=8)
    axes.margins(0.2)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(DOCS / "mobilenet_cifar10.svg", metadata={"Date": None})


def main() -> None:
    mpl.rcParams |= {"svg.hashsalt": "size", "svg.fonttype": "none", "font.size": 9}
    size()
    if MOBILENETS.exists():  # an hour and more to make
        widths()


if __name__ == "__main__":
    main()
