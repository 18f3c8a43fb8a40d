"""A model that runs its sparse layers on packed kernels, where those are measured to be faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_flatten

from crest_ext.nn.depthwise import DepthwiseConv2d
from crest_ext.nn.layers import layers
from crest_ext.nn.masked import Masked
from crest_ext.nn.packed_sequential import PackedSequential
from crest_ext.nn.quick import QUICK
from crest_ext.nn.sparse import SparseConv2d, SparseLinear
from crest_ext.rewrite.calls import Call, before_in_row, followers, has_hooks, record
from crest_ext.rewrite.chains import Chain, Stem, activation_of, chains, stem
from crest_ext.rewrite.functions import to_modules
from crest_ext.rewrite.in_one_call import in_one_call
from crest_ext.rewrite.materialize import copied, materialize
from crest_ext.rewrite.unchanged import copies, unchanged

Model = TypeVar("Model", bound=nn.Module)
BUDGET = 0.2  # seconds to measure each layer, and the whole
MOST_KEPT = 0.7  # the density above which no measurement is worth its time
ACTIVATIONS: dict[str, dict[type[nn.Module], str]] = {  # that each kernel takes along
    "sparse": {nn.ReLU: "relu"},
    "depthwise": {nn.ReLU: "relu", nn.ReLU6: "relu6"},
    "quick": {},
}


@dataclass(frozen=True)
class PackedLayer:
    """One Linear, Conv2d or module of nn.quick.QUICK: what was measured with it, and what was made of it.

    Times are seconds, and 0 where not measured. Rows are those of the product: a convolution's are the positions of
    its output, in all images. What has no weight has density 1.
    """

    name: str
    rows: int
    density: float
    kernel: str  # dense, sparse, depthwise, separable, stem or quick, and an activation in its pass: "sparse, relu"
    dense: float  # of a separable pair: on the kernels that are the fastest one by one
    sparse: float  # or on the kernel chosen; of the pair
    reason: str


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
    BatchNorm2d that follows a convolution is folded into it, and a ReLU module that follows a layer on our kernels is
    fused, a ReLU6 behind a depthwise one: next in the same nn.Sequential, or found by torch.fx where it can trace the
    model, a module without modules being one step, and one ReLU may stand behind many layers. There calls of relu,
    relu6, flatten, max_pool2d and local_response_norm count as modules; the last two are computed in a faster way where
    it is one here. A depthwise convolution and a pointwise one behind it become one `nn.SeparableConv2d` where that is
    faster than the two as they were chosen. A convolution of an image becomes one `nn.StemConv2d` with its padding and
    activation where that is faster. What is added to the result of a sparse convolution, as the shortcut around a
    residual branch is, is added in its pass, with a ReLU behind. Layers on our kernels in a row, with what is between
    them, become one call: an `nn.PackedSequential`, for which a model of more than nn.Sequentials is traced; and so do
    the blocks of a residual network. Behind a layer that stays dense, a ReLU works in place. Masked layers that stay
    dense become plain ones with exact zeros, as `materialize` makes them. At last the whole is measured against the
    materialised model, and if it is not faster, or does not give the same results, the materialised model is what comes
    back; or a copy of the model as it is, if its masked layers are faster than either. So a packed model is for inputs
    of about the example's size.

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
            name: _choose(name, modules[name], whys[name], calls.get(name), dtype)
            for name in dict.fromkeys((*calls, *modules))  # in the order of the calls
            if name in whys
        }
        chosen |= _choose_in_rows(modules, calls, chosen, dtype)
        free = [name for name, call in calls.items() if name in whys and not _unfit(modules[name], whys[name], call)]
        convs = [n for n, layer in chosen.items() if layer.kernel == "dense" and isinstance(modules[n], nn.Conv2d)]
        ends = [calls[activation_of(modules, follow, name) or name].out for name in convs if name in calls]
        fused = _choose_chains(list(chains(modules, follow, free)), modules, calls, chosen, ends, dtype)
    for chain, pair in fused.items():
        packed = _replace(packed, modules[chain.depthwise], chain.fused(modules))
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
                packed, chosen[name] = _choose_stem(found, packed, layer, modules, calls, last)
        elif layer.kernel in ACTIVATIONS:
            activation = _activation(layer.kernel, modules, after)
            packed = _replace(packed, modules[name], _made(modules[name], layer.kernel, dtype, activation))
            if activation != "none":
                packed.set_submodule(after, nn.Identity())
                chosen[name] = replace(layer, kernel=f"{layer.kernel}, {activation}")
    result, seconds, reason = dense, (0.0, 0.0), "no layer is faster packed"
    if any(layer.kernel != "dense" for layer in chosen.values()):
        result, seconds, reason = _better(dense, packed, args, dtype)
    if any(isinstance(module, Masked) for module in model.modules()):
        given = copied(model).eval().requires_grad_(False)
        times = _seconds(given, result, args)
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
                same = _alike(expected, packed(*copies(args)), dtype)
        except Exception as error:  # of a model's code that finds another layer than it knows
            return dense, (0.0, 0.0), f"dense: packed, it raises {type(error).__name__}: {error}"
    if not same:
        return dense, (0.0, 0.0), "dense: packed, it computes something else"
    seconds = _seconds(dense, packed, args)
    if seconds[1] < seconds[0]:
        return packed, seconds, f"packed, {seconds[0] / seconds[1]:.1f} times as fast"
    return dense, seconds, "dense, which is no slower"


def _seconds(one: nn.Module, two: nn.Module, args: tuple[Any, ...]) -> tuple[float, float]:
    with torch.inference_mode(), unchanged(one), unchanged(two):
        return _medians(lambda: one(*args), lambda: two(*args))


def _alike(expected: Any, got: Any, dtype: torch.dtype) -> bool:
    """Whether two results have the same structure, and numbers but for rounding, that of packed values too."""
    (ours, structure), (theirs, other) = (tree_flatten(result) for result in (got, expected))
    if structure != other:
        return False
    share = 1e-3 if dtype == torch.float32 else 0.1

    def near(a: Any, b: Any) -> bool:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return type(a) is type(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return not a.is_floating_point() or bool((a - b).nan_to_num().norm() <= share * b.nan_to_num().norm() + 1e-6)

    return all(map(near, ours, theirs))


def _activation(kernel: str, modules: dict[str, nn.Module], after: str) -> str:
    """That of the module `after` a layer, if the kernel takes it along."""
    return ACTIVATIONS.get(kernel, {}).get(type(modules[after]), "none") if after else "none"


def _made(layer: nn.Module, kernel: str, dtype: torch.dtype, activation: str) -> nn.Module:
    """The layer on one of our kernels, in evaluation."""
    if kernel == "depthwise":
        assert isinstance(layer, nn.Conv2d)
        return DepthwiseConv2d.from_conv2d(layer, activation)
    if kernel == "quick":
        return QUICK[type(layer)].from_module(layer)
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d.from_conv2d(layer, dtype, activation).eval()
    assert isinstance(layer, nn.Linear)
    return SparseLinear.from_linear(layer, dtype, activation).eval()


def _choose(name: str, layer: nn.Module, why: str | None, call: Call | None, dtype: torch.dtype) -> PackedLayer:
    weight = layer.weight if isinstance(layer, (nn.Linear, nn.Conv2d)) else None
    density = 1.0 if weight is None else int(weight.count_nonzero()) / max(weight.numel(), 1)
    rows = call.out.numel() // max(call.out.shape[1] if weight is None else weight.shape[0], 1) if call else 0

    def keep(reason: str) -> PackedLayer:
        return PackedLayer(name, rows, density, "dense", 0.0, 0.0, reason)

    if reason := _unfit(layer, why, call):
        return keep(reason)
    assert call
    if type(layer) is DepthwiseConv2d:
        can = layer.activation == "none"
        return PackedLayer(name, rows, density, "depthwise" if can else "dense", 0.0, 0.0, "is a DepthwiseConv2d")
    kernel = "quick" if weight is None else "depthwise" if _is_depthwise(layer) else "sparse"
    if kernel == "sparse" and isinstance(layer, nn.Conv2d) and (reason := SparseConv2d.refusal(layer)):
        return keep(reason)
    if kernel == "sparse" and density > MOST_KEPT:
        return keep("keeps too many weights")
    made = _made(layer, kernel, dtype, "none")
    times = _medians(lambda: layer(call.x), lambda: made(call.x))
    if times[1] >= times[0]:
        return PackedLayer(name, rows, density, "dense", *times, "measured no slower")
    return PackedLayer(name, rows, density, kernel, *times, f"measured {times[0] / times[1]:.1f} times as fast")


def _choose_in_rows(
    modules: dict[str, nn.Module], calls: dict[str, Call], chosen: dict[str, PackedLayer], dtype: torch.dtype
) -> dict[str, PackedLayer]:
    """Layers that are no faster sparse by themselves, for a call takes as long, but in one call with the one before."""
    faster: dict[str, PackedLayer] = {}
    for name, layer in chosen.items():
        before, activation = before_in_row(name, modules, calls)
        could = layer.kernel == "dense" and layer.sparse and isinstance(modules[name], (nn.Linear, nn.Conv2d))
        if not could or _is_depthwise(modules[name]) or before not in chosen:
            continue
        if (faster.get(before) or chosen[before]).kernel != "sparse":
            continue
        first = _made(modules[before], "sparse", dtype, activation)
        apart = nn.Sequential(first, modules[name])
        whole = PackedSequential({"0": first, "1": _made(modules[name], "sparse", dtype, "none")})
        x = calls[before].x
        times = _medians(lambda: apart(x), lambda: whole(x))  # noqa: B023 (called here)
        if times[1] < times[0]:
            reason = f"measured {times[0] / times[1]:.1f} times as fast in one call with {before}"
            faster[name] = replace(layer, kernel="sparse", reason=reason)
    return faster


def _unfit(layer: nn.Module, why: str | None, call: Call | None) -> str | None:
    """Why a layer stays as it is, whatever the time it takes."""
    if why:
        return why
    if call is None:
        return "is not called"
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (call.x, *layer.parameters())):
        return "is not float32 on the CPU"
    if has_hooks(layer):
        return "has hooks"
    if isinstance(layer, nn.Conv2d) and call.x.dim() != 4:
        return "gets an image without a batch"
    return None


def _choose_chains(
    found: list[Chain],
    modules: dict[str, nn.Module],
    calls: dict[str, Call],
    chosen: dict[str, PackedLayer],
    ends: list[Tensor],
    dtype: torch.dtype,
) -> dict[Chain, dict[str, PackedLayer]]:
    """Those that are faster in one pass than layer by layer, and what becomes of their layers.

    Their x is in the format that they take wherever what makes it can give it so: another of them, or a dense
    convolution, whose results are `ends`.
    """
    fused: dict[Chain, dict[str, PackedLayer]] = {}
    for chain in found:
        apart, whole = _apart(chain, modules, chosen, dtype), chain.fused(modules)
        x = in_one = calls[chain.depthwise].x
        if any(out is x for out in (*ends, *(calls[other.last].out for other in fused))):
            in_one = x.contiguous(memory_format=torch.channels_last)
        times = _medians(lambda: apart(x), lambda: whole(in_one))  # noqa: B023 (called here)
        if times[1] < times[0]:
            first, second = chosen[chain.depthwise], chosen[chain.pointwise]
            inner, outer = (f"separable, {a}".removesuffix(", none") for a in chain.activations(modules))
            reason = f"measured {times[0] / times[1]:.1f} times as fast"
            fused[chain] = {
                first.name: replace(first, kernel=inner, dense=times[0], sparse=times[1], reason=reason),
                second.name: replace(second, kernel=outer, reason=f"in one pass with {first.name}"),
            }
    return fused


def _choose_stem(
    found: Stem,
    model: Model,
    layer: PackedLayer,
    modules: dict[str, nn.Module],
    calls: dict[str, Call],
    channels_last: bool,
) -> tuple[Model, PackedLayer]:
    """The model with a dense layer in one pass with what is around it, where that is faster."""
    x, apart, whole = calls[found.first].x, found.apart(modules), found.fused(modules, channels_last)
    with torch.inference_mode():
        times = _medians(lambda: apart(x), lambda: whole(x))
    if times[1] >= times[0]:
        return model, layer
    model = _replace(model, modules[layer.name], whole)
    for name in filter(None, (found.pad, found.activation)):
        model.set_submodule(name, nn.Identity())
    kernel, reason = f"stem, {whole.activation}", f"measured {times[0] / times[1]:.1f} times as fast"
    return model, replace(layer, kernel=kernel.removesuffix(", none"), dense=times[0], sparse=times[1], reason=reason)


def _apart(
    chain: Chain, modules: dict[str, nn.Module], chosen: dict[str, PackedLayer], dtype: torch.dtype
) -> nn.Module:
    """The layers of a chain on the kernels chosen for them."""
    parts = []
    for name, after in ((chain.depthwise, chain.inner), (chain.pointwise, chain.outer)):
        kernel = chosen[name].kernel
        activation = _activation(kernel, modules, after)
        parts.append(modules[name] if kernel == "dense" else _made(modules[name], kernel, dtype, activation))
        if after and activation == "none":
            parts.append(modules[after])
    return nn.Sequential(*parts)


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 and layer.padding_mode == "zeros"


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
        model = _replace(_replace(model, conv, folded), norm, nn.Identity())
        calls[name].out = calls[after].out
        follow.pop(name)
        if after in follow:
            follow[name] = follow.pop(after)
    return model


def _replace(model: Model, old: nn.Module, new: nn.Module) -> Model:
    """`new` in every place of `old`; the model, which may be `old` itself."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    return new if model is old else model  # type: ignore[return-value]


def _medians(*functions: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of two functions, called in turns: a machine that slows down meanwhile slows both."""
    times: tuple[list[float], ...] = ([], [])
    end = time.perf_counter() + BUDGET
    while len(times[0]) < 6 or (time.perf_counter() < end and len(times[0]) < 200):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:>10.3f}" if seconds else f"{'-':>10}"
