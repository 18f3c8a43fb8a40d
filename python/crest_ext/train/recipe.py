"""Recipes: what to train on what, in which phases. YAML whose every key is known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from crest_ext.methods import LowRankConfig, QuantizeConfig, SurgeryConfig
from crest_ext.train.schedules import SCHEDULES, Schedule

RECIPES = Path(__file__).parents[1] / "recipes"
T = TypeVar("T")


@dataclass(frozen=True)
class Phase:
    """A stretch of training with SGD.

    Attributes:
        name: shown while it works.
        iterations: steps.
        lr: a number, or a mapping with kind (constant, inv, step, cosine), start and the schedule's own numbers.
        batch_size: samples a step.
        momentum: of SGD.
        weight_decay: of SGD.
        bias_lr: factor of the learning rate of biases.
        shift: pixels by which images are shifted at random; see `data.Loader`.
        freeze: names, or fnmatch patterns of names, of layers that stay as they are.
        surgery: fields of SurgeryConfig; without it, the phase trains what there is: the dense network, or, after a
            surgery, the weights that are left.
        quantize: fields of QuantizeConfig; instead of surgery.
        low_rank: fields of LowRankConfig; instead of these. Ranks fall, weights stay: `factorize` the result.
    """

    name: str
    iterations: int
    lr: Schedule
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 0.0
    bias_lr: float = 1.0
    shift: int = 0
    freeze: tuple[str, ...] = ()
    surgery: SurgeryConfig | None = None
    quantize: QuantizeConfig | None = None
    low_rank: LowRankConfig | None = None

    @property
    def compresses(self) -> bool:
        return bool(self.surgery or self.quantize or self.low_rank)


@dataclass(frozen=True)
class Recipe:
    """What to do, and by default with which model of crest_ext.models and which data set of crest_ext.data."""

    phases: tuple[Phase, ...]
    model: str | None = None
    data: str | None = None

    @property
    def dense(self) -> int:
        """Number of phases before the first that compresses."""
        compress = (i for i, phase in enumerate(self.phases) if phase.compresses)
        return next(compress, len(self.phases))


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by name, or from a file.

    Raises:
        ValueError: there is none, or it breaks a rule; the message names the file, the place and the rule.
    """
    path = RECIPES / f"{name}.yaml" if name in recipe_names() else Path(name)
    if not path.is_file():
        raise ValueError(f"recipe: must be one of {', '.join(recipe_names())} or a file, got {name!r}")
    try:
        return parse_recipe(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError:
        raise ValueError(f"{name}: must be text in UTF-8") from None


def parse_recipe(text: str, where: str) -> Recipe:
    """A recipe from the text of its file; `where` is what errors call it."""
    top = _table(_parse_yaml(text, where), where)
    phases = top.get("phases")
    if not isinstance(phases, list) or not phases:
        raise ValueError(f"{where}: phases must be a list of at least one phase, got {phases!r}")
    read = tuple(_phase(phase, f"{where}: phase {i + 1}") for i, phase in enumerate(phases))
    return _build(Recipe, {**top, "phases": read}, where)


def _phase(value: object, where: str) -> Phase:
    table = _table(value, where)
    if "lr" in table:
        table["lr"] = _schedule(table["lr"], f"{where}: lr")
    if "freeze" in table:
        freeze = table["freeze"]
        if not isinstance(freeze, list) or not all(isinstance(pattern, str) for pattern in freeze):
            raise ValueError(f"{where}: freeze must be a list of names or patterns, got {freeze!r}")
        table["freeze"] = tuple(freeze)
    methods: dict[str, Callable[..., object]] = {
        "surgery": SurgeryConfig,
        "quantize": QuantizeConfig,
        "low_rank": LowRankConfig,
    }
    for name, config in methods.items():
        if name in table:
            table[name] = _build(config, _table(table[name], f"{where}: {name}"), f"{where}: {name}")
    phase = _build(Phase, table, where)
    for name, least in (
        ("iterations", 1),
        ("batch_size", 1),
        ("momentum", 0),
        ("weight_decay", 0),
        ("bias_lr", 0),
        ("shift", 0),
    ):
        if getattr(phase, name) < least:
            raise ValueError(f"{where}: {name} must be at least {least}, got {getattr(phase, name)}")
    given = [name for name in methods if getattr(phase, name)]
    if len(given) > 1:
        raise ValueError(f"{where}: {given[1]} must have a phase of its own, got {given[0]} as well")
    return phase


def _schedule(value: object, where: str) -> Schedule:
    if isinstance(value, (int, float)):
        value = {"kind": "constant", "start": value}
    table = _table(value, where)
    kind = table.pop("kind", None)
    if kind not in SCHEDULES:
        raise ValueError(f"{where}: kind must be one of {', '.join(SCHEDULES)}, got {kind!r}")
    make: Callable[..., Schedule] = SCHEDULES[kind]
    return _build(make, table, where)


def _build(cls: Callable[..., T], table: dict[str, Any], where: str) -> T:
    """A dataclass from a mapping: no unknown key, none missing, numbers where numbers belong."""
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{where}: key must be one of {', '.join(known)}, got {key!r}")
        kind = known[key].type
        if kind == "int" and type(value) is not int:
            raise ValueError(f"{where}: {key} must be a whole number, got {value!r}")
        if kind == "float" and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"{where}: {key} must be a finite number, got {value!r}")
        if kind == "bool" and type(value) is not bool:
            raise ValueError(f"{where}: {key} must be true or false, got {value!r}")
        if kind in ("str", "str | None") and type(value) is not str:
            raise ValueError(f"{where}: {key} must be text, got {value!r}")
    for key, field in known.items():
        if key not in table and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}: {key} must be given")
    try:
        return cls(**table)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{where}: must be a mapping of names to values, got {value!r:.80}")
    return dict(value)


def _parse_yaml(text: str, where: str) -> object:
    """Safe YAML in which 5e-4 is a number (as in YAML 1.2) and a key stands once."""
    try:
        import yaml
    except ImportError:
        raise ValueError('recipe: YAML needs PyYAML: pip install "crest_ext[cli]"') from None

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            keys = [key.value for key, _ in node.value]
            if twice := {key for key in keys if keys.count(key) > 1}:
                raise ValueError(f"{where}: line {node.start_mark.line + 1}: key must stand once, got {min(twice)!r}")
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    loader = Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: must be YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
