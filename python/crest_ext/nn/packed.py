"""What the modules on packed weights share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crest_ext.reference import ACTIVATIONS


class Packed(nn.Module, ABC):
    """A packed weight as buffers, which copy, save, move and compile. It has no parameters.

    A state_dict holds the packed tensors, and another module of the same sizes takes them, however many non-zeros it
    had itself. They are checked then, once: the kernels trust them.
    """

    tensors: ClassVar[tuple[str, ...]]  # names of the buffers that are the packed weight

    def __init__(self, packed: Any, bias: Tensor | None, features: int, activation: str) -> None:
        super().__init__()
        who = type(self).__name__
        packed.check()
        if activation not in ACTIVATIONS:
            raise ValueError(f"{who}: activation must be none, relu or relu6, got {activation}")
        if bias is not None and bias.shape != (features,):
            raise ValueError(f"{who}: bias must have shape ({features},), got {tuple(bias.shape)}")
        self.activation = activation
        for name in self.tensors:
            self.register_buffer(name, getattr(packed, name))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @abstractmethod
    def packed(self) -> Any:
        """The arguments of the op after x, in their order."""

    @abstractmethod
    def effective_weight(self) -> Tensor:
        """Of the shape it had, dense."""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = {name: state_dict[prefix + name] for name in self.tensors if prefix + name in state_dict}
        if found:  # all, or some, which must be right beside those that are here
            try:
                self.packed()._replace(**found).check()
            except ValueError as error:
                error_msgs.append(f"{prefix.rstrip('.')}: {error}")
                return
            for name, tensor in found.items():
                own: Tensor = getattr(self, name)
                setattr(self, name, torch.empty_like(tensor, device=own.device))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
