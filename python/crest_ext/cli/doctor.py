"""`crest doctor`: what is installed, and whether it computes."""

from __future__ import annotations

import platform
from importlib import metadata

import torch
import typer

from crest_ext import _C, __version__, ops, report
from crest_ext.cli.common import Json

OPTIONAL = ("numpy", "typer", "rich", "pyyaml", "safetensors", "scikit-learn", "optuna")


def doctor(as_json: Json = False) -> None:
    """Versions, instruction sets, CUDA, threads, and a self-check; exit code 1 if the check fails."""
    cuda = torch.cuda.is_available()
    versions: dict[str, str | None] = {
        "crest_ext": __version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "compiler": _C.compiler,
        **{name: _version(name) for name in OPTIONAL},
    }
    found = report.DoctorReport(
        versions=versions,
        isas=tuple(_C.available_isas()),
        active_isa=_C.active_isa(),
        cuda_build=_C.cuda,
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) if cuda else (),
        threads=torch.get_num_threads(),
        checks=_checks(),
    )
    report.show(found, as_json)
    if not found.healthy:
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _checks() -> dict[str, bool]:
    """apply_mask against torch.where, on every instruction set there is."""
    before = _C.active_isa()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1001, generator=generator)
    mask = torch.rand(1001, generator=generator) < 0.5
    checks = {}
    try:
        for isa in _C.available_isas():
            _C.set_active_isa(isa)
            checks[isa] = torch.equal(ops.apply_mask(weight, mask), torch.where(mask, weight, 0))
    finally:
        _C.set_active_isa(before)
    return checks
