"""The checks can fail: each planted fault is found, by its own message, and a faultless kernel passes."""

from __future__ import annotations

import pytest
import torch
from host import FORWARD, HERE, RANDOM, REVERSE, Case, Driver, HostError


def plant(kernel: str, threads: int = 64, blocks: int = 1, order: int = FORWARD) -> Case:
    return Case(kernel, torch.float32, (threads, blocks), [torch.zeros(threads)], order=order)


def line_of(marker: str, after: str) -> int:
    """The number of the first line with `marker` in the planted kernel `after`."""
    lines = (HERE / "planted.cuh").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if f" {after}(" in line)
    return next(i for i, line in enumerate(lines[start:], start + 1) if marker in line)


@pytest.mark.parametrize("order", [FORWARD, REVERSE, RANDOM])
def test_faultless(checked: Driver, race: Driver, order: int) -> None:
    for driver in (checked, race):
        [[y]] = driver(plant("faultless", blocks=3, order=order))
        assert torch.equal(y, torch.full((64,), 65.0))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("global_out_of_bounds", "heap-buffer-overflow"),
        ("shared_out_of_bounds", "heap-buffer-overflow|out of bounds"),
        ("misaligned", "misaligned address"),
    ],
)
def test_sanitizers(checked: Driver, kernel: str, message: str) -> None:
    with pytest.raises(HostError, match=message):
        checked(plant(kernel))


def test_shared_memory_starts_as_nan(checked: Driver) -> None:
    [[y]] = checked(plant("not_initialised"))
    assert y.isnan().all()


@pytest.mark.parametrize("order", [FORWARD, REVERSE, RANDOM])
@pytest.mark.parametrize(
    ("kernel", "blocks", "message"),
    [
        ("read_without_barrier", 1, "race: (read after write|write after read)"),
        ("rewrite_without_barrier", 1, "race: (write after read|read after write)"),
        ("count_without_atomic", 1, "race: (read|write) after write"),
        ("blocks_collide", 2, "race: write after write at .*, block [01] .* and block [01]"),
    ],
)
def test_races(race: Driver, kernel: str, blocks: int, message: str, order: int) -> None:
    with pytest.raises(HostError, match=message) as error:
        race(plant(kernel, blocks=blocks, order=order))
    assert f"planted::{kernel}" in str(error.value)  # and where


def test_divergent_barrier(checked: Driver) -> None:
    line = line_of("__syncthreads", after="divergent_barrier")
    with pytest.raises(HostError, match=rf"divergent: .*planted.cuh:{line + 2}.*planted.cuh:{line}"):
        checked(plant("divergent_barrier"))


def test_barrier_not_reached(checked: Driver) -> None:
    line = line_of("__syncthreads", after="barrier_not_reached")
    with pytest.raises(HostError, match=rf"deadlock: 32 of 64 threads ended; 32 wait at .*planted.cuh:{line} "):
        checked(plant("barrier_not_reached"))


def test_lane_not_there(checked: Driver) -> None:
    line = line_of("__shfl_xor_sync", after="lane_not_there")
    with pytest.raises(HostError, match=rf"deadlock: 33 of 64 threads ended; 31 wait at .*planted.cuh:{line} "):
        checked(plant("lane_not_there"))


@pytest.mark.parametrize("blocks", [0, 2**31])
def test_grid_limits(checked: Driver, blocks: int) -> None:
    with pytest.raises(HostError, match=f"CUDA grid must have 1 to 2147483647 blocks, got {blocks}"):
        checked(plant("faultless", blocks=blocks))
