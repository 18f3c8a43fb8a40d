"""A model that runs its sparse layers on packed kernels, where those are measured to be faster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast, overload

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from crest_ext.nn.depthwise import DepthwiseConv2d
from crest_ext.nn.layers import layers
from crest_ext.nn.masked import Masked
from crest_ext.nn.quick import QUICK
from crest_ext.nn.replace import Model, replace_layers
from crest_ext.rewrite import measure
from crest_ext.rewrite.calls import Call, followers, has_hooks, record
from crest_ext.rewrite.chains import activation_of, chains, stem
from crest_ext.rewrite.choose import (
    KERNELS,
    PackedLayer,
    choose,
    choose_chains,
    choose_in_rows,
    choose_stem,
    fused_activation,
    on_kernel,
    unfit,
)
from crest_ext.rewrite.functions import to_modules
from crest_ext.rewrite.in_one_call import in_one_call
from crest_ext.rewrite.materialize import copied, materialize
from crest_ext.rewrite.unchanged import copies, unchanged


@dataclass(frozen=True)
class PackReport:
    """What `pack` measured. `dense` and `packed` are the seconds of the whole model."""

    layers: tuple[PackedLayer, ...]
    dense: float
    packed: float
    reason: str

    def __str__(self) -> str:
        wide = max(22, *(len(layer.name) for layer in self.layers), 0) + 2
        head = f"{'layer':<{wide}}{'rows':>8}{'density':>9}  {'kernel':<18}{'dense ms':>10}{'packed ms':>10}  reason"
        lines = [head] + [
            f"{l.name:<{wide}}{l.rows:>8}{l.density:>9.3f}  {l.kernel:<18}{_ms(l.dense)}{_ms(l.sparse)}  {l.reason}"
            for l in self.layers  # noqa: E741
        ]
        return "\n".join(
            [*lines, f"{'the whole model':<{wide + 37}}{_ms(self.dense)}{_ms(self.packed)}  {self.reason}"]
        )


@overload
def pack(model: Model, example_input: Any, *, explain: Literal[False] = False, dtype: torch.dtype = ...) -> Model: ...
@overload
def pack(
    model: Model, example_input: Any, *, explain: Literal[True], dtype: torch.dtype = ...
) -> tuple[Model, PackReport]: ...
def pack(
    model: Model, example_input: Any, *, explain: bool = False, dtype: torch.dtype = torch.float32
) -> Model | tuple[Model, PackReport]:
    """A copy for inference, in which a Linear or Conv2d runs on our kernels where that is faster.

    Each is measured on what first reaches it from the example, on this machine and with torch's present number of
    threads: torch's kernel in turns with the sparse one, or of a depthwise convolution with `depthwise_conv2d`. A
    BatchNorm2d that follows a convolution is folded into it, and a ReLU or ReLU6 module that follows a layer on our
    kernels is fused: next in the same nn.Sequential, or found by torch.fx where it can trace the model, a module
    without modules being one step, and one ReLU may stand behind many layers. There calls of relu, relu6, flatten,
    max_pool2d and local_response_norm count as modules; the last two are computed in a faster way where it is one here.
    A depthwise convolution and a pointwise one behind it become one `nn.SeparableConv2d` where that is faster than the
    two as they were chosen. A convolution of an image becomes one `nn.StemConv2d` with its padding and activation where
    that is faster. What is added to the result of a sparse convolution, as the shortcut around a residual branch is, is
    added in its pass, with a ReLU or ReLU6 behind. Layers on our kernels in a row, with what is between them, become
    one call: an `nn.PackedSequential`, for which a model of more than nn.Sequentials is traced; and so do the blocks of
    a residual network. Behind a layer that stays dense, a ReLU works in place. Masked layers that stay dense become
    plain ones with exact zeros, as `materialize` makes them. At last the whole is measured against the materialised
    model, and if it is not faster, or does not give the same results, the materialised model is what comes back; or a
    copy of the model as it is, if its masked layers are faster than either. So a packed model is for inputs of about
    the example's size.

    The result is an ordinary module in eval mode whose parameters require no gradient, a torch.fx.GraphModule where
    calls became modules: it takes the model's arguments in their order. What is not float32 on the CPU, has hooks, is a
    subclass of Linear or Conv2d, pads with anything but zeros, or was not called stays dense. Weights that
    torch.nn.utils.prune masks are pruned weights.

    Args:
        model: any module, masked or plain. Not changed.
        example_input: a tensor, or a tuple of the model's arguments.
        explain: also return the report; `print(report)` shows the table.
        dtype: of the packed values. bfloat16 and float16 halve them and round; float32 does not.

    Returns:
        The model; with explain, (model, report).
    """
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    with torch.inference_mode(False):  # else what is made would be of no other use
        result, report = _packed(model, args, dtype)
    return (result, report) if explain else result


def _packed(model: Model, args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Model, PackReport]:
    dense, packed = (materialize(model).eval().requires_grad_(False) for _ in range(2))
    with torch.inference_mode():
        packed = cast("Model", to_modules(packed, args))
    whys = {name: None if type(layer) is DepthwiseConv2d else why for name, layer, why in layers(packed)}
    with torch.inference_mode():
        calls = record(packed, args)
        follow = followers(packed, calls, args)
        packed = _fold(packed, calls, follow, {name for name, why in whys.items() if why is None})
        modules = dict(packed.named_modules())
        whys |= {name: None for name, module in modules.items() if type(module) in QUICK}
        chosen = {
            name: choose(name, modules[name], whys[name], calls.get(name), dtype)
            for name in dict.fromkeys((*calls, *modules))  # in the order of the calls
            if name in whys
        }
        chosen |= choose_in_rows(modules, calls, chosen, dtype)
        free = [name for name, call in calls.items() if name in whys and not unfit(modules[name], whys[name], call)]
        convs = [n for n, layer in chosen.items() if layer.kernel == "dense" and isinstance(modules[n], nn.Conv2d)]
        ends = [calls[activation_of(modules, follow, name) or name].out for name in convs if name in calls]
        fused = choose_chains(list(chains(modules, follow, free)), modules, calls, chosen, ends, dtype)
    for chain, pair in fused.items():
        packed = replace_layers(packed, {modules[chain.depthwise]: chain.fused(modules)})
        for name in filter(None, chain[1:]):
            packed.set_submodule(name, nn.Identity())
        chosen |= pair
    for name, layer in chosen.items():
        after = follow.get(name, "")
        if layer.kernel == "dense" and name in free:
            behind = activation_of(modules, follow, name)
            if behind:  # that reads what nobody else does
                packed.set_submodule(behind, type(modules[behind])(inplace=True))
            last = any(calls[chain.depthwise].x is calls[behind or name].out for chain in fused)
            if last:  # they read it so
                modules[name].to(memory_format=torch.channels_last)
            if found := stem(modules, follow, name):
                packed, chosen[name] = choose_stem(found, packed, layer, modules, calls, last)
        elif layer.kernel in KERNELS:
            taken = fused_activation(layer.kernel, modules, after)
            packed = replace_layers(packed, {modules[name]: on_kernel(modules[name], layer.kernel, dtype, taken)})
            if taken != "none":
                packed.set_submodule(after, nn.Identity())
                chosen[name] = replace(layer, kernel=f"{layer.kernel}, {taken}")
    result, seconds, reason = dense, (0.0, 0.0), "no layer is faster packed"
    if any(layer.kernel != "dense" for layer in chosen.values()):
        result, seconds, reason = _better(dense, packed, args, dtype)
    if any(isinstance(module, Masked) for module in model.modules()):
        given = copied(model).eval().requires_grad_(False)
        times = measure.seconds(given, result, args)
        if times[0] < 0.9 * times[1]:  # more than noise: plain layers are plainer
            result, seconds, reason = given, (times[0], times[1]), "as it was: its masked layers are faster"
    return result, PackReport(tuple(chosen.values()), *seconds, reason)


def _better(
    dense: Model, packed: Model, args: tuple[Any, ...], dtype: torch.dtype
) -> tuple[Model, tuple[float, float], str]:
    """The faster one, if the packed one computes the same; the seconds of both, and why."""
    with torch.inference_mode():
        with unchanged(dense):
            expected = dense(*copies(args))
        try:
            packed = cast("Model", in_one_call(packed, args))
            with unchanged(packed):
                same = measure.alike(expected, packed(*copies(args)), dtype)
        except Exception as error:  # of a model's code that finds another layer than it knows
            return dense, (0.0, 0.0), f"dense: packed, it raises {type(error).__name__}: {error}"
    if not same:
        return dense, (0.0, 0.0), "dense: packed, it computes something else"
    seconds = measure.seconds(dense, packed, args)
    if seconds[1] < seconds[0]:
        return packed, seconds, f"packed, {seconds[0] / seconds[1]:.1f} times as fast"
    return dense, seconds, "dense, which is no slower"


def _fold(model: Model, calls: dict[str, Call], follow: dict[str, str], free: set[str]) -> Model:
    """A BatchNorm2d that follows a convolution becomes part of it; what followed the one follows the other."""
    modules = dict(model.named_modules())
    for name, after in list(follow.items()):
        conv, norm = modules[name], modules[after]
        if name not in free or type(norm) is not nn.BatchNorm2d or type(conv) not in (nn.Conv2d, DepthwiseConv2d):
            continue
        if norm.running_mean is None or has_hooks(conv) or getattr(conv, "activation", "none") != "none":
            continue
        with torch.inference_mode(False), torch.no_grad():
            folded = fuse_conv_bn_eval(conv, norm).requires_grad_(False)
        model = replace_layers(model, {conv: folded, norm: nn.Identity()})
        calls[name].out = calls[after].out
        follow.pop(name)
        if after in follow:
            follow[name] = follow.pop(after)
    return model


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:>10.3f}" if seconds else f"{'-':>10}"
