"""What every bench shares: the threads, the machine in the header and in the JSON, and peers that may be missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from typing import Any

import pytest
import torch

import crest_ext
from crest_ext import _C


def machine() -> dict[str, Any]:
    return {
        "crest_ext": f"{crest_ext.__version__}, {_C.active_isa()}, GCC or Clang {_C.compiler}",
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "peers": peers(),
    }


@cache
def peers() -> str:
    """What `pip install .[peers]` names and is here, the libraries that two of them run on, and DeepSparse."""
    extra = [name for name in metadata.requires("crest_ext") or () if 'extra == "peers"' in name]
    names = [*(re.split(r"[^\w-]", name)[0] for name in extra), "ai-edge-litert", "mkl"]
    found = [f"{name} {version}" for name in sorted(names) if (version := installed(name))]
    if python := os.environ.get("CREST_DEEPSPARSE"):
        code = "from importlib import metadata; print(metadata.version('deepsparse'))"
        version = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
        found += [f"deepsparse {version}"] if version else []
    return ", ".join(found)


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def pytest_report_header() -> list[str]:
    return [f"{name}: {value}" for name, value in machine().items()]


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json["machine_info"]["crest"] = machine()


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, unless a bench is parametrized by `threads`. More than the machine has cores are skipped."""
    wanted = getattr(request, "param", 1)
    if wanted > (os.cpu_count() or 1):
        pytest.skip(f"needs {wanted} cores")
    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> Callable[[Callable[..., Any]], Callable[..., Any] | str]:
    """torch.compile of a function, or the reason why it does not run here, as `compare` takes it."""
    torch.compiler.reset()
    if request.config.getoption("benchmark_disable"):
        return lambda _: "takes longer to compile than a smoke test may"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name):
        return lambda _: "no C++ compiler"
    return lambda function: torch.compile(function, fullgraph=True)
