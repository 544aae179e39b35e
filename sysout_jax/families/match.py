"""Which stored tensors make each parameter: every fault of a checkpoint at once, by name."""

import logging
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sysout_jax.errors import InputError
from sysout_jax.families import tensor_map
from sysout_jax.families.config_map import UNQUANTISED
from sysout_jax.families.family import Family, Multimodal
from sysout_jax.families.tensor_map import Part, Stored
from sysout_jax.families.tensors import DTYPES, Source, packed_as
from sysout_jax.model.config import ModelConfig

NAMED = 20  # tensors that one message names, of each kind of fault
_LOG = logging.getLogger("sysout_jax")
_UNTIED = (
    "%s: its head is not the embedding that config.json ties it to, and is read as the model's own"
)
Plan = Mapping[tuple[str, ...], tuple[tuple[Stored, Part, Source], ...]]  # by parameter


def with_own_head(
    place: Path,
    family: Family,
    config: ModelConfig,
    found: list[Source],
    within: Multimodal | None = None,
) -> ModelConfig:
    """The config, untied where the checkpoint stores a head that is not the embedding, as the
    reference reads it, which is said.

    Args:
      place, family, config, found, within: as for `match`.

    Raises:
      InputError: the two cannot be read.
    """
    if not config.tied or packed_as(found) is not None:
        return config
    by_name = _by_own_names(family, found, within)
    heads = [by_name[name] for name in _heads(family) if name in by_name]
    rows = [row.stored for row in family.tensors if row.ours == ("embed",)]
    embeddings = [by_name[n] for n in (family.prefix + row for row in rows) if n in by_name]
    if not embeddings or all(_equal(head, embeddings[0]) for head in heads):
        return config
    _LOG.warning(_UNTIED, place)
    return replace(config, tied=False)


def match(
    place: Path,
    family: Family,
    config: ModelConfig,
    found: list[Source],
    shapes: Mapping[tuple[str, ...], tuple[int, ...]],
    faults: Mapping[str, str],
    within: Multimodal | None = None,
) -> Plan:
    """The stored tensors of each parameter, and the part of each that it takes.

    The family's own buffers are left out whatever their dtype, and so is a head that is stored
    beside the embedding it is tied to; where only one of the two is stored it serves both.

    Args:
      place: of the checkpoint, for messages.
      found: its tensors.
      shapes: of the parameters, by path.
      faults: names whose storing is wrong, and how.
      within: the larger checkpoint that holds this model, if one does.

    Raises:
      InputError: tensors that are quantised, missing, left over, of the wrong shape or dtype, or
        wrongly stored: all of them.
    """
    packed = packed_as(found)
    if packed is not None:
        raise InputError(
            str(place), why=f"its weights are stored quantised ({packed}); {UNQUANTISED}"
        )
    by_name = _by_own_names(family, found, within)
    names = _heads(family)
    heads = names if config.tied else set()
    plan: dict[tuple[str, ...], list[tuple[Stored, Part, Source]]] = {path: [] for path in shapes}
    named = (("embed",) if config.tied else ("head",), names)
    wrong = _assign(_layout(family, config, by_name), by_name, named, plan)
    for name in heads:  # equal to the embedding, or there is none
        by_name.pop(name, None)
    if not any(wrong.values()):
        wrong["missing"] = ["/".join(path) for path, parts in plan.items() if not parts]
    if (
        wrong["missing"]
        and set(wrong["missing"]) <= names
        and not any(titled for title, titled in wrong.items() if title != "missing")
    ):
        accepted = f"a language model, as {family.architecture}, or one whose head is tied"
        raise InputError(str(place), None, accepted, "a base model without a head for words")
    wrong["left over"] = sorted(source.name for source in by_name.values())
    wrong["wrongly stored"] = [
        said
        for name, said in faults.items()
        if name not in heads and not _any_match(family.buffers, name)
    ]
    problems = [f"{title}: {_named(names)}" for title, names in wrong.items() if names]
    if problems:
        raise InputError(str(place), why=f"tensors of {family.name}: {'; '.join(problems)}")
    return {path: tuple(parts) for path, parts in plan.items()}


