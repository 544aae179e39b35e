"""The config of a model on one level, by flags, and as records and saved models have it."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from sysout_jax.errors import InputError, one_of
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.execution import Execution
from sysout_jax.model.rope import RULES, Rope, flag


def flat(config: ModelConfig) -> dict[str, Any]:
    """Every value of a config by the name of its flag; of rotary rules those of its own."""
    tree = asdict(config)
    rope, execution = tree.pop("rope"), tree.pop("execution")
    return {**tree, **{flag(name): value for name, value in rope.items()}, **execution}


def from_record(stored: Mapping[str, Any]) -> ModelConfig:
    """The config that `dataclasses.asdict` made a tree of, in this version or in an earlier one.

    In earlier ones rotary rules and execution were no classes: their numbers, those of all rules
    and with an effect or without, were fields of the model, by the names that are flags.

    Raises:
      InputError: unknown fields, or values that the config refuses.
    """
    tree = dict(stored)
    if "rope" not in tree:
        tree["rope"] = _rope(tree)
    names = [each.name for each in fields(Execution)]
    if "execution" not in tree:
        tree["execution"] = {name: tree.pop(name) for name in names if name in tree}
        if tree["execution"].pop("flash", False):
            plain: ModelConfig = _of_class(ModelConfig, tree)
            if plain.window is not None:  # had no effect beside it
                return plain
            with contextlib.suppress(InputError):  # as beside what is still refused
                return plain.with_execution(flash=True)
    return _of_class(ModelConfig, tree)


def _rope(tree: dict[str, Any]) -> dict[str, Any]:
    """The rotary rule, from numbers that are taken out of an earlier version's tree."""
    names = dict.fromkeys(each.name for kind in RULES.values() for each in fields(kind))
    numbers = {name: tree.pop(flag(name)) for name in names if flag(name) in tree}
    if tree.get("position") != "rope":
        return {}
    own = {each.name for each in fields(_class_of(numbers))}
    return {name: value for name, value in numbers.items() if name in own}


def _class_of(numbers: Mapping[str, Any]) -> type[Rope]:
    rule = numbers.get("rule", Rope.rule)
    one_of(flag("rule"), rule, RULES)
    return RULES[rule]


def _of_class(kind: type, tree: Mapping[str, Any]) -> Any:
    """An instance from its fields, those that are absent by default."""
    values = dict(tree)
    if kind is Rope:
        kind = _class_of(values)
        values.pop("rule", None)
    hints = get_type_hints(kind)
    unknown = ", ".join(sorted(set(values) - set(hints)))
    if unknown:
        accepted = "the fields that this version writes"
        raise InputError("config.json", None, accepted, f"unknown fields {unknown}")
    for name, value in values.items():
        parts = [part for part in (hints[name], *get_args(hints[name])) if is_dataclass(part)]
        if parts and value is not None:
            values[name] = _of_class(parts[0], value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            values[name] = tuple(value)
    return kind(**values)
