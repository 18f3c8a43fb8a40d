"""Calls past an op's gradient, where none is recorded."""

from __future__ import annotations

import pytest
import torch

import crest_ext
from crest_ext.ops._grad import call


def is_passed(*_: object) -> bool:
    return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality)


def test_gradient_is_passed_where_none_is_recorded() -> None:
    plain, differentiable = torch.zeros(2), torch.zeros(2, requires_grad=True)
    assert not call(is_passed, plain, differentiable, None)
    assert call(is_passed, plain, 1)
    with torch.no_grad():
        assert call(is_passed, differentiable)
    assert not is_passed()


def test_gradient_is_not_passed_in_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.no_grad():
        assert not call(is_passed, torch.zeros(2))


def test_result_is_the_same_without_gradient() -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(3, 1, 3, 3, requires_grad=True)
    with_gradient = crest_ext.depthwise_conv2d(x, weight)
    assert with_gradient.requires_grad
    with torch.no_grad():
        without = crest_ext.depthwise_conv2d(x, weight)
        compiled = torch.compile(crest_ext.depthwise_conv2d, backend="eager", fullgraph=True)(x, weight)
    assert not without.requires_grad
    torch.testing.assert_close(without, with_gradient.detach(), rtol=0, atol=0)
    torch.testing.assert_close(compiled, without, rtol=0, atol=0)
