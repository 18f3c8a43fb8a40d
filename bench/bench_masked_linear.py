"""masked_linear, its gradients and a training step against eager masks; where it overtakes a plain dense layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import crest_ext
from timing import Function, compare, interleaved

DENSITY = 0.1
# (m, k), with the rows of x that each is measured for.
LAYERS = {
    "LeNet-300-100 fc2": ((100, 300), (64,)),
    "LeNet-300-100 fc1": ((300, 784), (64,)),
    "LeNet-5 ip1": ((500, 800), (64,)),
    "square": ((1024, 1024), (1, 64, 256)),
    "AlexNet fc6": ((4096, 9216), (1, 64)),
}
CASES = [(layer, n) for layer, (_, rows) in LAYERS.items() for n in rows]
cases = pytest.mark.parametrize(("layer", "n"), CASES, ids=[f"{layer}, n = {n}" for layer, n in CASES])


class Args(NamedTuple):
    x: Tensor  # (n, k)
    weight: Tensor  # (m, k)
    mask: Tensor  # (m, k)
    grad: Tensor  # (n, m)


@functools.lru_cache(maxsize=1)
def arguments(n: int, m: int, k: int, density: float = DENSITY) -> Args:
    torch.manual_seed(0)
    return Args(torch.randn(n, k), torch.randn(m, k), torch.rand(m, k) < density, torch.randn(n, m))


def measure(
    benchmark: Any, layer: str, n: int, name: str, crest: Function, others: dict[str, Function | str], products: int = 1
) -> None:
    """A row of table `name`; then ours and the others are compared."""
    m, k = LAYERS[layer][0]
    work: dict[str, int] = {}
    if n == 1:
        work["nbytes"] = 5 * m * k  # weight, or its gradient, and mask: each moved once
    elif n * m * k > 1 << 28:  # the probe of the machine's limit would push a smaller layer out of cache, ours alone
        work["flops"] = 2 * n * int(arguments(n, m, k).mask.sum())
    compare(
        benchmark,
        crest,
        others,
        group=f"{name}, float32, {1 - DENSITY:.0%} zeros",
        case=f"{layer} {m, k}, n = {n}",
        headline=f"{name} {m, k}, {n} rows, {1 - DENSITY:.0%} zeros" if m * k > 1 << 22 and n > 1 else "",
        rounds=7 if m * k > 1 << 22 else 30,
        **(work if products == 1 else {}),
    )
    ours = crest()
    for title, other in others.items():
        if callable(other) and "unmasked" not in title:
            torch.testing.assert_close(ours, other(), rtol=1e-4, atol=1e-3)


@cases
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def bench_forward(benchmark: Any, layer: str, n: int, compiled: Callable[..., Any]) -> None:
    x, weight, mask, _ = arguments(n, *LAYERS[layer][0])
    csr = (weight * mask).to_sparse_csr()  # made once: good for a layer that is trained no more
    linear = compiled(eager_mask)
    others: dict[str, Function | str] = {
        "eager mask": partial(eager_mask, x, weight, mask),
        "torch.compile": linear if isinstance(linear, str) else partial(linear, x, weight, mask),
        "torch CSR": lambda: (csr @ x.t()).t(),
        "dense, unmasked": lambda: F.linear(x, weight),
    }
    measure(benchmark, layer, n, "masked_linear", partial(crest_ext.masked_linear, x, weight, mask), others)


@cases
def bench_grad_x(benchmark: Any, layer: str, n: int) -> None:
    _, weight, mask, grad = arguments(n, *LAYERS[layer][0])
    others: dict[str, Function | str] = {
        "eager mask": lambda: grad @ (weight * mask),
        "dense, unmasked": lambda: grad @ weight,
    }
    crest = partial(crest_ext.masked_linear_grad_x, grad, weight, mask)
    measure(benchmark, layer, n, "masked_linear_grad_x", crest, others)


@cases
def bench_grad_weight(benchmark: Any, layer: str, n: int) -> None:
    x, _, mask, grad = arguments(n, *LAYERS[layer][0])
    others: dict[str, Function | str] = {
        "eager mask": lambda: (grad.t() @ x) * mask,
        "dense, unmasked": lambda: grad.t() @ x,
    }
    crest = partial(crest_ext.masked_linear_grad_weight, grad, x, mask)
    measure(benchmark, layer, n, "masked_linear_grad_weight", crest, others)


def eager_mask(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return F.linear(x, weight * mask)


class EagerMask(torch.autograd.Function):
    """What users write for surgery: a dense product with weight * mask, and the full gradient of weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        masked = weight * mask
        ctx.save_for_backward(x, masked)
        return F.linear(x, masked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, masked = ctx.saved_tensors
        return grad @ masked, grad.t() @ x, None


@cases
def bench_step(benchmark: Any, layer: str, n: int) -> None:
    x, weight, mask, grad = arguments(n, *LAYERS[layer][0])
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()

    def step(linear: Callable[..., Tensor], *rest: Any) -> tuple[Tensor, ...]:
        y = linear(x, weight, mask, *rest)
        return y, *torch.autograd.grad(y, (x, weight), grad)

    others: dict[str, Function | str] = {"eager mask": partial(step, EagerMask.apply)}
    name = "forward, grad_x and the full grad_weight"
    measure(benchmark, layer, n, name, partial(step, crest_ext.masked_linear, None, True), others, products=3)


@pytest.mark.parametrize("n", [1, 8, 64, 256])
def bench_densities(benchmark: Any, n: int) -> None:
    """The time of plain F.linear, which no mask slows down, over ours: above 1 the mask pays even for inference."""
    m = k = 1024
    x, weight, mask, _ = arguments(n, m, k)
    group = f"masked_linear ({m}, {k}) against dense F.linear without a mask: time of dense / ours at each density"
    crest, dense = partial(crest_ext.masked_linear, x, weight, mask), partial(F.linear, x, weight)
    compare(benchmark, crest, {"dense": dense}, group=group, case=f"n = {n}, density {DENSITY}", rounds=9)
    if not benchmark.enabled:
        return
    ratios = {}
    for density in (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1):
        ours = partial(crest_ext.masked_linear, x, weight, torch.rand(m, k) < density)
        seconds = interleaved({"crest": ours, "dense": dense}, 9 if n > 64 else 31)
        ratios[density] = seconds["dense"] / seconds["crest"]
    benchmark.extra_info |= {str(density): ratio for density, ratio in ratios.items()}
    slower = [density for density, ratio in ratios.items() if ratio <= 1]
    faster = [density for density in ratios if not slower or density < slower[0]]
    benchmark.extra_info["faster up to"] = f"density {faster[-1]}" if faster else "at none of these"


@pytest.mark.parametrize(
    ("layer", "n"), [*(("square", n) for n in (1, 8, 64, 256)), *(("AlexNet fc6", n) for n in LAYERS["AlexNet fc6"][1])]
)
def bench_worst_density(benchmark: Any, layer: str, n: int) -> None:
    """Ours against F.linear with weight * mask at the density that is found to be the worst, and the ratios at all."""
    (m, k), large = LAYERS[layer][0], layer != "square"
    densities = (0, 0.1, 0.5, 1) if large else (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1)
    x, weight, *_ = arguments(n, m, k)
    chance = torch.rand(m, k)

    def pair(density: float) -> tuple[Function, Function]:
        mask = chance < density
        return partial(crest_ext.masked_linear, x, weight, mask), partial(eager_mask, x, weight, mask)

    ratios = {}
    for density in densities if benchmark.enabled else (DENSITY,):
        ours, eager = pair(density)
        seconds = interleaved({"crest": ours, "eager mask": eager}, 2 if large else 9)
        ratios[density] = seconds["eager mask"] / seconds["crest"]
        torch.testing.assert_close(ours(), eager(), rtol=1e-4, atol=1e-3)
    worst = min(ratios, key=ratios.__getitem__)
    crest, eager = pair(worst)
    compare(
        benchmark,
        crest,
        {"eager mask": eager},
        group="masked_linear at its worst density, float32",
        case=f"{layer} {m, k}, n = {n}",
        rounds=3 if large else 15,
        **{"at density": worst, "all ratios": f"{min(ratios.values()):.2f} to {max(ratios.values()):.2f}"},
    )
