"""The layers of a network that a rewrite made, as text beside its tensors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crest_ext.container.reader import Reader, StrPath
from crest_ext.nn import DepthwiseConv2d, LoweredConv2d, Masked, ZeroConv2d
from crest_ext.nn.replace import replace_layers
from crest_ext.ops.depthwise_conv2d import is_channels_last

KEY = "layers"  # of the metadata
SIDES = ("kernel_size", "stride", "padding", "dilation", "output_padding")
CONV = ("kernel_size", "stride", "padding", "dilation", "bias")
NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
# What rewrites make or change, and the arguments that make it, which are its attributes as well. The more special come
# first: a module is of the first kind that it is an instance of.
KINDS: dict[type[nn.Module], tuple[str, ...]] = {
    LoweredConv2d: ("channels", "out_channels", "window", "count", "strides", "dilations", "pads", "pad_mode", "bias"),
    DepthwiseConv2d: ("channels", *CONV, "multiplier", "activation"),
    ZeroConv2d: ("channels", "kernel_size", "stride", "dilation", "pads"),
    nn.Conv2d: ("in_channels", "out_channels", *CONV, "groups", "padding_mode"),
    nn.ConvTranspose2d: ("in_channels", "out_channels", *CONV, "output_padding", "padding_mode"),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.PReLU: ("num_parameters",),
    nn.Sequential: (),
    nn.ReLU: (),
    **dict.fromkeys((*BATCH_NORMS, *INSTANCE_NORMS), NORM),
}
BY_NAME = {kind.__name__: kind for kind in KINDS}


def describe(model: nn.Module, of: nn.Module) -> str:
    """JSON: the kind and arguments of each module in which `model` differs from `of`, by name, in their order.

    Raises:
        ValueError: a module differs that is of none of KINDS, or is the model itself.
    """
    others, found = dict(of.named_modules()), dict[str, list[Any]]()
    for name, module in model.named_modules():
        entry, other = _entry(module), others.get(name)
        if entry is not None and name:
            if other is None or entry != _entry(other):
                found[name] = entry
        elif other is None or type(module) is not type(other) or _shapes(module) != _shapes(other):
            rule = "be as in `of`, or one of " + ", ".join(BY_NAME) if name else "have layers, or be as `of`"
            raise ValueError(
                f"save_model: {repr(name) if name else 'model'} must {rule}, got a {type(module).__name__}"
            )
    return json.dumps(found, separators=(",", ":"))


@contextmanager
def rebuilt(model: nn.Module, file: Reader, path: StrPath) -> Iterator[None]:
    """The model with the layers that a file describes, in place and with no values yet; as it was, after an error.

    Raises:
        ValueError: the description is damaged, or not of such a model and the file's tensors.
    """
    if (text := file.metadata().get(KEY)) is None:
        yield
        return
    made, modules = _made(text, f"{path}: metadata {KEY!r}"), dict(model.named_modules())
    _check(made, modules, file, path)
    likes, undo = dict[str, Tensor](), list[Callable[[], object]]()
    try:
        for name, module in made.items():
            parent, _, child = name.rpartition(".")
            old = modules.get(name)
            own = next(old.parameters(), None) if old else None
            likes[name] = own if own is not None else likes.get(parent, torch.empty(0))
            module = _on(module, likes[name])
            if old is None:
                above = modules[parent]
                setattr(above, child, module.train(above.training))
            elif isinstance(old, Masked) or _kind(old) is not _kind(module):
                undo.append(partial(replace_layers, model, {module: old}))
                replace_layers(model, {old: module.train(old.training)})
            else:
                held = {"_parameters": {**old._parameters}, "_buffers": {**old._buffers}}
                undo.append(partial(old.__dict__.update, {**vars(old), **held}))
                _become(old, module)
                continue
            modules[name] = module
        yield
    except BaseException:
        for back in reversed(undo):
            back()
        raise


def _check(made: dict[str, nn.Module], modules: dict[str, nn.Module], file: Reader, path: StrPath) -> None:
    """That each module has its place, and the file its tensors."""
    known = dict(modules)
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        new = parent in made and isinstance(known.get(parent), nn.Sequential) and child.isdecimal()
        if not name or (name not in known and not new):
            raise ValueError(f"{path}: metadata {KEY!r}: names must be of layers of the model, got {name!r}")
        known[name] = module
        for key, shape in _shapes(module).items():
            if (held := file.entry(f"{name}.{key}").shape) != shape:
                raise ValueError(f"{path}: tensor {name}.{key} must have the shape of its layer, {shape}, got {held}")


def _kind(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in KINDS if isinstance(module, kind)), None)


def _entry(module: nn.Module) -> list[Any] | None:
    """[kind] or [kind, {argument: value}], without what is the default."""
    if (kind := _kind(module)) is None:
        return None
    known, given = inspect.signature(kind).parameters, {}
    for argument in KINDS[kind]:
        value = getattr(module, argument)
        if argument == "bias":
            value = value is not None
        elif argument in SIDES and kind is not ZeroConv2d and isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]  # as most are written
        if value != known[argument].default:
            given[argument] = list(value) if isinstance(value, tuple) else value
    return [kind.__name__, given] if given else [kind.__name__]


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of what the state holds of the module itself."""
    held = module.state_dict()
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: tuple(tensor.shape) for name, tensor in tensors if name in held}


def _made(text: str, where: str) -> dict[str, nn.Module]:
    """Modules without memory."""
    try:
        found = json.loads(text, object_pairs_hook=_object)
        if not isinstance(found, dict):
            raise TypeError(f"it must be an object, got {type(found).__name__}")
        return {name: _module(*entry) for name, entry in found.items()}
    except (TypeError, ValueError, RuntimeError, KeyError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{where} must describe layers: {type(error).__name__}: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("names must differ")
    return found


def _module(kind: str, given: dict[str, Any] | None = None) -> nn.Module:
    given, cls = given or {}, BY_NAME[kind]
    for argument, value in given.items():
        if argument not in KINDS[cls]:
            raise ValueError(f"{kind} has no argument {argument!r}")
        for part in value if isinstance(value, list) else [value]:
            if not (part is None or isinstance(part, (int, float, str))) or (isinstance(part, int) and part < 0):
                raise ValueError(f"{argument} of {kind} must be numbers of at least 0, or a word, got {value!r}")
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    with torch.device("meta"):
        return cls(**arguments)


def _on(module: nn.Module, like: Tensor) -> nn.Module:
    """The module in memory, of the dtype, on the device and in the format of a parameter."""
    format_ = torch.channels_last if is_channels_last(like) else torch.preserve_format
    module = module.to(like.dtype).to_empty(device=like.device)
    return module.to(memory_format=format_).requires_grad_(like.requires_grad)  # type: ignore[call-overload]


def _become(old: nn.Module, module: nn.Module) -> None:
    """Take another's attributes, and its tensors where their shapes differ."""
    plain = vars(module).keys() - vars(nn.Module()).keys()
    vars(old).update({key: vars(module)[key] for key in plain})
    for mine, others in ((old._parameters, module._parameters), (old._buffers, module._buffers)):
        for key, tensor in others.items():
            kept = mine.get(key)
            if tensor is None or kept is None or kept.shape != tensor.shape:
                mine[key] = tensor  # type: ignore[assignment]
