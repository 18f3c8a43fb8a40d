"""What the configs of methods require of their fields."""

from __future__ import annotations

import math
from collections.abc import Mapping


def is_number(value: object, least: float = -math.inf) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= least


def require(config: object, holds: bool, field: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{type(config).__name__}: {field} must {rule}, got {value!r}")


def require_by_layer(config: object, field: str, least: float = -math.inf) -> None:
    """One number for all layers, or {name or pattern: number}, of which the frozen config gets a copy."""
    value = getattr(config, field)
    rule = "be a finite number" if least == -math.inf else f"be a finite number >= {least:g}"
    if isinstance(value, Mapping):
        object.__setattr__(config, field, dict(value))
        for layer, number in value.items():
            require(config, is_number(number, least), f"{field} of {layer!r}", rule, number)
    else:
        require(config, is_number(value, least), field, f"{rule}, or a mapping to some", value)
