"""Layers of low rank as two thinner ones."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from crest_ext.nn.layers import layers
from crest_ext.nn.replace import Model, reason_not_to_replace, replace_layers
from crest_ext.ops.depthwise_conv2d import is_channels_last
from crest_ext.ops.truncated_svd import rank_of, singular_values, truncated_svd
from crest_ext.rewrite.materialize import materialize


@dataclass(frozen=True)
class FactorizedLayer:
    """What was made of one layer."""

    name: str
    rank: int | None  # None: left as it is
    before: int  # weights, biases not counted
    after: int
    error: float  # Frobenius norm of the change over that of the weight
    note: str  # why it is left as it is

    def __str__(self) -> str:
        if self.rank is None:
            return f"{self.name}: left as it is: {self.note}"
        fewer = f"{self.before:,} -> {self.after:,} weights"
        return f"{self.name}: rank {self.rank}, {fewer}, relative error {self.error:.2g}"


@dataclass(frozen=True)
class FactorizeReport:
    """What `factorize` did, layer by layer."""

    layers: tuple[FactorizedLayer, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers))


@overload
def factorize(
    model: Model,
    *,
    energy: float | None = ...,
    rank: int | Mapping[str, int] | None = ...,
    squared: bool = ...,
    explain: Literal[False] = False,
) -> Model: ...
@overload
def factorize(
    model: Model,
    *,
    energy: float | None = ...,
    rank: int | Mapping[str, int] | None = ...,
    squared: bool = ...,
    explain: Literal[True],
) -> tuple[Model, FactorizeReport]: ...


def factorize(
    model: Model,
    *,
    energy: float | None = None,
    rank: int | Mapping[str, int] | None = None,
    squared: bool = True,
    explain: bool = False,
) -> Model | tuple[Model, FactorizeReport]:
    """A copy whose Linear and Conv2d layers of low rank are pairs of thinner layers.

    A Linear (m, k) becomes Linear(k, r) and Linear(r, m); a Conv2d with n filters (c, h, w) becomes r such filters and
    a 1x1 convolution to n, by group. Each pair is the best of its rank in the Frobenius norm, and is an nn.Sequential
    in the layer's place, with the singular values shared out evenly, so that training can go on. Masked layers come
    out plain, as from `materialize`.

    Args:
        model: not changed.
        energy: in (0, 1]; the smallest rank whose singular values hold this share of their sum, of all groups
            together. At 1 the copy computes the same, up to rounding.
        rank: instead of energy; of all layers that can have it, or {name or fnmatch pattern: rank}: the first match
            wins, and what matches nothing is left as it is.
        squared: energy is of the squared singular values, or of the singular values themselves.
        explain: also return what was done to each layer, and why nothing was: a layer is left as it is where two
            thinner ones would have no fewer weights.

    Returns:
        The model; with explain, (model, report).

    Raises:
        ValueError: neither or both of energy and rank, one of them out of range, a pattern that matches no layer, or
            a weight that is not finite.

    Work: for energy, the eigenvalues of each layer's and group's Gram matrix; `truncated_svd` of those that change.
    Source: Alvarez, Salzmann, "Compression-aware Training of Deep Networks", NIPS 2017, section 3.
    """
    if (energy is None) == (rank is None):
        raise ValueError(f"factorize: one of energy and rank must be given, got {energy} and {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"factorize: energy must be in (0, 1], got {energy}")
    if isinstance(rank, bool) or not (rank is None or isinstance(rank, Mapping) or hasattr(rank, "__index__")):
        raise ValueError(f"factorize: rank must be an int, or ints by name, got {rank!r}")
    if isinstance(rank, Mapping) and not rank:
        raise ValueError("factorize: rank must name a layer of the model, got none")
    model = materialize(model)
    ranks = rank if isinstance(rank, Mapping) else {} if rank is None else {"*": operator.index(rank)}
    everywhere = not isinstance(rank, Mapping)
    found = list(layers(model))
    for pattern in () if everywhere else ranks:
        if not any(fnmatchcase(name, pattern) for name, _, _ in found):
            raise ValueError(f"factorize: rank must name a layer of the model, got {pattern!r}")
    pairs, rows = dict[nn.Module, nn.Module](), []
    for name, layer, reason in found:
        wanted = next((r for pattern, r in ranks.items() if fnmatchcase(name, pattern)), None)
        if reason is None and ranks and wanted is None:
            reason = "is not named"
        elif reason is None:
            reason = reason_not_to_replace(model, layer)
        if reason is None and everywhere and wanted is not None and wanted > (most := _most(layer)):
            reason = f"has a rank of at most {most}"
        row, pair = (_left(name, layer, reason), None) if reason else _factors(name, layer, energy, wanted, squared)
        if pair is not None:
            pairs[layer] = pair
        rows.append(row)
    result = replace_layers(model, pairs)
    return (result, FactorizeReport(tuple(rows))) if explain else result


def _most(layer: nn.Linear | nn.Conv2d) -> int:
    """The largest rank of a layer's matrices."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return min(len(layer.weight) // groups, layer.weight[0].numel())


