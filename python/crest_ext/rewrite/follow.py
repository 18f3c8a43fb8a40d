"""Channels on their way through a network: the part of `shrink` that looks."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from crest_ext.nn import DepthwiseConv2d
from crest_ext.rewrite.channels import Channels, Use

# ATen operations, and one of ours, by their names, without the _ of those in place.
# fmt: off
UNARY = {
    "abs", "alias", "alpha_dropout", "celu", "clamp", "clamp_max", "clamp_min", "clone", "contiguous", "detach",
    "dropout", "elu", "exp", "feature_dropout", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish",
    "neg", "pow", "relu", "relu6", "rsqrt", "rsub", "selu", "sigmoid", "silu", "softplus", "softsign", "sqrt", "square",
    "tanh", "to",
}
# fmt: on
LAYERS = {"linear", "conv2d", "conv_transpose2d", "depthwise_conv2d"}
BINARY = {"add", "div", "maximum", "minimum", "mul", "sub"}
POOLS = {f"{kind}_pool{d}d": d for kind in ("max", "avg", "adaptive_avg") for d in (1, 2, 3)}  # over d dimensions
POOLS |= {"upsample_nearest2d": 2, "upsample_bilinear2d": 2}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class Axis:
    """The channels of a tensor, along one dimension. Flattening repeats ids."""

    dim: int
    ids: Tensor  # (c,)
    known: Tensor  # (c,); bool: one value, whatever the model's input


def follow(model: nn.Module, args: tuple[Any, ...], barred: dict[nn.Module, str]) -> Channels:
    """The channels of a model, and which of them are one value whatever its input.

    Channels get ids where a layer makes them, and keep them through what treats each by itself. What mixes them in a
    way not listed here, or names them by number in the model's code, pins them. Where evaluation leaves parameters
    unread, the branches that read them in training are followed as well, as they would be in evaluation.

    Args:
        model: plain and in evaluation; run, not changed.
        args: its inputs.
        barred: layers to leave as they are, with the reason.

    Raises:
        ValueError: torch.export cannot trace the model.
    """
    channels = Channels(dict(barred))
    try:
        program = _export(model, args)
    except Exception as error:  # of any kind: it runs the model's own code
        raise ValueError(f"shrink: model must be traceable by torch.export, got {error}") from error
    _Walk(model, channels).run(program, args)
    unread = set(model.parameters()) - _read(program, model)
    if not unread:
        return channels
    enter_branches(model)
    try:
        program = _export(model, args)
    except Exception:  # as above, of code that evaluation does not need
        why = "is not run in evaluation, and torch.export cannot trace training: it may read channels that went"
        idle = (module for module in model.modules() if unread.intersection(module.parameters(False)))
        channels.reasons |= {module: why for module in idle if module not in channels.reasons}
    else:
        if unread & _read(program, model):
            channels.branches = True
            _Walk(model, channels).run(program, args)
    finally:
        model.eval()
    of_layers = ((use.layer, torch.cat([use.ins, use.outs])) for use in channels.uses.values())
    for module, ids in itertools.chain(of_layers, channels.by_channel.items()):
        if module in channels.reasons:  # by what a branch does
            channels.pin(ids, f"their layer {channels.reasons[module]}")
    return channels


def enter_branches(model: nn.Module) -> None:
    """Whatever a model's own code does in training, with BatchNorm, dropout and all that is torch's in evaluation."""
    for module in model.modules():
        module.training = bool(module._modules) and not type(module).__module__.startswith("torch.")


def _export(model: nn.Module, args: tuple[Any, ...]) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():  # of attributes that the model writes, as nn.LSTM does: that is undone
        warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
        return torch.export.export(model, args, strict=False)


def _read(program: torch.export.ExportedProgram, model: nn.Module) -> set[nn.Parameter]:
    """The parameters that a program reads."""
    nodes = (node for node in program.graph.nodes if node.op == "placeholder")
    found = zip(nodes, program.graph_signature.input_specs, strict=True)
    return {attrgetter(s.target or "")(model) for n, s in found if s.kind is InputKind.PARAMETER and n.users}


class _Walk:
    """Through the graph in its order on real values: they tell what a constant is, and which tensors share memory."""

    def __init__(self, model: nn.Module, channels: Channels) -> None:
        self.channels = channels
        self.values: dict[Node, Any] = {}
        self.axes: dict[Node, Axis] = {}
        self.lost: dict[Node, str] = {}  # what made a tensor whose channels are not followed
        self.readers = Counter[int]()  # operations that read a parameter or buffer, by its id()
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.owners = dict[int, nn.Module]()
        for module in model.modules():
            for tensor in itertools.chain(module.parameters(False), module.buffers(False)):
                other = self.owners.setdefault(id(tensor), module)
                if other is not module:
                    self.channels.reasons.update(dict.fromkeys((module, other), "shares a parameter"))

    def run(self, program: torch.export.ExportedProgram, args: tuple[Any, ...]) -> None:
        inputs = iter(pytree.tree_leaves(args))
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                value = next(inputs)
                self.values[node] = value.clone() if isinstance(value, Tensor) else value
                self.lost[node] = "the model's input"
            elif isinstance(spec.arg, ConstantArgument):
                self.values[node] = spec.arg.value
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                self.values[node] = attrgetter(spec.target or "")(self.model)
            else:
                self.values[node] = program.constants[spec.target or ""]
            self.readers[id(self.values[node])] += len(node.users)
        for node in program.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = attrgetter(node.target)(program.graph_module)
            elif node.op == "output":
                self.pin(node.all_input_nodes, "they are outputs of the model")
            elif node.op == "call_function":
                arguments, options = map_arg((node.args, node.kwargs), lambda n: self.values[n])
                self.values[node] = node.target(*arguments, **options)
                self.step(node, self.values[node])

    def step(self, node: Node, y: Any) -> None:
        name = str(node.target).removeprefix("aten.").removeprefix("crest.").split(".")[0].removesuffix("_")
        axis = self.rule(name, node, y)
        if axis is None:
            origin = next((self.lost[n] for n in node.all_input_nodes if n in self.lost), None)
            why = f"they go through {name}" + (f", with what {origin} gives" if origin else "")
            self.pin(node.all_input_nodes, why)
            self.lost[node] = origin or name
        else:
            lo, hi = _range(y, axis.dim)
            uniform = hi - lo <= 16 * torch.finfo(y.dtype).eps * hi.abs()
            self.axes[node] = axis = replace(axis, known=axis.known & uniform)
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            self.write(node.all_input_nodes[0], axis, f"they are written to by {name}")

    def write(self, node: Node, axis: Axis | None, why: str) -> None:
        """An operation in place: what is the same tensor has the new channels, what only shares memory is lost."""
        x = self.values[node]
        for other, value in self.values.items():
            if other.users.keys() <= self.values.keys():
                continue  # read no more
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
                if axis is not None and (value.shape, value.stride()) == (x.shape, x.stride()):
                    self.axes[other] = axis
                else:
                    self.pin([other, node], why)
                    self.axes.pop(other, None)

    def rule(self, name: str, node: Node, y: Any) -> Axis | None:
        """The channels of y = name(...); None where each is not a channel of its own any more."""
        if name in LAYERS:
            return None if node.kwargs else self.layer(name, node)
        if name in ("batch_norm", "prelu"):
            return None if node.kwargs else self.by_channel(name, node)
        if name in ("cat", "concat", "concatenate"):
            return self.cat(node, y)
        inputs, args = node.all_input_nodes, list[Any](node.args)
        x = self.axes.get(args[0]) if args and isinstance(args[0], Node) else None
        axes = [self.axes.get(n) for n in inputs]
        if x is None or any(axis is None or (axis.dim, len(axis.ids)) != (x.dim, len(x.ids)) for axis in axes):
            return None
        if name in BINARY and len({self.values[n].dim() for n in inputs}) == 1:
            known = x.known
            for other in filter(None, axes):
                self.channels.unite(x.ids, other.ids)
                known = known & other.known
            return replace(x, known=known)
        if len(inputs) == 1 and isinstance(y, Tensor) and y.is_floating_point():
            return self.unary(name, args[1:], x, self.values[inputs[0]].shape, y)
        return None

    def unary(self, name: str, args: list[Any], x: Axis, shape: torch.Size, y: Tensor) -> Axis | None:
        """The same, of what takes one tensor, with these channels and of this shape."""
        after = y.dim() - x.dim - 1  # dimensions after that of the channels
        if name in UNARY and y.shape == shape:
            trains = name.endswith("dropout") and any(args[1:])  # though nothing else does
            return replace(x, known=torch.zeros_like(x.known)) if trains else x
        if name in POOLS and after >= POOLS[name]:
            # An average with padding, or by another number than that of its values, is constant only at the size of
            # this input, if at all; but 0 where all values are.
            if not (name.startswith("avg") and any(pytree.tree_leaves([args[2:3], args[5:]]))):
                return x
            return replace(x, known=x.known & torch.stack(_range(y, x.dim)).eq(0).all(0))
        if name in ("pad", "constant_pad_nd"):
            return self.pad(args, x, after, y)
        if name in ("mean", "sum", "amax", "amin") and args and args[0]:
            dims = {d % len(shape) for d in args[0]}
            if x.dim in dims:
                return None
            x = replace(x, dim=x.dim - (sum(d < x.dim for d in dims) if y.dim() < len(shape) else 0))
            # A sum of constants is another for other sizes, but of zeros.
            return x if name != "sum" else replace(x, known=x.known & torch.stack(_range(y, x.dim)).eq(0).all(0))
        if name == "squeeze":
            given = range(len(shape)) if not args else args[0] if isinstance(args[0], list | tuple) else args[:1]
            dims = {d % len(shape) for d in given if shape[d] == 1}
            return None if x.dim in dims else replace(x, dim=x.dim - sum(d < x.dim for d in dims))
        if name == "unsqueeze":
            return replace(x, dim=x.dim + (args[0] % (len(shape) + 1) <= x.dim))
        if name == "transpose":
            one, two = (d % len(shape) for d in args[:2])
            return replace(x, dim={one: two, two: one}.get(x.dim, x.dim))
        if name == "slice":
            return x if (args and args[0] % len(shape) != x.dim) or y.shape == shape else None
        if name == "permute":
            return replace(x, dim=[d % len(shape) for d in args[0]].index(x.dim))
        # The size must be left to torch, not be a number in the model's code.
        flat = name == "flatten" or (name in ("view", "reshape") and args[0][x.dim : x.dim + 1] == [-1])
        if flat and y.dim() == x.dim + 1 and y.shape[: x.dim] == shape[: x.dim]:
            each = y.shape[x.dim] // shape[x.dim]
            return Axis(x.dim, x.ids.repeat_interleave(each), x.known.repeat_interleave(each))
        return None

    def pad(self, args: list[Any], x: Axis, after: int, y: Tensor) -> Axis | None:
        """Of the dimensions behind the channels, and of the channels themselves with zeros, as shortcuts do."""
        pads, how = list[int](args[0]), args[1:]
        before, behind, *others = [*pads[2 * after :], 0, 0]
        plain = all(v in (0, None, "constant") for v in how)
        if any(others) or min(before, behind) < 0 or ((before or behind) and not plain):
            return None
        lo, hi = (end[before : before + len(x.ids)] for end in _range(y, x.dim))
        self.channels.keep(x.ids[x.known & (lo != hi)], "padding follows their constant")
        if not before and not behind:
            return x
        zeros = [self.channels.new(n) for n in (before, behind)]
        self.channels.pin(torch.cat(zeros), "they are zeros that the model's code adds")
        known = [torch.ones(n, dtype=torch.bool) for n in (before, behind)]
        return Axis(x.dim, torch.cat([zeros[0], x.ids, zeros[1]]), torch.cat([known[0], x.known, known[1]]))

    def layer(self, name: str, node: Node) -> Axis | None:
        x, weight, bias, *options = [*node.args, None][: max(len(node.args), 3)]
        layer = self.owner(node, weight=weight, bias=bias)
        groups = layer.groups if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) else 1
        turned = isinstance(layer, nn.ConvTranspose2d)
        if (
            not isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
            or not isinstance(x, Node)
            or (turned and groups > 1)
            or (name == "conv2d" and options[3:] not in ([], [groups]))
        ):
            return None
        dim = self.values[x].dim() - (1 if name == "linear" else 3)
        axis = self.opaque(x, dim, f"they are not the channels that {self.names[layer]} reads")
        if (use := self.channels.uses.get(layer)) is not None:  # of evaluation
            self.channels.unite(axis.ids, use.ins)
            return Axis(dim, use.outs, use.constant)
        padding: Any = options[1] if len(options) > 1 else 0
        if isinstance(padding, str):
            padding = [k - 1 for k in layer.kernel_size] if padding == "same" else 0  # type: ignore[union-attr]
        lo, hi = _range(self.values[x], dim)
        foldable = axis.known & hi.isfinite()
        if turned or any(pytree.tree_leaves(padding)):  # not all pixels meet as many taps
            why = f"{'a ConvTranspose2d' if turned else 'padding'} follows their constant"
            self.channels.keep(axis.ids[foldable & (lo != 0)], why)
            foldable &= (lo == 0) & (hi == 0)
        w = layer.weight.detach().cpu()
        w = w.transpose(0, 1) if turned else w
        nonzero = (w.flatten(2) != 0).any(2) if w.dim() > 2 else w != 0
        nonzero = nonzero.view(groups, len(w) // groups, -1)
        constant = ~(nonzero & ~foldable.view(groups, 1, -1)).any(2).flatten()
        outs, value = self.channels.new(len(w)), torch.where(foldable, (lo + hi) / 2, torch.nan)
        self.channels.uses[layer] = Use(layer, groups, axis.ids, outs, value, constant, nonzero)
        return Axis(dim, outs, constant)

    def by_channel(self, name: str, node: Node) -> Axis | None:
        x, *tensors = node.args
        axis = self.axes.get(x) if isinstance(x, Node) else None
        if axis is None or axis.dim != 1:
            return None
        names = ("weight", "bias", "running_mean", "running_var")[: 4 if name == "batch_norm" else 1]
        if name == "prelu" and isinstance(tensors[0], Node) and self.values[tensors[0]].numel() == 1:
            return axis if tensors[0].op == "placeholder" and tensors[0] not in self.lost else None
        module = self.owner(node, **dict(zip(names, tensors, strict=False)))
        if not isinstance(module, (*NORMS, nn.PReLU)):
            return None
        self.channels.unite(axis.ids, self.channels.by_channel.setdefault(module, axis.ids))
        known = axis.known
        if isinstance(module, NORMS) and module.affine:
            known = known | (module.weight.detach().cpu() == 0)
        return replace(axis, known=known)

    def cat(self, node: Node, y: Tensor) -> Axis | None:
        args: Any = node.args
        nodes, dim = args[0], args[1] % y.dim() if len(args) > 1 else 0
        if any(self.values[n].dim() != y.dim() for n in nodes):
            return None
        if not any(n in self.axes and self.axes[n].dim == dim for n in nodes):
            return None
        axes = [self.opaque(n, dim, "they go through cat, along another dimension") for n in nodes]
        return Axis(dim, torch.cat([a.ids for a in axes]), torch.cat([a.known for a in axes]))

    def opaque(self, node: Node, dim: int, why: str) -> Axis:
        """The channels of a tensor along dim; where they are not followed, new ones that stay."""
        axis = self.axes.get(node)
        if axis is not None and axis.dim == dim:
            return axis
        self.pin([node], why)
        width = self.values[node].shape[dim]
        axis = Axis(dim, self.channels.new(width), torch.zeros(width, dtype=torch.bool))
        self.channels.pin(axis.ids, "they are not followed")
        return axis

    def owner(self, node: Node, **tensors: Any) -> nn.Module | None:
        """The module whose tensors these are, all of them and by these names, if it may be changed."""
        values = {name: self.values[n] if isinstance(n, Node) else None for name, n in tensors.items()}
        owner = next((self.owners[id(v)] for v in values.values() if id(v) in self.owners), None)
        if owner is None or any(getattr(owner, name, None) is not value for name, value in values.items()):
            return None
        if any(self.readers[id(v)] != 1 for v in values.values() if v is not None):
            self.channels.reasons.setdefault(owner, "is used more than once")
        if owner in self.channels.reasons:
            self.pin(node.all_input_nodes, f"{self.names[owner]} reads them, which {self.channels.reasons[owner]}")
            return None
        kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, DepthwiseConv2d, nn.PReLU, *NORMS)
        return owner if type(owner) in kinds else None

    def pin(self, nodes: Iterable[Node], why: str) -> None:
        for node in nodes:
            if node in self.axes:
                self.channels.pin(self.axes[node].ids, why)


def _range(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of each index along dim, in float64 on the CPU."""
    x = x.detach().movedim(dim, 0).flatten(1) if x.dim() > 1 else x.detach()[:, None]
    return x.amin(1).cpu().double(), x.amax(1).cpu().double()
