"""What a user would run instead of a whole module: a function to time, or the reason why it cannot run here."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import shutil
import subprocess
import tempfile
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import crest_ext
from timing import Function, Seconds, compare


def onnxruntime(module: nn.Module, x: Tensor) -> Function | str:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return f"{error.name} is not installed"
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = _with_onnx(
        module, x, lambda path: ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    )
    if isinstance(session, str):
        return session
    (name,) = (i.name for i in session.get_inputs())
    return partial(session.run, None, {name: x.numpy()})


def openvino(module: nn.Module, x: Tensor) -> Function | str:
    """In float32: by itself it takes bfloat16 where the processor has it."""
    try:
        import openvino as ov
    except ImportError as error:
        return f"{error.name} is not installed"
    compiled = _with_onnx(module, x, lambda path: ov.Core().compile_model(path, "CPU", openvino_options()))
    return compiled if isinstance(compiled, str) else partial(compiled.create_infer_request().infer, [x.numpy()])


def openvino_options() -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }


def litert(module: nn.Module, x: Tensor) -> Function | str:
    """By XNNPACK, channels last inside."""
    try:
        import litert_torch
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        return f"{error.name} is not installed"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):  # of what the converter reports
            litert_torch.convert(module.eval(), (x,)).export(f"{folder}/model.tflite")
        interpreter = Interpreter(f"{folder}/model.tflite", num_threads=torch.get_num_threads())
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    array = x.numpy()

    def run() -> Any:
        interpreter.set_tensor(given["index"], array)
        interpreter.invoke()
        return interpreter.get_tensor(made["index"])

    return run


def deepsparse(module: nn.Module, x: Tensor) -> Function | str:
    """An engine that gains from zeros, in a process of its own; with one thread, most likely on a core of its own."""
    python = os.environ.get("CREST_DEEPSPARSE")
    if python is None:
        return "CREST_DEEPSPARSE names no Python that has it"

    def start(model: Path) -> subprocess.Popen[str] | str:
        given, made = model.with_name("x.npy"), model.with_name("y.npy")
        np.save(given, x.numpy())
        command = [python, Path(__file__).with_name("deepsparse_worker.py"), model, given, made]
        worker = subprocess.Popen(
            [*map(str, command), str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        )
        if _line(worker) != "ready":
            _stop(worker)
            raise RuntimeError(f"{python} does not run deepsparse_worker.py: try it by hand")
        if not torch.allclose(torch.from_numpy(np.load(made)), module(x), rtol=1e-3, atol=1e-3):
            _stop(worker)
            return "its result is another than torch's on this machine"
        return worker

    worker = _with_onnx(module, x, start)
    if isinstance(worker, str):
        return worker

    def run() -> Seconds:
        assert worker.stdin
        worker.stdin.write("\n")
        worker.stdin.flush()
        return Seconds(_line(worker))

    weakref.finalize(run, _stop, worker)
    return run


def _stop(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()  # closes its pipes


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout
    return worker.stdout.readline().strip()


def dense(module: nn.Module, x: Tensor) -> dict[str, Function | str]:
    """Engines that pay for zeros as well."""
    others = {"ONNX Runtime": onnxruntime, "OpenVINO": openvino, "LiteRT": litert}
    return {"torch": in_torch(module, x)} | {name: make(module, x) for name, make in others.items()}


def engines(module: nn.Module, x: Tensor) -> dict[str, Function | str]:
    """Those that pay for zeros, torch's compiler, and the one that gains from them."""
    return dense(module, x) | {"torch.compile": inductor(module, x), "DeepSparse": deepsparse(module, x)}


def inductor(module: nn.Module, x: Tensor) -> Function | str:
    """By torch.compile, with weights in the layout of its kernels."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name):
        return "no C++ compiler"
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(module).requires_grad_(False), options={"freezing": True})

    def run() -> Tensor:
        with torch.no_grad():  # or it does not change weights
            return compiled(x)  # type: ignore[no-any-return]

    run()
    return run


def _with_onnx(module: nn.Module, x: Tensor, load: Callable[[Path], Any]) -> Any:
    """What `load` makes of a file of the module; the reason why there is none."""
    try:
        from onnxscript import opset18 as onnx_ops  # what torch exports through
    except ImportError as error:
        return f"{error.name} is not installed"

    def normalize(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
        return onnx_ops.LRN(x, size=size, alpha=alpha, beta=beta, bias=k)

    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        # torch's is exported as the pooling it is made of; ours can be told to be what the engines have a kernel for
        mock.patch.object(F, "local_response_norm", crest_ext.local_response_norm),
    ):
        warnings.simplefilter("ignore")  # the exporter warns of torch's own
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            (x,),
            path,
            dynamo=True,
            verbose=False,
            external_data=True,
            opset_version=18,
            custom_translation_table={torch.ops.crest.local_response_norm.default: normalize},
        )
        return load(path)


def in_torch(module: nn.Module, x: Tensor, **layout: Any) -> Function:
    """Without gradients; `memory_format` for another layout.

    Nothing requires one: torch.inference_mode would take two microseconds of each call, which no engine has to pay.
    """
    module.requires_grad_(False)
    return partial(module.to(**layout), x.to(**layout)) if layout else partial(module, x)


def compare_packed(benchmark: Any, packed: nn.Module, plain: nn.Module, x: Tensor, **how: Any) -> None:
    """timing.compare of a packed network and the same one, plain, by torch in both formats and by engines."""
    channels_last = in_torch(copy.deepcopy(plain), x, memory_format=torch.channels_last)
    others = engines(plain, x) | {"torch, channels_last": channels_last}
    compare(benchmark, in_torch(packed, x), others, **how)
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-3, atol=1e-4)
