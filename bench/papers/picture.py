"""Draws docs/size.svg of bench/papers/results: error over bytes of LeNet-5, by ours and by others.

pip install --group picture
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
    figure.savefig(HERE.parents[1] / "docs" / "size.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
