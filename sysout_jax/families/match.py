"""Which stored tensors make each parameter: every fault of a checkpoint at once, by name."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from sysout_jax.errors import InputError
from sysout_jax.families import tensor_map
from sysout_jax.families.config_map import UNQUANTISED
from sysout_jax.families.family import Family, Within
from sysout_jax.families.tensor_map import Part, Stored
from sysout_jax.families.tensors import DTYPES, Source, packed_as
from sysout_jax.model.config import ModelConfig

NAMED = 20  # tensors that one message names, of each kind of fault
Plan = Mapping[tuple[str, ...], tuple[tuple[Stored, Part, Source], ...]]  # by parameter


def match(
    place: Path,
    family: Family,
    config: ModelConfig,
    found: list[Source],
    shapes: Mapping[tuple[str, ...], tuple[int, ...]],
    faults: Mapping[str, str],
    within: Within | None = None,
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
        raise InputError(f"{place}: its weights are stored quantised ({packed}); {UNQUANTISED}")
    by_name = _by_own_names(family, found, within)
    heads = _heads(family)
    plan: dict[tuple[str, ...], list[tuple[Stored, Part, Source]]] = {path: [] for path in shapes}
    missing, shaped, typed = [], [], []
    for stored in tensor_map.layout(family, config):
        names = (stored.name, *(heads if config.tied and _is_embedding(stored) else ()))
        source = next((by_name.pop(name) for name in names if name in by_name), None)
        if source is None:
            missing.append(stored.name)
        elif source.shape != stored.shape:
            shaped.append(f"{source.name} {list(source.shape)} for {list(stored.shape)}")
        elif source.dtype not in DTYPES:
            typed.append(f"{source.name} is {source.dtype} (accepted: {', '.join(DTYPES)})")
        else:
            for part in stored.parts:
                plan[part.path].append((stored, part, source))
    tied = [by_name.pop(name) for name in heads if config.tied and name in by_name]
    embedding = plan[("embed",)]
    other = [s.name for s in tied if embedding and not _equal(s, embedding[0][2])]
    if not missing and not shaped and not typed:
        missing += ["/".join(path) for path, parts in plan.items() if not parts]
    needless = heads if config.tied else set()
    wrong = [said for name, said in faults.items() if not _is_buffer(family, name, needless)]
    problems = [
        f"{title}: {_named(names)}"
        for title, names in (
            ("missing", missing),
            ("left over", sorted(source.name for source in by_name.values())),
            ("of another shape", shaped),
            ("of another dtype", typed),
            (
                "not the embedding that it is tied to (accepted: tie_word_embeddings=false in "
                "config.json, if the head is the model's own)",
                other,
            ),
            ("wrongly stored", wrong),
        )
        if names
    ]
    if problems:
        raise InputError(f"{place}: tensors of {family.name}: {'; '.join(problems)}")
    return {path: tuple(parts) for path, parts in plan.items()}


def _by_own_names(family: Family, found: list[Source], within: Within | None) -> dict[str, Source]:
    """The tensors that may be parameters, by the names that the family gives them."""
    if within is None:
        bare = not any(source.name.startswith(family.prefix) for source in found)
        by_name = {_full(family, source.name, bare): source for source in found}
    else:
        by_name = {_outer(within, source.name): source for source in found}
        by_name = {n: s for n, s in by_name.items() if not _any_match(within.others, n)}
    return {n: s for n, s in by_name.items() if not _any_match(family.buffers, n)}


def _is_buffer(family: Family, name: str, needless: Iterable[str]) -> bool:
    """Whether it does not matter how a name is stored."""
    return _any_match(family.buffers, name) or name in needless


def _any_match(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _full(family: Family, name: str, bare: bool) -> str:
    """A stored name with the family's prefix, which some checkpoints leave out."""
    outside = {row.stored[1:] for row in family.tensors if row.stored.startswith("/")}
    return f"{family.prefix}{name}" if bare and name not in outside else name


def _outer(within: Within, name: str) -> str:
    """A stored name of a larger checkpoint as this family's own, where it is one."""
    for there, here in within.names:
        if name.startswith(there):
            return here + name.removeprefix(there)
    return name


def _heads(family: Family) -> set[str]:
    """What the output head may be called."""
    return {row.stored[1:] for row in family.tensors if row.ours == ("head",)} | {"lm_head.weight"}


def _is_embedding(stored: Stored) -> bool:
    return stored.parts[0].path == ("embed",)


def _equal(one: Source, other: Source) -> bool:
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
