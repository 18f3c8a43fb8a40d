"""Threads whose results come in order, few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")
MOST = 4  # each needs memory for a block of a tensor, several times


def workers() -> int:
    """As many threads as torch uses, up to MOST."""
    return min(torch.get_num_threads(), MOST)


def in_order(work: Callable[[Job], Result], jobs: Iterable[Job], threads: int) -> Iterator[Result]:
    """`map` on threads that are at most one job ahead of the caller each."""
    if threads == 1:
        yield from map(work, jobs)
        return
    with ThreadPoolExecutor(threads) as executor:
        running: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                running.append(executor.submit(work, job))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
