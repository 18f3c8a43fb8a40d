"""What a user would run instead of a whole module: a function to time, or the reason why it cannot run here."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timing import Function


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


def dense(module: nn.Module, x: Tensor) -> dict[str, Function | str]:
    """Engines that pay for zeros as well."""
    others = {"ONNX Runtime": onnxruntime, "OpenVINO": openvino, "LiteRT": litert}
    return {"torch": in_torch(module, x)} | {name: make(module, x) for name, make in others.items()}


def _with_onnx(module: nn.Module, x: Tensor, load: Callable[[Path], Any]) -> Any:
    """What `load` makes of a file of the module; the reason why there is none."""
    try:
        import onnxscript  # noqa: F401 (what torch exports through)
    except ImportError as error:
        return f"{error.name} is not installed"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of torch's own
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, (x,), path, dynamo=True, verbose=False, external_data=True)
        return load(path)


def in_torch(module: nn.Module, x: Tensor, **layout: Any) -> Function:
    """Without gradients; `memory_format` for another layout."""
    if layout:
        module, x = module.to(**layout), x.to(**layout)

    def run() -> Tensor:
        with torch.inference_mode():
            return module(x)

    return run
