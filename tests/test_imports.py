"""Imports point down: a layer of the package knows only the layers below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import crest_ext

ROOT = Path(crest_ext.__file__).parent
# From the bottom up. A row may import the rows below it; parts of one row do not know each other.
LAYERS = [
    {"_C", "reference"},
    {"ops"},
    {"nn"},
    {"methods", "rewrite", "container", "data", "augment", "models"},
    {"optim"},
    {"train"},
    {"report"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The parts of crest_ext that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "crest_ext":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("crest_ext."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("crest_ext."))
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"


FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_point_down(path: Path) -> None:
    here = part(path)
    assert here in RANK, f"{here} has no layer: add it to LAYERS"
    for there in imports(path):
        if there in RANK:
            assert there == here or RANK[there] < RANK[here], f"{here} must not import {there}"
        else:
            assert there == "__version__" or here in ("cli", "__main__"), f"{here} imports crest_ext.{there}"


def test_import_is_light() -> None:
    """`import crest_ext` brings in nothing that torch has not brought in, but our own modules."""
    code = """
import sys, torch
before = set(sys.modules)
import crest_ext
print(*sorted({m.split(".")[0] for m in set(sys.modules) - before}))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    foreign = [m for m in out if m != "crest_ext" and m not in sys.stdlib_module_names]
    assert not {"typer", "rich", "yaml", "sklearn", "safetensors", "matplotlib"} & set(foreign), foreign
