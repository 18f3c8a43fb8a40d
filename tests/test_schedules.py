from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_ext.train import Plateau


def rates(schedule: Plateau, errors: list[float]) -> list[float | None]:
    """After 0, 1, 2, ... epochs, to the one that stops."""
    found = [schedule.after(errors[:n]) for n in range(len(errors) + 1)]
    return found[: found.index(None) + 1] if None in found else found


def test_halves_after_ten_epochs_without_improvement_then_not_within_eight() -> None:
    found = rates(Plateau(1.0), [0.5] + [0.6] * 40)
    assert found == [1.0] * 11 + [0.5] * 9 + [0.25] * 9 + [0.125] * 2 + [None]
    # the best is epoch 1: halved after epochs 11, 20 and 29; stopped after epoch 31


def test_improvement_starts_the_wait_anew() -> None:
    errors = [0.5] * 10 + [0.4] + [0.4] * 9
    assert rates(Plateau(1.0), errors) == [1.0] * 21
    assert Plateau(1.0).after([*errors, 0.4]) == 0.5


def test_an_improvement_does_not_raise_the_rate_nor_end_the_cooldown() -> None:
    errors = [0.5] * 11 + [0.4]
    assert Plateau(1.0).after(errors) == 0.5
    assert rates(Plateau(1.0, patience=1), [0.5, 0.5, 0.4] + [0.4] * 10)[2:] == [0.5] * 9 + [0.25] * 3


def test_stops_once_the_rate_has_fallen_by_more_than_2000() -> None:
    """Each drop comes just before the thirtieth epoch without one: eleven halvings, 2048."""
    errors = [1 / (1 + epoch // 29) for epoch in range(400)]
    found = rates(Plateau(1.0), errors)
    assert found[-1] is None
    assert len(found) < 400
    assert found[-2] == 2.0**-10
    assert None not in rates(Plateau(1.0, fall=math.inf), errors)


def test_steady_improvement_keeps_the_rate() -> None:
    assert Plateau(0.3).after([1 / (1 + epoch) for epoch in range(200)]) == 0.3
    assert Plateau(0.3).after([]) == 0.3


def test_what_is_not_a_number_is_no_improvement() -> None:
    assert Plateau(1.0).after([math.nan] * 9) == 1.0
    assert Plateau(1.0).after([math.nan] * 10) == 0.5
    assert Plateau(1.0).after([0.5] + [math.nan] * 30) is None


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=120))
def test_is_the_paper_told_epoch_by_epoch(errors: list[float]) -> None:
    """The rules one by one, over the whole history of each epoch."""
    halved: list[int] = []
    for epoch in range(1, len(errors) + 1):
        so_far = errors[:epoch]
        waited = epoch - 1 - so_far.index(min(so_far))
        if waited >= 30:
            assert Plateau(1.0).after(so_far) is None
            return
        if waited >= 10 and not any(epoch - h <= 8 for h in halved):
            halved.append(epoch)
        expected = None if 2 ** len(halved) > 2000 else 2.0 ** -len(halved)
        assert Plateau(1.0).after(so_far) == expected
        if expected is None:
            return


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"start": 0.0}, "start must be a finite number > 0, got 0.0"),
        ({"start": math.inf}, "start must be a finite number > 0, got inf"),
        ({"start": 1.0, "patience": 0}, "patience must be at least 1, got 0"),
        ({"start": 1.0, "cooldown": -1}, "cooldown must be at least 0, got -1"),
        ({"start": 1.0, "stop": 0}, "stop must be at least 1, got 0"),
        ({"start": 1.0, "fall": 0.5}, "fall must be at least 1, got 0.5"),
    ],
)
def test_refuses(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Plateau(**kwargs)  # type: ignore[arg-type]
    assert str(caught.value) == f"Plateau: {message}"
