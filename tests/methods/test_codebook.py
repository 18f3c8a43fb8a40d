"""Which value a weight takes, against all choices; and the estimate of bits, against the coder."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crest_ext import _C
from crest_ext.methods.code_length import Occupancy, value_bits
from crest_ext.methods.codebook import Codebook, nearest

NUMBERS = st.floats(-4, 4, width=16)


@given(
    weights=st.lists(NUMBERS, min_size=1, max_size=20),
    values=st.lists(NUMBERS, min_size=1, max_size=6, unique=True),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_nearest_is_the_least_of_all(weights: list[float], values: list[float], data: st.DataObject) -> None:
    w, c = torch.tensor(weights).double(), torch.tensor(sorted(values)).double()
    offsets = torch.tensor(data.draw(st.lists(st.floats(0, 9), min_size=len(c), max_size=len(c)))).double()
    costs = (w[:, None] - c).square() + offsets
    chosen = costs.gather(1, nearest(w, c, offsets)[:, None])[:, 0]
    torch.testing.assert_close(chosen, costs.min(1).values, rtol=0, atol=1e-9)


def cost(book: Codebook, index: Tensor, price: float) -> Tensor:
    """(n,) distance and bits of each weight, spelled out, by what the codebook says of bits now."""
    _, k = book.shape
    rows, columns = book.places // k, book.places % k
    kept = book.index > 0
    entered = Occupancy(rows[kept], columns[kept], book.shape).kept_bits(rows, columns)
    bits = value_bits(book.counts)
    costs = []
    for i, choice in enumerate(index.tolist()):
        value = book.values[choice - 1] if choice else 0.0
        spent = bits[choice - 1] + entered[i] if choice else 0.0
        costs.append((book.latent[i] - value) ** 2 + price * book.unit * spent)
    return torch.stack(costs)


@pytest.mark.parametrize("price", [0.0, 0.02, 0.2])
def test_assign_is_the_least_of_all(price: float) -> None:
    book = Codebook(torch.randn(6, 8) * (torch.rand(6, 8) < 0.7), 3)
    before = Codebook.__new__(Codebook)
    before.__dict__ |= book.__dict__
    everything = torch.stack([cost(before, torch.full_like(book.index, i), price) for i in range(len(book.values) + 1)])
    book.assign(price)
    if len(book.values) == len(before.values):
        torch.testing.assert_close(cost(before, book.index, price), everything.min(0).values)
    else:  # one value went, with the weights that had it: nobody else moved
        (gone,) = set(before.values.tolist()) - set(book.values.tolist())
        left = [i for i in range(len(everything)) if i == 0 or before.values[i - 1] != gone]
        stayed = torch.isin(before.values[everything.argmin(0) - 1], book.values) | (everything.argmin(0) == 0)
        chosen = (book.quantised() - book.latent).square()[stayed]
        best = everything.argmin(0)[stayed]
        taken = torch.cat([torch.zeros(1).double(), before.values])[best]
        torch.testing.assert_close(chosen, (taken - book.latent[stayed]).square())
        assert len(left) == len(before.values)


def test_k_means_against_all_partitions() -> None:
    """Price 0 on clusters that are apart: the best split of the sorted weights into three runs."""
    weights = torch.tensor([-2.1, -2.0, -1.9, 0.9, 1.0, 1.05, 3.0, 3.2], dtype=torch.float64)
    book = Codebook(weights, 3)
    for _ in range(10):
        book.assign(0.0)
        book.average()
    runs = [weights.tensor_split(cut) for cut in itertools.combinations(range(1, len(weights)), 2)]
    least = min(sum((run - run.mean()).square().sum().item() for run in three) for three in runs)
    distance = (book.quantised() - weights).square().sum().item()
    assert distance == pytest.approx(least, abs=1e-3)  # values have bfloat16's precision


def test_values_are_means_in_bfloat16() -> None:
    book = Codebook(torch.randn(40, 50), 8)
    book.assign(0.01)
    book.average()
    for i, value in enumerate(book.values.tolist()):
        assert value == book.latent[book.index == i + 1].mean().to(torch.bfloat16).item()
    assert book.values.tolist() == sorted(set(book.values.tolist()))


def test_zeros_stay_and_a_high_price_empties() -> None:
    weights = torch.randn(30, 20) * (torch.rand(30, 20) < 0.3)
    book = Codebook(weights, 8)
    assert torch.equal(book.places, weights.flatten().nonzero().flatten())
    kept = []
    for price in (0.0, 0.05, 0.2, 10.0):
        for _ in range(5):
            book.assign(price)
            book.average()
        kept.append(int(book.counts.sum()))
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1] == 0
    book.assign(1.0)  # there is nothing left to choose
    book.average()
    assert not book.quantised().any()
    assert Codebook(torch.zeros(3), 4).bits() == pytest.approx(0, abs=3)


def test_a_value_has_to_pay_for_its_place() -> None:
    """Two weights near others do not keep a value for themselves; a thousand do."""
    for count, expected in ((2, 1), (1000, 2)):
        book = Codebook(torch.cat([torch.ones(1000), torch.full((count,), 1.5)]), 2)
        for _ in range(5):
            book.assign(0.02)
            book.average()
        assert len(book.values) == expected


@pytest.mark.parametrize("dropped", [0.0, 0.8, 0.98])
def test_estimate_is_near_the_coder(dropped: float) -> None:
    """Rows and columns of several densities, as in trained layers: bits within 12 % of the file's.

    What the file says about the classes of rows and columns is not estimated: most with few weights.
    """
    rows, columns = torch.rand(300, 1) ** 3, torch.rand(1, 400) ** 3
    kept = torch.rand(300, 400) < (1 - dropped) * rows * columns * (16 if dropped else 1e9)
    book = Codebook(torch.randn(300, 400) * kept, 12)
    for _ in range(5):
        book.assign(0.01)
        book.average()
    flat = torch.zeros(300 * 400)
    flat[book.places] = book.quantised().float()
    real = 8 * len(_C.encode_tensor(flat.view(torch.uint8).numpy(), "float", 4, 400))
    assert book.bits() == pytest.approx(real, rel=0.12)
