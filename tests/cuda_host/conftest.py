"""The two builds of the kernels for the CPU, each compiled once for all processes of a test run."""

from __future__ import annotations

import fcntl
import os

import pytest
from host import Driver, why_not


def build(factory: pytest.TempPathFactory, race: bool) -> Driver:
    if reason := why_not():
        pytest.skip(reason)
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    name = "race" if race else "checked"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second waits, and finds the program
        program = Driver.build(shared / name, race)
    return Driver(program, factory.mktemp(name))


@pytest.fixture(scope="session")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """With AddressSanitizer and UndefinedBehaviorSanitizer."""
    return build(tmp_path_factory, race=False)


@pytest.fixture(scope="session")
def race(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """With the checker of races."""
    return build(tmp_path_factory, race=True)
