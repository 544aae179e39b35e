"""Published configs to ours and back, by the rows of a family."""

import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sysout_jax.errors import InputError, printable
from sysout_jax.families.family import Family, Field, Fixed, Group, Raw
from sysout_jax.families.reference import reference_of
from sysout_jax.families.rotary import unread_of_rule
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.execution import Execution
from sysout_jax.model.rope import RULES, Rope
from sysout_jax.model.stored import flat

# Fields in which tools say that stored weights are quantised.
QUANTISATION = ("quantization_config", "compression_config", "quantization", "quantize_config")
UNQUANTISED = "accepted: the model that it was made from, or a GGUF file of it"
_LOADED = ("load_in_4bit", "load_in_8bit")  # what bitsandbytes did, if anything
_DRAFT = re.compile(r"(?i)draft|eagle|medusa|speculator")
_LANGUAGE = re.compile(r"For(?:CausalLM|ConditionalGeneration)$|LMHeadModel$")
_OTHER_HEAD = re.compile(r"For(?:Sequence|Token)Classification$|ForQuestionAnswering$|Custom")
MOST = 10_000  # layers, and experts: a damaged number must not be counted up to
_KINDS = {  # the types of ModelConfig's fields in words
    int: "an integer", float: "a number", bool: "true or false", str: "a string",
    tuple[int, ...]: "a list of integers", tuple[float, ...]: "a list of numbers",
    type(None): "null",
}  # fmt: skip
_SIZES = {"layers", "width", "heads"}
# Fields here that a checkpoint does not say: how it was initialised, and how it is run.
OURS_ALONE = ("init_std", "scaled_residual_init", *(each.name for each in fields(Execution)))


def read_within(family: Family, raw: Raw) -> Raw:
    """The family's own config, from that of a larger checkpoint which may hold it.

    Raises:
      InputError: it holds none, or contradicts it.
    """
    within = family.within
    if within is None or raw.get("model_type") != within.model_type:
        return raw
    inner = raw.get(within.config)
    if not isinstance(inner, Mapping) or inner.get("model_type") not in (None, *family.model_types):
        raise InputError(
            f"config.json of {within.model_type}",
            None,
            f"the config of a {family.model_types[0]}",
            f"{within.config} is {_short(inner)}",
        )
    for name in within.shared:
        if name in raw and inner.get(name, raw[name]) != raw[name]:
            raise InputError(
                f"config.json of {within.model_type}",
                None,
                "the same",
                (f"{name} is {_short(raw[name])}, and {_short(inner[name])} in {within.config}"),
            )
    outer = (*within.shared, *QUANTISATION, "architectures")  # of the whole file
    shared = {name: raw[name] for name in outer if raw.get(name) is not None}
    return {**inner, **shared}


def read_config(family: Family, raw: Raw) -> ModelConfig:
    """The architecture that a published config says.

    A field that the reference does not read changes no number and is left out (`ignored_fields`);
    one that it reads and no row of the family does is accepted at its default alone.

    Raises:
      InputError: fields of the wrong type, out of range or not supported at their value, weights
        that are quantised, or no language model.
    """
    given, faults = spelled(family, raw), _other_kinds(family, raw)
    defaults = reference_of(family.model_types[0]).defaults
    told = {**defaults, **given}
    ours = dict(family.fixed)
    for row in family.config:
        if isinstance(row, Field):
            value = told.get(row.name)
            if row.values is None:
                ours[row.ours] = value
            elif isinstance(value, str | bool | int | None) and value in row.values:
                ours[row.ours] = row.values[value]
            else:
                accepted = ", ".join(repr(v) for v in row.values)
                faults.append(f"{row.name}={value!r} (accepted: {accepted})")
        elif isinstance(row, Fixed) and given.get(row.name) not in (None, row.value):
            faults.append(f"{row.name}={given[row.name]!r} (accepted: {row.value!r})")
    sized = set(ours) >= _SIZES
    for name in ("layers", "experts") if sized else ():
        if not (type(ours.get(name, 0)) is int and ours.get(name, 0) <= MOST):
            said = f"{_theirs(family, name)}={_short(ours[name])}"
            faults.append(f"{said} (accepted: an integer of at most {MOST})")
            sized = False
    for row in family.config:
        if isinstance(row, Group):
            # Without the sizes a group would only repeat what is wrong with them.
            ours |= _read_group(row, told, faults) if sized else {}
    faults += _not_read_here(family, given)
    if faults:
        raise InputError(f"config.json of {family.name}", why="; ".join(faults))
    return _typed(family, ours)


