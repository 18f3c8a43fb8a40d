"""Instruction sets: what their objects may define, and how one is chosen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from crest_ext import _C
from driver import KERNELS, ROOT, defined_elsewhere

BUILD = next(ROOT.glob("build/*/CMakeFiles"), None)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")
@pytest.mark.skipif(BUILD is None, reason="the extension was not built in this checkout")
@pytest.mark.parametrize("isa", _C.available_isas())
def test_objects_define_only_their_namespace(isa: str) -> None:
    """An inline function emitted with AVX-512 could be the copy the linker keeps, and crash an older CPU."""
    assert BUILD
    folder = BUILD / f"crest_cpu_{isa}.dir" / "csrc" / "cpu"
    foreign = defined_elsewhere(isa, [folder / f"{kernel.name}.o" for kernel in KERNELS])
    assert foreign == []


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
