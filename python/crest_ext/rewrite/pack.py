"""A model that runs its sparse layers on packed kernels, where those are measured to be faster."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from crest_ext.nn.layers import layers
from crest_ext.nn.sparse import SparseLinear
from crest_ext.rewrite.materialize import materialize

Model = TypeVar("Model", bound=nn.Module)
BUDGET = 0.2  # seconds to measure each layer, and the whole
MOST_KEPT = 0.7  # the density above which no measurement is worth its time


@dataclass(frozen=True)
class PackedLayer:
    """One Linear: what was measured with it, and what was made of it. Times are seconds, and 0 where not measured."""

    name: str
    rows: int
    density: float
    kernel: Literal["dense", "sparse", "sparse, relu"]
    dense: float
    sparse: float
    reason: str


@dataclass(frozen=True)
class PackReport:
    """What `pack` measured. `dense` and `packed` are the seconds of the whole model."""

    layers: tuple[PackedLayer, ...]
    dense: float
    packed: float
    reason: str

    def __str__(self) -> str:
        lines = [f"{'layer':<24}{'rows':>8}{'density':>9}  {'kernel':<14}{'dense ms':>10}{'sparse ms':>10}  reason"]
        lines += [
            f"{l.name:<24}{l.rows:>8}{l.density:>9.3f}  {l.kernel:<14}{_ms(l.dense)}{_ms(l.sparse)}  {l.reason}"
            for l in self.layers  # noqa: E741
        ]
        return "\n".join([*lines, f"{'the whole model':<57}{_ms(self.dense)}{_ms(self.packed)}  {self.reason}"])


@overload
def pack(model: Model, example_input: Any, *, explain: Literal[False] = False, dtype: torch.dtype = ...) -> Model: ...
@overload
def pack(
    model: Model, example_input: Any, *, explain: Literal[True], dtype: torch.dtype = ...
) -> tuple[Model, PackReport]: ...
def pack(
    model: Model, example_input: Any, *, explain: bool = False, dtype: torch.dtype = torch.float32
) -> Model | tuple[Model, PackReport]:
    """A copy for inference, in which a Linear or MaskedLinear is a `nn.SparseLinear` where that is faster.

    Each Linear is measured on what first reaches it from the example, on this machine and with torch's present number
    of threads: dense kernel and sparse kernel in turns. A ReLU that follows in the same nn.Sequential is fused. Masked
    layers that stay dense become plain ones with exact zeros, as `materialize` makes them. At last the whole is
    measured against the materialised model, and if it is not faster, the materialised model is what comes back. So a
    packed model is for inputs of about the example's size.

    The result is an ordinary module in eval mode whose parameters require no gradient. What is not float32 on the CPU,
    has hooks, is a subclass of Linear, or was not called stays dense, and so do convolutions.

    Args:
        model: any module, masked or plain. Not changed.
        example_input: a tensor, or a tuple of the model's arguments.
        explain: also return the report; `print(report)` shows the table.
        dtype: of the packed values. bfloat16 and float16 halve them and round; float32 does not.

    Returns:
        The model; with explain, (model, report).
    """
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    dense, packed = (materialize(model).eval().requires_grad_(False) for _ in range(2))
    with torch.inference_mode():
        calls = _record(packed, args)
        linears = [(name, layer, why) for name, layer, why in layers(packed) if isinstance(layer, nn.Linear)]
        chosen = {name: _choose(name, layer, why, calls.get(name), dtype) for name, layer, why in linears}
        fused = {name: relu for name, relu in _relus(packed, calls).items() if chosen[name].kernel != "dense"}
        for name, relu in fused.items():
            packed.set_submodule(relu, nn.Identity())
            chosen[name] = replace(chosen[name], kernel="sparse, relu")
    for name, layer, _ in linears:
        if chosen[name].kernel != "dense":
            sparse = SparseLinear.from_linear(layer, dtype, "relu" if name in fused else "none").eval()
            packed = _replace(packed, layer, sparse)
    seconds, faster, reason = (0.0, 0.0), False, "no layer is faster packed"
    if any(layer.kernel != "dense" for layer in chosen.values()):
        with torch.inference_mode():
            seconds = _medians(lambda: dense(*args), lambda: packed(*args))
        faster = seconds[1] < seconds[0]
        reason = f"packed, {seconds[0] / seconds[1]:.1f} times as fast" if faster else "dense, which is no slower"
    result = packed if faster else dense
    return (result, PackReport(tuple(chosen.values()), *seconds, reason)) if explain else result


@dataclass
class _Call:
    """What a module got in its first call and gave in its last."""

    x: Tensor
    out: Tensor
    count: int = 0


def _record(model: nn.Module, args: tuple[Any, ...]) -> dict[str, _Call]:
    calls: dict[str, _Call] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(out, Tensor):
                call = calls.setdefault(name, _Call(inputs[0], out))
                call.out, call.count = out, call.count + 1

        return hook

    watched = [(n, m) for n, m in model.named_modules() if type(m) in (nn.Linear, nn.ReLU)]
    hooks = [module.register_forward_hook(record(name)) for name, module in watched]
    try:
        model(*args)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _choose(name: str, layer: nn.Linear, why: str | None, call: _Call | None, dtype: torch.dtype) -> PackedLayer:
    weight = layer.weight
    density = int(weight.count_nonzero()) / max(weight.numel(), 1)
    rows = call.x.shape[:-1].numel() if call else 0

    def keep(reason: str) -> PackedLayer:
        return PackedLayer(name, rows, density, "dense", 0.0, 0.0, reason)

    if why:
        return keep(why)
    if call is None:
        return keep("is not called")
    if weight.dtype != torch.float32 or call.x.dtype != torch.float32 or weight.device.type != "cpu":
        return keep("is not float32 on the CPU")
    if _has_hooks(layer):
        return keep("has hooks")
    if density > MOST_KEPT:
        return keep("keeps too many weights")
    sparse = SparseLinear.from_linear(layer, dtype)
    times = _medians(lambda: layer(call.x), lambda: sparse(call.x))
    if times[1] >= times[0]:
        return PackedLayer(name, rows, density, "dense", *times, "measured no slower")
    return PackedLayer(name, rows, density, "sparse", *times, f"measured {times[0] / times[1]:.1f} times as fast")


def _relus(model: nn.Module, calls: dict[str, _Call]) -> dict[str, str]:
    """The ReLU to fuse into a Linear: next in a Sequential, and each called once, one on the other's result."""
    names = {module: name for name, module in model.named_modules()}
    places = [m for parent in model.modules() for m in parent._modules.values() if m is not None]
    pairs = {}
    for parent in names:
        children = list(parent._modules.values()) if type(parent) is nn.Sequential else []
        for layer, relu in itertools.pairwise(children):
            if type(layer) is not nn.Linear or type(relu) is not nn.ReLU or _has_hooks(relu):
                continue
            one, two = calls.get(names[layer]), calls.get(names[relu])
            once = one and two and one.count == two.count == 1 and places.count(layer) == places.count(relu) == 1
            if once and one and two and two.x is one.out:
                pairs[names[layer]] = names[relu]
    return pairs


def _has_hooks(module: nn.Module) -> bool:
    return any(vars(module)[kind] for kind in vars(module) if kind.endswith("_hooks"))


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