def ignored_fields(family: Family, raw: Raw) -> tuple[str, ...]:
    """The fields of a family's config that the reference neither reads nor declares, in order."""
    theirs = reference_of(family.model_types[0])
    known = {*theirs.known, *_rows(family), *family.aliases, *QUANTISATION}
    flat = _flat(raw).items()
    named = [k for k, value in flat if k not in known and value is not None]
    return tuple(sorted(map(printable, [*named, *unread_of_rule(raw)])))


def spelled(family: Family, raw: Raw) -> dict[str, Any]:
    """The fields by the names that the family's rows use, MPT's nested ones as "outer.inner"."""
    flat, aliases = _flat(raw), reference_of(family.model_types[0]).aliases
    older = {family.aliases[k]: v for k, v in flat.items() if k in family.aliases}
    other = {aliases[k]: v for k, v in flat.items() if k in aliases and v is not None}
    own = {k: v for k, v in flat.items() if k not in {*family.aliases, *aliases}}
    return {**older, **own, **other}


def _rows(family: Family) -> set[str]:
    """The fields that a family's rows read."""
    named = (row.names if isinstance(row, Group) else (row.name,) for row in family.config)
    return {name for names in named for name in names}


def _not_read_here(family: Family, given: Raw) -> list[str]:
    """What the reference reads, no row does, and is not at the reference's default."""
    theirs = reference_of(family.model_types[0])
    names = sorted((theirs.matters - _rows(family)) & set(given))
    defaults = {**theirs.defaults, "is_causal": True}
    return [
        f"{name}={_short(given[name])}, which is not read here (accepted: {_short(accepted)})"
        for name in names
        for accepted in [defaults.get(name)]
        if given[name] not in (None, accepted)
    ]


def _other_kinds(family: Family, raw: Raw) -> list[str]:
    """What a file of this model_type may be instead of a language model's own weights."""
    faults = []
    for name in QUANTISATION:
        said = raw.get(name)
        told = said if isinstance(said, Mapping) else {"quant_method": said}
        method = told.get("quant_method", told.get("quant_algo"))
        plain = [value for key, value in told.items() if key in _LOADED] == [False, False]
        if said and method not in family.quantised and not plain:
            bits = told.get("bits", told.get("w_bit"))
            how = ", ".join(str(x) for x in (method, bits and f"{bits} bits") if x) or "quantised"
            faults.append(f"{name}: its weights are stored quantised ({how}); {UNQUANTISED}")
    architectures = raw.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    named = [name for name in named if isinstance(name, str)]
    drafts = [name for name in named if _DRAFT.search(name)]
    drafts += [name for name, value in raw.items() if value is not None and _DRAFT.match(name)]
    if drafts:
        faults.append(
            f"{drafts[0]}: a draft head for speculative decoding, no language model; accepted: the "
            "model that it drafts for"
        )
    others = [name for name in named if _OTHER_HEAD.search(name)]
    if others and not any(_LANGUAGE.search(name) for name in named):
        accepted = f"the language model under it, as {family.architecture}"
        faults.append(f"{others[0]}: no language model's head; accepted: {accepted}")
    return faults


def _read_group(row: Group, raw: Raw, faults: list[str]) -> dict[str, Any]:
    try:
        return dict(row.read(raw))
    except InputError as error:
        faults.append(str(error))
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        names = ", ".join(row.names)
        faults.append(f"{names}: not as accepted in this family ({error!r})")
    return {}


def _typed(family: Family, ours: dict[str, Any]) -> ModelConfig:
    """The config, its numbers of the declared types: JSON writes 10000 for 10000.0."""
    if ours.get("position") != "rope":  # some say a base all the same
        ours.pop("rope", None)
    try:
        return ModelConfig(**_values(family, ModelConfig, ours))
    except OverflowError as error:
        where, accepted = f"config.json of {family.name}", "numbers of less than 1e308"
        raise InputError(where, None, accepted, f"a number too large ({error})") from error
    except InputError as error:
        if error.field == f"config.json of {family.name}":
            raise
        raise InputError(f"config.json of {family.name}", why=str(error)) from error


