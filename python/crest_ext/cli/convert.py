"""`crest convert`: between .crest, safetensors and torch files, bit for bit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import SafetensorError
from safetensors import safe_open as open_safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from crest_ext import report
from crest_ext.cli.common import Json
from crest_ext.container import safe_open, save_file
from crest_ext.container.writer import replace

Metadata = dict[str, str]


def convert(
    source: Annotated[Path, typer.Argument(help="A .crest, .safetensors, .pt, .pth or .bin file.")],
    target: Annotated[Path, typer.Argument(help="A .crest or .safetensors file to write.")],
    as_json: Json = False,
) -> None:
    """Between .crest and safetensors, bit for bit with the metadata; from a torch file's weights."""
    if target.suffix not in WRITERS:
        raise ValueError(f"convert: target must end in {' or '.join(WRITERS)}, got {target}")
    if source.suffix not in READERS:
        raise ValueError(f"convert: source must end in {', '.join(READERS)}, got {source}")
    tensors, metadata = READERS[source.suffix](source)
    WRITERS[target.suffix](tensors, target, metadata)
    sizes = source.stat().st_size, target.stat().st_size
    elements = sum(tensor.numel() for tensor in tensors.values())
    report.show(report.ConvertReport(str(source), str(target), len(tensors), elements, *sizes), as_json)


def _read_crest(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    with safe_open(path) as file:
        return file.all(None), file.metadata()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    try:
        with open_safetensors(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: must be a safetensors file: {error}") from None


def _read_torch(path: Path) -> tuple[dict[str, Tensor], Metadata]:
    """A dict of tensors, or one under "state_dict" or "model". Nothing but weights is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        line = str(error).partition("\n")[0]
        raise ValueError(f"{path}: must be a torch file of weights alone: {line}") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ValueError(f"{path}: must hold a dict of tensors, got {type(state).__name__}")
    return state, {}


def _write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: Metadata) -> None:
    data = safetensors_bytes({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, metadata or None)
    replace(path, lambda file: file.write(data))


READERS = {
    ".crest": _read_crest,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
}
WRITERS = {".crest": save_file, ".safetensors": _write_safetensors}