def _left(name: str, layer: nn.Linear | nn.Conv2d, why: str) -> FactorizedLayer:
    return FactorizedLayer(name, None, layer.weight.numel(), layer.weight.numel(), 0.0, why)


def _factors(
    name: str, layer: nn.Linear | nn.Conv2d, energy: float | None, rank: int | None, squared: bool
) -> tuple[FactorizedLayer, nn.Module | None]:
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.detach()
    matrix = weight.reshape(groups, len(weight) // groups, -1)
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    if not matrix.isfinite().all():
        raise ValueError(f"factorize: weight of layer {name!r} must be finite")
    _, rows, columns = matrix.shape
    if rank is not None and not 1 <= rank <= min(rows, columns):
        raise ValueError(f"factorize: rank of layer {name!r} must be in [1, {min(rows, columns)}], got {rank}")
    if rank is None:
        assert energy is not None
        rank = rank_of(singular_values(matrix), energy, squared)
    after = groups * rank * (rows + columns)
    if after >= weight.numel():
        return _left(name, layer, f"rank {rank} needs {after:,} weights instead of {weight.numel():,}"), None
    u, s, vh = truncated_svd(matrix, rank)
    root = s.sqrt()
    narrow, wide = root[:, :, None] * vh, u * root[:, None]
    error = ((matrix - wide @ narrow).norm() / matrix.norm()).item() if matrix.any() else 0.0
    pair = _pair(layer, narrow.flatten(0, 1), wide.flatten(0, 1))
    return FactorizedLayer(name, rank, weight.numel(), after, error, ""), pair


def _pair(layer: nn.Linear | nn.Conv2d, narrow: Tensor, wide: Tensor) -> nn.Sequential:
    """Layers with these weights, (groups r, columns) and (all rows, r), and what else the layer has."""
    first: nn.Module
    second: nn.Module
    like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, len(narrow), bias=False, **like)
        second = nn.Linear(len(narrow), layer.out_features, bias=layer.bias is not None, **like)
    else:
        first = nn.Conv2d(
            layer.in_channels,
            len(narrow),
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            bias=False,
            padding_mode=layer.padding_mode,
            **like,
        )
        bias = layer.bias is not None
        second = nn.Conv2d(len(narrow), layer.out_channels, 1, groups=layer.groups, bias=bias, **like)
    with torch.no_grad():
        for module, values in ((first, narrow), (second, wide)):
            if is_channels_last(layer.weight):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            module.weight.copy_(values.view_as(module.weight))
            module.weight.requires_grad_(layer.weight.requires_grad)
        if layer.bias is not None:
            second.bias = layer.bias
    return nn.Sequential(first, second).train(layer.training)
