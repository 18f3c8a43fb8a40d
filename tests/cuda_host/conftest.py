"""The two builds of the kernels for the CPU, each compiled once a session."""

from __future__ import annotations

import pytest
from host import Driver, why_not


def build(factory: pytest.TempPathFactory, race: bool) -> Driver:
    if reason := why_not():
        pytest.skip(reason)
    return Driver(factory.mktemp("cuda_host") / ("race" if race else "checked"), race)


@pytest.fixture(scope="session")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """With AddressSanitizer and UndefinedBehaviorSanitizer."""
    return build(tmp_path_factory, race=False)


@pytest.fixture(scope="session")
def race(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """With the checker of races."""
    return build(tmp_path_factory, race=True)
