"""What a user would run instead of a whole module: a function to time, or the reason why it cannot run here."""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from timing import Function


def onnxruntime(module: nn.Module, x: Tensor) -> Function | str:
    try:
        import onnxruntime as ort
        import onnxscript  # noqa: F401 (what torch exports through)
    except ImportError as error:
        return f"{error.name} is not installed"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of torch's own
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, (x,), path, dynamo=True, verbose=False, external_data=True)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    return partial(session.run, None, {name: x.numpy()})


def in_torch(module: nn.Module, x: Tensor, **layout: Any) -> Function:
    """Without gradients; `memory_format` for another layout."""
    if layout:
        module, x = module.to(**layout), x.to(**layout)

    def run() -> Tensor:
        with torch.inference_mode():
            return module(x)

    return run
