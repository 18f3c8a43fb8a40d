"""Files of whole models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crest_ext.container.files import save_file
from crest_ext.container.reader import StrPath, safe_open
from crest_ext.container.structure import KEY, describe, rebuilt

# Bool buffers of crest_ext.nn's masked modules, and the parameter beside them that each masks.
MASKED = {"mask": "weight", "bias_mask": "bias"}


def save_model(
    model: nn.Module, path: StrPath, metadata: Mapping[str, str] | None = None, *, of: nn.Module | None = None
) -> None:
    """Write the state of a model; of a masked model the compressed weights alone.

    A masked parameter is written as it acts, 0.0 where its mask drops it, and no mask beside it: `load_model` reads
    the file into the plain network as well as into the masked one. A weight that is zero but kept is written as -0.0,
    so the masks come back exactly. Tensors that share their memory (tied weights) are written once.

    Args:
        model: whose state is written.
        path: of the file; its folder exists.
        metadata: text to store beside the tensors.
        of: the network that `shrink`, `factorize`, `separate` or `decompose`, or several in turn, made the model of, or
            one like it. The file then says in which layers they differ, for `load_model` to make them.

    Raises:
        ValueError: the state holds something that is not a tensor; with `of`, the model differs in other than layers
            that these make, or the metadata has "layers"; what `save_file` raises.
        OSError: the file cannot be written.
    """
    state = model.state_dict()
    masks = masks_in(state)
    names = {group[0] for group in _tied(state, masks)}.difference(masks.values())
    if of is not None:
        if metadata and KEY in metadata:
            raise ValueError(f"save_model: with `of`, metadata must not have {KEY!r}, got {metadata[KEY]!r}")
        metadata = {**(metadata or {}), KEY: describe(model, of)}
    save_file({n: _effective(state[n], state[masks[n]]) if n in masks else state[n] for n in names}, path, metadata)


def load_model(model: nn.Module, path: StrPath, strict: bool = True) -> tuple[list[str], list[str]]:
    """Read a file of `save_model` into a model in place: the plain network or a masked one.

    In a masked one, a +0.0 in the file is a dropped weight and everything else is kept. Where the file says how its
    layers differ from the network's (`save_model(of=)`), the model has layers like them afterwards, on parameters that
    no optimizer knows yet.

    Args:
        model: takes the values, on its own devices and in its own dtypes.
        path: of the file.
        strict: whether a missing or an unexpected name is an error.

    Returns:
        The names the file lacks and the names the model lacks.

    Raises:
        ValueError: a shape differs; with strict, a name is missing or unexpected; the layers are not of such a model;
            what `load_file` raises.
    """
    with safe_open(path) as file:
        tensors = file.all(None)
        with rebuilt(model, file, path):
            return _load(model, tensors, path, strict)


def _load(model: nn.Module, tensors: Mapping[str, Tensor], path: StrPath, strict: bool) -> tuple[list[str], list[str]]:
    state = model.state_dict()
    masks = masks_in(state)
    groups = [group for group in _tied(state, masks) if group[0] not in masks.values()]
    missing = [group[0] for group in groups if not any(name in tensors for name in group)]
    expected = {name for group in groups for name in group}
    unexpected = [name for name in tensors if name not in expected]
    if strict:
        require_names(path, missing, unexpected)
    values = {name: tensors[name] for name in tensors if name in expected}
    for name, value in values.items():
        require_shape(path, name, state[name].shape, value.shape)
    values |= {masks[n]: (v != 0) | torch.signbit(v) for n, v in values.items() if n in masks}
    taken = OrderedDict(values)
    if versions := getattr(state, "_metadata", None):  # without them, modules take it as old
        taken._metadata = versions  # type: ignore[attr-defined]
    model.load_state_dict(taken, strict=False)
    return missing, unexpected


def require_names(path: StrPath, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    pairs = (("missing", missing), ("unexpected", unexpected))
    if missing or unexpected:
        got = "; ".join(f"{what} {', '.join(names)}" for what, names in pairs if names)
        raise ValueError(f"{path}: names must be those of the model, got {got}")


def require_shape(path: StrPath, name: str, own: Sequence[int], got: Sequence[int]) -> None:
    if tuple(own) != tuple(got):
        raise ValueError(f"{path}: tensor {name!r} must have the shape of the model's, {tuple(own)}, got {tuple(got)}")


def masks_in(state: Mapping[str, object]) -> dict[str, str]:
    """Names of masked parameters and of their masks."""
    pairs = {}
    for name, mask in state.items():
        prefix, dot, leaf = name.rpartition(".")
        masked = state.get(f"{prefix}{dot}{MASKED.get(leaf)}")
        if not (isinstance(mask, Tensor) and mask.dtype == torch.bool and isinstance(masked, Tensor)):
            continue
        if masked.is_floating_point() and masked.shape == mask.shape:
            pairs[f"{prefix}{dot}{MASKED[leaf]}"] = name
    return pairs


def _tied(state: Mapping[str, object], masks: Mapping[str, str]) -> list[list[str]]:
    """Names grouped by the memory they stand for, and by the memory of their masks."""
    groups: dict[object, list[str]] = {}
    for name in state:
        groups.setdefault((_memory(state[name], name), _memory(state.get(masks.get(name, "")), "")), []).append(name)
    return list(groups.values())


def _memory(value: object, otherwise: str) -> object:
    if isinstance(value, Tensor) and value.device.type != "meta" and value.numel():
        return value.device, value.data_ptr(), value.dtype, value.shape, value.stride()
    return otherwise


def _effective(weight: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, torch.where(weight == 0, -0.0, weight), 0.0)