def _values(family: Family, kind: type, ours: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    for name, value in ours.items():
        hint = hints[name]
        if hint is Rope:
            rule = RULES[value.pop("rule")]
            ours[name] = rule(**_values(family, rule, value))
            continue
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if float in kinds and type(value) is int:
            ours[name] = float(value)
        elif tuple[float, ...] in kinds and isinstance(value, tuple):
            if not all(type(x) in (int, float) for x in value):
                raise InputError(name, _short(list(value)), "a list of numbers")
            ours[name] = tuple(float(x) for x in value)
        elif value is None and type(None) in kinds:
            continue
        elif not any(type(value) is (typing.get_origin(kind) or kind) for kind in kinds):
            accepted = " or ".join(_KINDS[kind] for kind in kinds)
            raise InputError(
                f"config.json of {family.name}",
                None,
                accepted,
                f"{_theirs(family, name)} is {_short(value)}",
            )
    return ours


def _theirs(family: Family, ours: str) -> str:
    """What config.json calls a field, where one of its own says it."""
    rows = (row for row in family.config if isinstance(row, Field))
    return next((row.name for row in rows if row.ours == ours), ours)


def write_config(family: Family, config: ModelConfig) -> dict[str, Any]:
    """A published config that reads as this one.

    Raises:
      InputError: the family cannot say this architecture; the fields that differ are named.
    """
    out: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_types[0],
    }
    defaults = reference_of(family.model_types[0]).defaults
    differ: dict[str, str] = {}  # field -> what the family has instead
    for row in family.config:
        if isinstance(row, Field):
            value = getattr(config, row.ours)
            if value is None and row.name not in defaults:
                continue
            if value is None:  # some readers refuse a null where a default is meant
                value = _meaning(config, row.ours)
            if row.values is not None:
                named = [theirs for theirs, ours in row.values.items() if ours == value]
                if not named:
                    differ[row.ours] = ", ".join(map(repr, dict.fromkeys(row.values.values())))
                value = named[0] if named else defaults.get(row.name)
            out[row.name] = value
        elif isinstance(row, Fixed):
            out[row.name] = row.value
        else:
            out |= row.write(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (defaults.get(name) or 0) >= config.vocab:
            out[name] = None  # the default is no id of this vocabulary
    kept, asked = (_meant(each) for each in (read_config(family, out), config))
    for name in dict.fromkeys((*asked, *kept)):
        if name not in OURS_ALONE and kept.get(name) != asked.get(name):
            differ.setdefault(name, repr(kept.get(name)))
    mixture = any(isinstance(row, Field) and row.ours == "experts" for row in family.config)
    if mixture and not config.experts:  # of none its code makes another layer, or its default
        differ["experts"] = "1 or more"
    if differ:
        named = [f"{k}={asked.get(k)!r} (accepted: {v})" for k, v in differ.items()]
        raise InputError(f"the {family.name} family has no {', '.join(named)}")
    return _nested(out)


def _meaning(config: ModelConfig, name: str) -> Any:
    """A field's value, its default spelled out."""
    letter = {"kv_heads": "K", "head_dim": "H", "mlp_width": "F"}.get(name)
    if letter is not None:
        return config.sizes[letter]
    if name.endswith("_bias") and name != "head_bias":
        return config.has_bias(name.removesuffix("_bias"))
    if name == "bias":
        return None  # only a default of the four above
    if name == "window_layers":
        return config.layers_with_window
    if name == "rope_layers" and config.position == "rope":
        return tuple(range(config.layers)) if config.rope_layers is None else config.rope_layers
    return getattr(config, name)


def _meant(config: ModelConfig) -> dict[str, Any]:
    """Every value by the name of its flag, defaults spelled out."""
    values = flat(config)
    meant = values | {name: _meaning(config, name) for name in values if hasattr(config, name)}
    if meant["query_scale"] is None:
        meant["query_scale"] = config.sizes["H"] ** -0.5
    if meant["local_rope_theta"] is None and config.rope.rule == Rope.rule:
        meant["local_rope_theta"] = config.rope.theta
    return meant


def _flat(raw: Raw) -> dict[str, Any]:
    """The fields of MPT's "attn_config" beside the others, as "attn_config.alibi" and so on."""
    flat: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "attn_config" and isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": x for inner, x in value.items()}
        else:
            flat[name] = value
    return flat


def _nested(flat: Raw) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in flat.items():
        outer, dot, inner = name.partition(".")
        if dot:
            out.setdefault(outer, {})[inner] = value
        else:
            out[name] = value
    return out


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:37]}..."
