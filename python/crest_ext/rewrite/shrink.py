"""Channels and neurons that do nothing, taken out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from crest_ext.nn import DepthwiseConv2d, LoweredConv2d, ZeroConv2d
from crest_ext.nn.layers import layers
from crest_ext.nn.replace import replace_layers
from crest_ext.rewrite.channels import Channels
from crest_ext.rewrite.follow import enter_branches, follow
from crest_ext.rewrite.hand_over import Take, hand_over
from crest_ext.rewrite.materialize import materialize
from crest_ext.rewrite.narrow import empty, narrow, narrow_by_channel
from crest_ext.rewrite.shapes import drop_shapes
from crest_ext.rewrite.unchanged import copies, unchanged

Model = TypeVar("Model", bound=nn.Module)
BY_CHANNEL = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)


@dataclass(frozen=True)
class ShrunkLayer:
    """What was made of one layer: a Linear, a convolution, or another with parameters, which is left as it is.

    Norms and PReLU are none of these: what they have is a number or two for each channel of a layer.
    """

    name: str
    before: tuple[int, ...]  # shape of the weight, or of the first parameter
    after: tuple[int, ...]  # empty: it has none any more
    note: str  # why outputs, or all of it, are left

    def __str__(self) -> str:
        if not self.after:
            return f"{self.name}: {self.before} -> a constant"
        if self.before == self.after:
            return f"{self.name}: left as it is: {self.note}"
        return f"{self.name}: {self.before} -> {self.after}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` did, layer by layer."""

    layers: tuple[ShrunkLayer, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers))


@overload
def shrink(
    model: Model,
    example_input: Any,
    *,
    round_to: int | None = ...,
    ignored_layers: Sequence[str] = ...,
    depth: bool = ...,
    shape: bool = ...,
    optimizer: torch.optim.Optimizer | None = ...,
    explain: Literal[False] = False,
) -> Model: ...
@overload
def shrink(
    model: Model,
    example_input: Any,
    *,
    round_to: int | None = ...,
    ignored_layers: Sequence[str] = ...,
    depth: bool = ...,
    shape: bool = ...,
    optimizer: torch.optim.Optimizer | None = ...,
    explain: Literal[True],
) -> tuple[Model, ShrinkReport]: ...


def shrink(
    model: Model,
    example_input: Any,
    *,
    round_to: int | None = None,
    ignored_layers: Sequence[str] = (),
    depth: bool = False,
    shape: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    explain: bool = False,
) -> Model | tuple[Model, ShrinkReport]:
    """A copy without the channels and neurons that do nothing: in evaluation it computes the same.

    An output of a Linear, Conv2d or ConvTranspose2d (without groups) goes where nothing reads it, all weights for it
    being zero; and where it is the same whatever the input (a zero filter, through BatchNorm with its running
    statistics, activations, pooling) and can be folded into the biases of what reads it: where it is zero, or no zero
    padding lies between, nor a ConvTranspose2d. What this leaves unread goes as well. Followed are sums, products,
    concatenations, grouped and depthwise convolutions (groups stay equal), flattening, moved dimensions, and zeros that
    are put before and behind the channels, which stay. Other operations, and channels that the model's code names by
    number (slices, x.view(-1, 400)), keep all theirs. The classes of the modules and the names in the state_dict stay,
    but for a bias where one was needed to fold into; masked layers come out plain, as from `materialize`.

    Branches that the model's code takes in training only (auxiliary heads) are followed as well where they have layers
    of their own, and are cut with what they read. Where torch.export cannot trace the model in training, as it needs
    other arguments then, such layers are left, and the report says so.

    In training BatchNorm replaces a constant by its beta, so a network with such channels trains on a little
    differently; see also `recalibrate`. A residual branch that is a constant, whatever the input, keeps one channel in
    each of its layers, or with depth none of its convolutions: its addition is code.

    Args:
        model: not changed.
        example_input: what the model takes, a tuple if several; traced by torch.export and run. The copy serves other
            sizes too, where the model's code does the same for them.
        round_to: keeps some of the channels that could go, so that the outputs of each layer are a multiple of this.
        ignored_layers: names or fnmatch patterns of layers to leave as they are.
        depth: also take out whole convolutions, where nothing but constants is read of their outputs: a `ZeroConv2d`
            stands in their place.
        shape: also take out filter shapes, weight[:, c, i, j], where that makes less work: outer rows and columns of a
            window that are zero in all filters, or all but a few shapes, by a `LoweredConv2d`. Not with groups.
        optimizer: of the model; trains the copy from now on, instead: its parameters are replaced in place and its
            state (momentum and the like, of the parameter's shape) is cut with them. Finish what else prunes first.
        explain: also return what was done to each layer, and why nothing was; other kinds of layers are left.

    Returns:
        The model; with explain, (model, report).

    Raises:
        ValueError: the model cannot be traced, example_input is empty, round_to is below 1, a pattern matches no layer,
            or the optimizer trains nothing of the model or keeps state of another shape.
        RuntimeError: the copy did not compute the same for example_input, to 1e-5 of the greatest output (8e-3 where
            the arithmetic is float16's or TF32's, 6e-2 for bfloat16). No error changes the optimizer.

    Work: two runs of the model on example_input and one of the copy, besides tracing it; as much again where evaluation
    leaves parameters unread.
    Source: Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, section 3.
    """
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    if any(isinstance(x, Tensor) and x.numel() == 0 for x in pytree.tree_leaves(args)):
        raise ValueError("shrink: example_input must not be empty")
    if round_to is not None and (type(round_to) is not int or round_to < 1):
        raise ValueError(f"shrink: round_to must be an int of at least 1, got {round_to}")
    ignored_layers = (ignored_layers,) if isinstance(ignored_layers, str) else ignored_layers
    small = materialize(model)
    found: list[tuple[str, nn.Module, str | None]] = list(layers(small))
    found += [(name, m, None) for name, m in small.named_modules() if type(m) is nn.ConvTranspose2d]
    barred: dict[nn.Module, str] = {
        layer: reason for _, layer, reason in found if reason is not None and type(layer) is not DepthwiseConv2d
    }
    for pattern in ignored_layers:
        ignored = [layer for name, layer, _ in found if fnmatchcase(name, pattern)]
        if not ignored:
            raise ValueError(f"shrink: ignored_layers must name layers of the model, got {pattern!r}")
        barred.update(dict.fromkeys(ignored, "is ignored"))
    with _evaluating(small):  # to read a weight that is computed may change it in training
        channels = follow(small, args, barred)
        modules = [(name, m, _shape(m)) for name, m in small.named_modules() if _has_row(m)]
    live = channels.solve(round_to, depth)
    takes = dict[nn.Module, dict[str, Take]]()  # of each module that changes, by parameter
    for module, ids in channels.by_channel.items():
        if not live[ids].all():
            takes[module] = narrow_by_channel(module, live[ids])
    others = dict[nn.Module, nn.Module]()
    for use in channels.uses.values():
        if use.empty:
            others[use.layer], takes[use.layer] = empty(use, live)
        elif not (live[use.ins].all() and live[use.outs].all()):
            takes[use.layer] = narrow(use, live)
        if shape and not use.empty and (dropped := drop_shapes(use.layer)):
            others[use.layer], then = dropped
            takes[use.layer] = _in_turn(takes.get(use.layer, {}), {"weight": then})
    takes |= {other: takes[layer] for layer, other in others.items()}
    small = replace_layers(small, others)
    _verify(model, small, args)
    if channels.branches:
        _verify(model, small, args, branches=True)
    if optimizer is not None:
        hand_over(optimizer, model, small, takes)
    if not explain:
        return small
    rows = []
    for name, module, before in modules:
        other = others.get(module, module)
        with _evaluating(other):
            after = () if isinstance(other, ZeroConv2d) else _shape(other)
        note = _note(channels, live, module, before == after) if after else ""
        if isinstance(other, LoweredConv2d):
            lowered = f"{other.in_channels} of {math.prod(before[1:])} shapes"
            note = f"{lowered}; {note}" if note else lowered
        rows.append(ShrunkLayer(name, before, after, note))
    return small, ShrinkReport(tuple(rows))


