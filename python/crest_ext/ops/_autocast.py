"""Autocast for ops that torch's own rules do not know: arguments are cast as F.linear casts its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_lib = torch.library.Library("crest", "FRAGMENT")
_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def register_autocast(op: str) -> None:
    """Cast the floating arguments of a crest op to the autocast dtype of their device.

    torch.library.register_autocast fixes the dtype when it is called; torch.autocast(..., dtype=...) is then ignored.

    Args:
        op: its name in torch.ops.crest. Like torch, float64 is left as it is.
    """
    for device, key in _KEYS.items():

        def cast(value: Any, device: str = device) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
                return value.to(torch.get_autocast_dtype(device)) if value.device.type == device else value
            return value

        def kernel(*args: Any, cast: Any = cast, **kwargs: Any) -> Tensor:
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
                call = getattr(torch.ops.crest, op)
                return call(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

        _lib.impl(op, kernel, key)


def register_float32(op: str, *places: int) -> None:
    """Under autocast, give a crest op for inference float32, which alone it takes: a layer before may give less.

    Args:
        op: its name in torch.ops.crest.
        places: of the arguments that this is about: x, and what is added.
    """
    halves = (torch.bfloat16, torch.float16)

    def kernel(*args: Any) -> Tensor:
        wide = [a.float() if i in places and a is not None and a.dtype in halves else a for i, a in enumerate(args)]
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return getattr(torch.ops.crest, op)(*wide)

    _lib.impl(op, kernel, _KEYS["cpu"])
