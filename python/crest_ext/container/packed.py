"""Files of models read onto packed weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crest_ext.container.models import masks_in, require_names, require_shape
from crest_ext.container.reader import Reader, StrPath, safe_open
from crest_ext.container.structure import rebuilt
from crest_ext.nn import SparseConv2d, SparseLinear
from crest_ext.nn.layers import layers
from crest_ext.nn.replace import Model, reason_not_to_replace, replace_layers
from crest_ext.ops import PackedSparse
from crest_ext.ops.pack_sparse import VALUES, blocks_of_rows, join_blocks, pack_block


def load_packed(model: Model, path: StrPath, dtype: torch.dtype = torch.float32, most_kept: float = 0.5) -> Model:
    """Read a file of `save_model` for inference, and layers with many zeros at once as `nn.SparseLinear` and
    `nn.SparseConv2d`.

    The dense weight of such a Linear is never built. A model on the meta device takes no memory before either:

        with torch.device("meta"):
            model = create_model("alexnet")
        model = load_packed(model, "alexnet.crest").eval()

    Density alone decides, and nothing is folded; `pack` measures which layers are faster sparse.

    Args:
        model: the plain network, changed in place. What is on the meta device goes to the CPU.
        path: of the file.
        dtype: of the packed values: float32, bfloat16 or float16. Half precision rounds.
        most_kept: in [0, 1]; share of non-zeros in a weight up to which its layer becomes sparse. One that is not
            float32, shares its weight, has hooks or does not pad evenly with zeros stays dense.

    Returns:
        The model, or what stands for it if it is one layer itself.

    Raises:
        ValueError: dtype or most_kept is not as above; a name or a shape is not the model's; the model is
            masked, or has on the meta device what no file holds; what `safe_open` raises.
    """
    if dtype not in VALUES:
        raise ValueError(f"load_packed: dtype must be float32, bfloat16 or float16, got {dtype}")
    if not 0 <= most_kept <= 1:
        raise ValueError(f"load_packed: most_kept must be in [0, 1], got {most_kept}")
    if masks := masks_in(model.state_dict(keep_vars=True)):
        raise ValueError(f"load_packed: model must be the plain network, got one with {', '.join(masks.values())}")
    with safe_open(path) as file, rebuilt(model, file, path):
        state, held = model.state_dict(keep_vars=True), file.keys()
        names = {id(state[name]): name for name in held if name in state}
        missing = [name for name, tensor in state.items() if id(tensor) not in names]
        require_names(path, missing, [name for name in held if name not in state])
        for name in names.values():
            require_shape(path, name, state[name].shape, file.entry(name).shape)
        source = Source(file, names)
        others: dict[nn.Module, nn.Module] = {}
        for _, layer, reason in layers(model):
            plain = reason is None and layer.weight.dtype == torch.float32
            if plain and reason_not_to_replace(model, layer) is None:
                other = sparse(layer, source, dtype, most_kept)
                if other is not None:
                    others[layer] = other.train(layer.training)
        model = replace_layers(model, others)
        packed = set(others.values())
        for module in model.modules():
            if module not in packed:
                source.fill(module)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"load_packed: {name} must not be on the meta device, for no file holds it")
    return model


class Source:
    """Tensors of a file, by the model's tensors that they are for."""

    def __init__(self, file: Reader, names: dict[int, str]) -> None:
        self.file, self.names = file, names
        self._filled: dict[int, Tensor] = {}

    def filled(self, tensor: Tensor) -> Tensor:
        """The model's tensor with the file's values; another one if it was on the meta device."""
        key = id(tensor)
        if key not in self._filled:
            value = self.file.get_tensor(self.names[key]).to(tensor.dtype)
            if not tensor.is_meta:
                value = tensor.detach().copy_(value)  # in the tensor's own memory
            elif isinstance(tensor, nn.Parameter):
                value = nn.Parameter(value, tensor.requires_grad)
            self._filled[key] = value if tensor.is_meta else tensor
        return self._filled[key]

    def fill(self, module: nn.Module) -> None:
        tensors: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in tensors:
            for name, tensor in own.items():
                if tensor is not None and id(tensor) in self.names:
                    own[name] = self.filled(tensor)


def sparse(
    layer: nn.Linear | nn.Conv2d, source: Source, dtype: torch.dtype, most_kept: float
) -> SparseLinear | SparseConv2d | None:
    """The layer on its weight in the file, or None: it has more non-zeros, or pads as sparse ones cannot."""
    most = most_kept * layer.weight.numel()
    if isinstance(layer, nn.Conv2d):  # whose weights are small
        if SparseConv2d.refusal(layer) or not layer.weight.numel():
            return None
        source.fill(layer)
        return SparseConv2d.from_conv2d(layer, dtype) if int(layer.weight.count_nonzero()) <= most else None
    weight = linear_weight(layer, source, dtype, most)
    if weight is None:
        return None
    return SparseLinear(weight, None if layer.bias is None else source.filled(layer.bias).float())


def linear_weight(layer: nn.Linear, source: Source, dtype: torch.dtype, most: float) -> PackedSparse | None:
    """Packed as its rows are read, unless there are more non-zeros than `most`."""
    device = torch.device("cpu") if layer.weight.is_meta else layer.weight.device
    (m, k), entry, kept, blocks = layer.weight.shape, source.file.entry(source.names[id(layer.weight)]), 0, []
    for begin, end in blocks_of_rows(m):
        rows = source.file.rows(entry, begin, end)
        kept += int(rows.count_nonzero())
        if kept > most:
            return None
        blocks.append(pack_block(rows, m, dtype))
    return join_blocks(blocks, m, k, dtype, device)
