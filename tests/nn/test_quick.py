"""nn.quick computes what torch's modules do."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from crest_ext.nn.quick import QUICK

POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2),
    nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    nn.MaxPool2d((2, 3), (1, 2), dilation=(2, 1)),
    nn.MaxPool2d((5, 1), (3, 2), (2, 0), ceil_mode=True),
    nn.MaxPool2d(2, 3, padding=1, ceil_mode=True),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_max_pool2d_equals_torch(pool: nn.MaxPool2d) -> None:
    quick = QUICK[nn.MaxPool2d].from_module(pool)
    x = torch.randn(2, 5, 9, 11)
    x[0, 1, 4, 4], x[1, 2, 3:7, 3:7], x[1, 0, 5, 5] = torch.nan, -torch.inf, torch.inf
    for image in (x, x.to(memory_format=torch.channels_last), x[:1], x[:0], x.double(), x[0]):
        assert torch.equal(quick(image).nan_to_num(7.0), pool(image).nan_to_num(7.0))
        assert quick(image).is_contiguous()


def test_max_pool2d_of_every_size() -> None:
    for pool in POOLS:
        quick = QUICK[nn.MaxPool2d].from_module(pool)
        for h, w in itertools.product(range(6, 13), (7, 10)):
            x = torch.randn(1, 2, h, w)
            assert torch.equal(quick(x), pool(x)), (pool, h, w)


def test_max_pool2d_returns_indices() -> None:
    pool, x = nn.MaxPool2d(2, return_indices=True), torch.randn(1, 2, 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(QUICK[nn.MaxPool2d].from_module(pool)(x), pool(x), strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_local_response_norm(size: int, beta: float) -> None:
    norm = nn.LocalResponseNorm(size, alpha=0.3, beta=beta, k=1.7)
    quick = QUICK[nn.LocalResponseNorm].from_module(norm)
    for shape in ((2, 7, 5, 4), (1, 1, 3, 3), (3, 20, 6)):
        x = 3 * torch.randn(shape)
        before = x.clone()
        torch.testing.assert_close(quick(x), norm(x))
        assert torch.equal(x, before)


@pytest.mark.parametrize("module", [nn.MaxPool2d(2), nn.LocalResponseNorm(3)], ids=["max_pool2d", "norm"])
def test_is_an_ordinary_module(module: nn.Module) -> None:
    quick = QUICK[type(module)].from_module(module)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    expected = module(x.detach())
    for same in (quick, copy.deepcopy(quick), pickle.loads(pickle.dumps(quick))):
        torch.testing.assert_close(same(x.detach()), expected)
    torch.testing.assert_close(torch.export.export(quick, (x.detach(),)).module()(x.detach()), expected)
    assert torch.autograd.gradcheck(quick, (x.double(),))
