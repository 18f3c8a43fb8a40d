"""A packed sparse layer against dense and sparse peers; but for torch and DeepSparse these know no bias.

All take x as torch keeps it, (n, k), but scipy and MKL: those get x and give y feature-major, their own order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crest_ext
from peers import deepsparse, inductor, litert, openvino_options
from timing import compare

LAYERS = {
    "LeNet-300-100 ip1": (300, 784),
    "square": (1024, 1024),
    "AlexNet fc7": (4096, 4096),
    "AlexNet fc6": (4096, 9216),
}
Layer = Callable[[Tensor], Callable[[], Any]]  # of x, what is timed


def scipy_csr(weight: Tensor) -> Layer | str:
    try:
        from scipy.sparse import csr_matrix
    except ImportError:
        return "not installed"
    matrix = csr_matrix(weight.numpy())
    return lambda x: partial(matrix.dot, columns(x))


def mkl(weight: Tensor) -> Layer | str:
    try:
        from scipy.sparse import csr_matrix
        from sparse_dot_mkl import dot_product_mkl
    except ImportError:  # of the package, or of MKL's library
        return "not installed"
    matrix = csr_matrix(weight.numpy())
    return lambda x: partial(dot_product_mkl, matrix, columns(x))


def columns(x: Tensor) -> Any:
    return x.t().contiguous().numpy() if len(x) > 1 else x[0].numpy()


def product(weight: Tensor) -> bytes:
    """x weight^T as an ONNX model, for the engines that read one."""
    from onnx import TensorProto, helper, numpy_helper

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in zip("yx", weight.shape, strict=True)
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "layer", ends[1:], ends[:1], [numpy_helper.from_array(weight.t().numpy(), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def onnxruntime(weight: Tensor) -> Layer | str:
    try:
        import onnxruntime as ort

        model = product(weight)
    except ImportError:
        return "not installed"
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would go on for a while after each call, on the cores of what is called next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: partial(session.run, None, {"x": x.numpy()})


def openvino(weight: Tensor) -> Layer | str:
    try:
        import openvino as ov

        model = product(weight)
    except ImportError:
        return "not installed"
    core = ov.Core()
    request = core.compile_model(core.read_model(model, b""), "CPU", openvino_options()).create_infer_request()
    return lambda x: partial(request.infer, [x.numpy()])


def torch_csr(weight: Tensor) -> Layer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        matrix = weight.to_sparse_csr()
    return lambda x: partial(F.linear, x, matrix)


@lru_cache(maxsize=1)  # the next case is most likely of the same weight
def peers(
    m: int,
    k: int,
    zeros: float,
    threads: int,  # noqa: ARG001 (part of the key: peers are made for so many)
) -> tuple[Tensor, crest_ext.PackedSparse, dict[str, Layer | str]]:
    weight = torch.where(torch.rand(m, k) < zeros, 0, torch.randn(m, k))
    made = {
        "torch CSR": torch_csr,
        "scipy": scipy_csr,
        "MKL": mkl,
        "ONNX Runtime": onnxruntime,
        "OpenVINO": openvino,
    }
    return weight, crest_ext.pack_sparse(weight), {name: make(weight) for name, make in made.items()}


@pytest.mark.parametrize("n", [1, 8, 64])
@pytest.mark.parametrize("zeros", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("layer", LAYERS)
def bench_sparse_linear(benchmark: Any, layer: str, zeros: float, n: int, threads: int) -> None:
    run(benchmark, layer, zeros, n, threads)


@pytest.mark.parametrize("layer", ["square", "AlexNet fc7"])
def bench_break_even(benchmark: Any, layer: str, threads: int) -> None:
    """More than half of the weights are there: from about here on no dense peer is faster."""
    run(benchmark, layer, 0.45, 64, threads)


@pytest.mark.parametrize("n", [1, 8, 64])
@pytest.mark.parametrize("layer", ["square", "AlexNet fc7"])
@pytest.mark.parametrize("threads", [2], indirect=True)
def bench_sparse_linear_threads(benchmark: Any, layer: str, n: int, threads: int) -> None:
    run(benchmark, layer, 0.9, n, threads)


@pytest.mark.parametrize("zeros", [0.8, 0.9, 0.95])
def bench_overhead(benchmark: Any, zeros: float) -> None:
    """A small layer's call beside the same call without non-zeros: the difference is the kernel's own time."""
    (m, k), op = LAYERS["LeNet-300-100 ip1"], torch.ops.crest.sparse_linear
    weight, bias, x = torch.randn(m, k) * (torch.rand(m, k) >= zeros), torch.randn(m), torch.randn(1, k)
    packed, empty = crest_ext.pack_sparse(weight), crest_ext.pack_sparse(torch.zeros(m, k))
    compare(
        benchmark,
        lambda: op(x, *packed, bias, "relu"),
        {"without non-zeros": lambda: op(x, *empty, bias, "relu")},
        group="sparse_linear, what a call takes beside its kernel, float32",
        case=f"LeNet-300-100 ip1 ({m}, {k}), 1 row, {zeros:.0%} zeros",
        rounds=50,
    )
    torch.testing.assert_close(op(x, *packed, bias, "relu"), F.linear(x, weight, bias).relu(), rtol=1e-4, atol=1e-4)


def run(benchmark: Any, layer: str, zeros: float, n: int, threads: int) -> None:
    # Where nothing is timed, a quarter of each side shows as well that results agree.
    m, k = (size if benchmark.enabled else size // 4 for size in LAYERS[layer])
    weight, packed, others = peers(m, k, zeros, threads)
    x, bias = torch.randn(n, k), torch.randn(m)
    made: dict[str, Any] = {name: peer if isinstance(peer, str) else peer(x) for name, peer in others.items()}
    if benchmark.enabled:
        dense = nn.Linear(k, m, device="meta")
        dense.weight, dense.bias = (nn.Parameter(t, requires_grad=False) for t in (weight, bias))
        engines = {"LiteRT": litert, "torch.compile": inductor, "DeepSparse": deepsparse}
        made |= {name: engine(dense, x) for name, engine in engines.items()}
    large = m * k > 1 << 20  # else the product that is the limit of arithmetic leaves nothing of ours in cache
    compare(
        benchmark,
        partial(crest_ext.sparse_linear, x, *packed, bias),
        {"torch": partial(F.linear, x, weight, bias)} | made,
        group=f"sparse_linear, float32, {zeros:.0%} zeros" + f", {threads} threads" * (threads > 1),
        case=f"{layer} {m, k}, {n} row{'s'[: n > 1]}",
        headline=f"sparse_linear {m, k}, {n} row{'s'[: n > 1]}, 90 % zeros"
        if (layer, zeros, threads) == ("AlexNet fc7", 0.9, 1)
        else "",
        rounds=(7 if n < 64 else 3) if large else 30,
        nbytes=packed.nbytes if n == 1 else 0,  # what bounds one row; multiply-adds bound many
        flops=2 * n * int(weight.count_nonzero()) if n > 1 and large else 0,
    )
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(crest_ext.sparse_linear(x, *packed, bias), expected, rtol=1e-4, atol=1e-3)
