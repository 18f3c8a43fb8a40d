"""The layers of a model that methods and rewrites work on."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from crest_ext.nn.masked import reason_not_to_mask


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d, str | None]]:
    """Each Linear and Conv2d of a model by name, with the reason why it must be left as it is, or None."""
    # In evaluation this one hands its children's weights to a fused kernel, past their forward.
    readers = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    read = {child for reader in readers for child in reader.children()}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            reason = "is read by the fast path of its TransformerEncoderLayer" if module in read else None
            yield name, module, reason_not_to_mask(module) or reason