def _has_row(module: nn.Module) -> bool:
    """Whether it has parameters by itself, other than a number or two for each channel of a layer."""
    own = any(p is not None for p in module._parameters.values()) or parametrize.is_parametrized(module)
    return own and not isinstance(module, (*BY_CHANNEL, parametrize.ParametrizationList))


def _shape(module: nn.Module) -> tuple[int, ...]:
    """Of its weight, or of its first parameter."""
    weight = getattr(module, "weight", None)
    return tuple((weight if isinstance(weight, Tensor) else next(module.parameters())).shape)


def _in_turn(first: dict[str, Take], then: dict[str, Take]) -> dict[str, Take]:
    def both(one: Take, two: Take) -> Take:
        return lambda t: two(one(t))

    return first | {key: both(first.get(key, torch.clone), take) for key, take in then.items()}


def _note(channels: Channels, live: Tensor, layer: nn.Module, unchanged: bool) -> str:
    """Why outputs of a layer stay that could have gone, or all of them."""
    use = channels.uses.get(layer)
    if use is None:
        plain = isinstance(layer, (nn.Linear, nn.Conv2d))
        return channels.reasons.get(layer, "is not run, or not by itself" if plain else f"is a {type(layer).__name__}")
    why = Counter[str]()
    for i, constant in zip(use.outs.tolist(), use.constant.tolist(), strict=True):
        if live[i] and (i in channels.kept or (i in channels.pinned and (constant or unchanged))):
            why[channels.pinned.get(i) or channels.kept[i]] += 1
    said = "; ".join(f"{count} of {len(use.outs)} outputs stay: {reason}" for reason, count in why.items())
    return said or ("all its outputs are used" if unchanged else "")


@contextmanager
def _evaluating(model: nn.Module, branches: bool = False) -> Iterator[None]:
    """In evaluation, but for the branches that the model's code takes in training; and then as it was."""
    with torch.no_grad(), unchanged(model):
        model.eval()
        if branches:
            enter_branches(model)
        yield


def _verify(model: nn.Module, small: nn.Module, args: tuple[Any, ...], branches: bool = False) -> None:
    """That both give the same for args; with branches, which may draw numbers, of the same shapes."""
    with _evaluating(model, branches):
        expected = model(*copies(args))
    try:
        with _evaluating(small, branches):
            output = small(*copies(args))
    except Exception as error:  # of any kind: it runs the model's own code
        raise RuntimeError(f"shrink: the smaller model must run, got {error}") from error
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(output), strict=True):
        if isinstance(a, Tensor) and not (a.shape == b.shape if branches else _close(a, b)):
            raise RuntimeError("shrink: the smaller model must give the same for example_input, got another output")


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point() or a.shape != b.shape or a.numel() == 0:
        return torch.equal(a, b)
    tf32 = a.is_cuda and a.dtype == torch.float32  # as cuDNN rounds to: the digits of float16
    share = max(1e-5, 8 * torch.finfo(torch.float16 if tf32 else a.dtype).eps)
    scale = a.abs().nan_to_num(0, 0, 0).max().item()
    return torch.allclose(b, a, rtol=0, atol=share * (scale + 0.1), equal_nan=True)
