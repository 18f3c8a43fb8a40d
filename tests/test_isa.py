"""Instruction sets: what their objects may define, and how one is chosen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crest_ext import _C
from driver import KERNELS, kernel_flags

COMPILERS = {"baseline": "g++", "avx2": "g++", "avx512": "g++", "neon": "aarch64-linux-gnu-g++"}


@pytest.mark.parametrize("isa", COMPILERS)
def test_objects_define_only_their_namespace(isa: str, tmp_path: Path) -> None:
    """An inline function emitted with AVX-512 could be the copy the linker keeps, and crash an older CPU."""
    compiler = shutil.which(COMPILERS[isa])
    if compiler is None:
        pytest.skip(f"no {COMPILERS[isa]}")
    flags = ["-fPIC", "-w", *kernel_flags(isa)]
    probe = subprocess.run([compiler, *flags, "-fsyntax-only", "-xc++", "-"], input=b"", capture_output=True)
    if probe.returncode:
        pytest.skip(f"{compiler} has no {isa}")
    assert KERNELS
    subprocess.run([compiler, *flags, "-c", *map(str, KERNELS)], cwd=tmp_path, check=True)
    objects = sorted(tmp_path.glob("*.o"))
    assert len(objects) == len(KERNELS)
    out = subprocess.run(
        ["nm", "--defined-only", "--extern-only", *objects], capture_output=True, text=True, check=True
    )
    defined = re.findall(r"^[0-9a-f]+ \S (.*)$", out.stdout, re.MULTILINE)
    assert len(defined) >= len(KERNELS)
    mangled = re.compile(rf"_ZNK?5crest{len(isa)}{isa}")  # crest::<isa>::
    assert [name for name in defined if not mangled.match(name)] == []


def run_with(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from crest_ext import _C; print(_C.active_isa())"
    environment = os.environ | {"CREST_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", _C.available_isas())
def test_environment_forces_one(isa: str) -> None:
    run = run_with(isa)
    assert (run.returncode, run.stdout.strip()) == (0, isa), run.stderr


@pytest.mark.parametrize("isa", ["sse9", "neon" if "baseline" in _C.available_isas() else "avx2"])
def test_environment_with_one_not_there(isa: str) -> None:
    run = run_with(isa)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last == f"ValueError: CREST_ISA: must be one of {', '.join(_C.available_isas())} on this CPU, got {isa}"


def test_setter(isa: str) -> None:
    assert _C.active_isa() == isa


def test_setter_with_one_not_there() -> None:
    before = _C.active_isa()
    with pytest.raises(ValueError, match=r"^CREST_ISA: must be one of .*\bon this CPU, got mmx$"):
        _C.set_active_isa("mmx")
    assert _C.active_isa() == before


def test_best_first() -> None:
    assert _C.available_isas() in (["avx512", "avx2", "baseline"], ["avx2", "baseline"], ["baseline"], ["neon"])
