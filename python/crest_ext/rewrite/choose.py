"""The kernel of each layer that is measured to be the fastest: the part of `pack` that chooses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crest_ext.nn.depthwise import DepthwiseConv2d
from crest_ext.nn.packed_sequential import PackedSequential
from crest_ext.nn.quick import QUICK
from crest_ext.nn.replace import Model, replace_layers
from crest_ext.nn.sparse import SparseConv2d, SparseLinear
from crest_ext.rewrite import measure
from crest_ext.rewrite.calls import ACTIVATIONS, Call, before_in_row, has_hooks
from crest_ext.rewrite.chains import Chain, Stem

MOST_KEPT = 0.7  # the density above which no measurement is worth its time
KERNELS = ("sparse", "depthwise", "quick")


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


def choose(name: str, layer: nn.Module, why: str | None, call: Call | None, dtype: torch.dtype) -> PackedLayer:
    weight = layer.weight if isinstance(layer, (nn.Linear, nn.Conv2d)) else None
    density = 1.0 if weight is None else int(weight.count_nonzero()) / max(weight.numel(), 1)
    rows = call.out.numel() // max(call.out.shape[1] if weight is None else weight.shape[0], 1) if call else 0

    def keep(reason: str) -> PackedLayer:
        return PackedLayer(name, rows, density, "dense", 0.0, 0.0, reason)

    if reason := unfit(layer, why, call):
        return keep(reason)
    assert call
    if type(layer) is DepthwiseConv2d:
        can = layer.activation == "none"
        return PackedLayer(name, rows, density, "depthwise" if can else "dense", 0.0, 0.0, "is a DepthwiseConv2d")
    kernel = "quick" if weight is None else "depthwise" if is_depthwise(layer) else "sparse"
    if kernel == "sparse" and isinstance(layer, nn.Conv2d) and (reason := SparseConv2d.refusal(layer)):
        return keep(reason)
    if kernel == "sparse" and density > MOST_KEPT:
        return keep("keeps too many weights")
    made = on_kernel(layer, kernel, dtype, "none")
    times = measure.medians(lambda: layer(call.x), lambda: made(call.x))
    if times[1] >= times[0]:
        return PackedLayer(name, rows, density, "dense", *times, "measured no slower")
    return PackedLayer(name, rows, density, kernel, *times, f"measured {times[0] / times[1]:.1f} times as fast")


def choose_in_rows(
    modules: dict[str, nn.Module], calls: dict[str, Call], chosen: dict[str, PackedLayer], dtype: torch.dtype
) -> dict[str, PackedLayer]:
    """Layers that are no faster sparse by themselves, for a call takes as long, but in one call with the one before."""
    faster: dict[str, PackedLayer] = {}
    for name, layer in chosen.items():
        before, activation = before_in_row(name, modules, calls)
        could = layer.kernel == "dense" and layer.sparse and isinstance(modules[name], (nn.Linear, nn.Conv2d))
        if not could or is_depthwise(modules[name]) or before not in chosen:
            continue
        if (faster.get(before) or chosen[before]).kernel != "sparse":
            continue
        first = on_kernel(modules[before], "sparse", dtype, activation)
        apart = nn.Sequential(first, modules[name])
        whole = PackedSequential({"0": first, "1": on_kernel(modules[name], "sparse", dtype, "none")})
        x = calls[before].x
        times = measure.medians(lambda: apart(x), lambda: whole(x))  # noqa: B023 (called here)
        if times[1] < times[0]:
            reason = f"measured {times[0] / times[1]:.1f} times as fast in one call with {before}"
            faster[name] = replace(layer, kernel="sparse", reason=reason)
    return faster


def choose_chains(
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
        apart, whole = one_by_one(chain, modules, chosen, dtype), chain.fused(modules)
        x = in_one = calls[chain.depthwise].x
        if any(out is x for out in (*ends, *(calls[other.last].out for other in fused))):
            in_one = x.contiguous(memory_format=torch.channels_last)
        times = measure.medians(lambda: apart(x), lambda: whole(in_one))  # noqa: B023 (called here)
        if times[1] < times[0]:
            first, second = chosen[chain.depthwise], chosen[chain.pointwise]
            inner, outer = (f"separable, {a}".removesuffix(", none") for a in chain.activations(modules))
            reason = f"measured {times[0] / times[1]:.1f} times as fast"
            fused[chain] = {
                first.name: replace(first, kernel=inner, dense=times[0], sparse=times[1], reason=reason),
                second.name: replace(second, kernel=outer, reason=f"in one pass with {first.name}"),
            }
    return fused


def choose_stem(
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
        times = measure.medians(lambda: apart(x), lambda: whole(x))
    if times[1] >= times[0]:
        return model, layer
    model = replace_layers(model, {modules[layer.name]: whole})
    for name in filter(None, (found.pad, found.activation)):
        model.set_submodule(name, nn.Identity())
    kernel, reason = f"stem, {whole.activation}", f"measured {times[0] / times[1]:.1f} times as fast"
    return model, replace(layer, kernel=kernel.removesuffix(", none"), dense=times[0], sparse=times[1], reason=reason)


def unfit(layer: nn.Module, why: str | None, call: Call | None) -> str | None:
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


def one_by_one(
    chain: Chain, modules: dict[str, nn.Module], chosen: dict[str, PackedLayer], dtype: torch.dtype
) -> nn.Module:
    """The layers of a chain on the kernels chosen for them."""
    parts = []
    for name, after in ((chain.depthwise, chain.inner), (chain.pointwise, chain.outer)):
        kernel = chosen[name].kernel
        activation = fused_activation(kernel, modules, after)
        parts.append(modules[name] if kernel == "dense" else on_kernel(modules[name], kernel, dtype, activation))
        if after and activation == "none":
            parts.append(modules[after])
    return nn.Sequential(*parts)


def on_kernel(layer: nn.Module, kernel: str, dtype: torch.dtype, activation: str) -> nn.Module:
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


def fused_activation(kernel: str, modules: dict[str, nn.Module], after: str) -> str:
    """That of the module `after` a layer, if the kernel takes it along."""
    return ACTIVATIONS.get(type(modules[after]), "none") if after and kernel in ("sparse", "depthwise") else "none"


def is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 and layer.padding_mode == "zeros"