def _layout(family: Family, config: ModelConfig, names: Container[str]) -> list[Stored]:
    """What a checkpoint of these names stores: the family's tensors, some of them fused or not."""
    plain = tensor_map.layout(family, config)
    fused = tensor_map.layout(replace(family, tensors=family.fused), config)
    known = {stored.name for stored in plain}
    if not any(stored.name in names for stored in fused if stored.name not in known):
        return plain
    owned = {part.path for stored in fused for part in stored.parts}
    return [s for s in plain if not any(part.path in owned for part in s.parts)] + fused


def _assign(
    layout: list[Stored],
    by_name: dict[str, Source],
    named: tuple[tuple[str, ...], set[str]],
    plan: dict[tuple[str, ...], list[tuple[Stored, Part, Source]]],
) -> dict[str, list[str]]:
    """Take from `by_name` what the layout asks for into `plan`; what is wrong, by its title.

    Args:
      named: a parameter, and what else it may be called.
    """
    served, others = named
    wrong: dict[str, list[str]] = {
        title: [] for title in ("missing", "of another shape", "of another dtype")
    }
    for stored in layout:
        names = (stored.name, *(others if stored.parts[0].path == served else ()))
        source = next((by_name.pop(name) for name in names if name in by_name), None)
        if source is None:
            wrong["missing"].append(stored.name)
        elif source.shape != stored.shape:
            said = f"{source.name} {list(source.shape)} for {list(stored.shape)}"
            wrong["of another shape"].append(said)
        elif source.dtype not in DTYPES:
            said = f"{source.name} is {source.dtype} (accepted: {', '.join(DTYPES)})"
            wrong["of another dtype"].append(said)
        else:
            for part in stored.parts:
                plan[part.path].append((stored, part, source))
    return wrong


def _by_own_names(
    family: Family, found: list[Source], within: Multimodal | None
) -> dict[str, Source]:
    """The tensors that may be parameters, by the names that the family gives them."""
    if within is None:
        given = _given_prefix(family, [source.name for source in found])
        by_name = {_full(family, source.name, given): source for source in found}
    else:
        by_name = {_outer(within, source.name): source for source in found}
        by_name = {n: s for n, s in by_name.items() if not _any_match(within.others, n)}
    return {n: s for n, s in by_name.items() if not _any_match(family.buffers, n)}


def _any_match(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _given_prefix(family: Family, names: Iterable[str]) -> str:
    """As much of the family's prefix as a checkpoint has: of OPT's "model.decoder." some begin with
    "decoder.", and some with none of it."""
    starts = (0, *(dot.end() for dot in re.finditer(r"\.", family.prefix)))
    tails = (family.prefix[start:] for start in starts)
    return next(tail for tail in tails if any(name.startswith(tail) for name in names) or not tail)


def _full(family: Family, name: str, given: str) -> str:
    """A stored name with the whole of the family's prefix."""
    outside = {row.stored[1:] for row in family.tensors if row.stored.startswith("/")}
    if name in outside or not name.startswith(given):
        return name
    return family.prefix + name.removeprefix(given)


def _outer(within: Multimodal, name: str) -> str:
    """A stored name of a larger checkpoint as this family's own, where it is one."""
    for there, here in within.names:
        if name.startswith(there):
            return here + name.removeprefix(there)
    return name


def _heads(family: Family) -> set[str]:
    """What the output head may be called."""
    return {row.stored[1:] for row in family.tensors if row.ours == ("head",)} | {"lm_head.weight"}


def _equal(one: Source, other: Source) -> bool:
    read = {one.dtype, other.dtype} <= DTYPES.keys() and one.shape == other.shape
    return read and np.array_equal(one.read(), other.read())


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
