"""Published configs to ours and back, by the rows of a family."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import REQUIRED, Family, Field, Group, Only, Raw
from sysout_jax.model.config import ModelConfig

# Fields that any config.json may have and that do not change what a model computes.
GENERIC = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version",
    "_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "auto_map",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "use_cache", "attention_dropout", "output_attentions", "output_hidden_states", "return_dict",
    "task_specific_params", "id2label", "label2id", "finetuning_task", "gradient_checkpointing",
    "is_encoder_decoder", "_num_labels", "problem_type", "chunk_size_feed_forward",
    "tokenizer_class", "prefix",
}  # fmt: skip
MOST_LAYERS = 10_000  # a damaged number must not be counted up to
_KINDS = {  # the types of ModelConfig's fields in words
    int: "an integer", float: "a number", bool: "true or false", str: "a string",
    tuple[int, ...]: "a list of integers", tuple[float, ...]: "a list of numbers",
    type(None): "null",
}  # fmt: skip
_SIZES = {"layers", "width", "heads"}
# Fields here that a checkpoint does not say: how it was initialised, and how it is run.
OURS_ALONE = ("init_std", "scaled_residual_init", "scan_layers", "dtype")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      InputError: no such file, not JSON, or no object.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(str(path), None, "a JSON file", f"{error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), None, "a JSON object", f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(str(path), None, "a JSON object", f"a JSON {type(found).__name__}")
    return found


def read_within(family: Family, raw: Raw) -> Raw:
    """The family's own config, from that of a larger checkpoint which may hold it.

    Raises:
      InputError: it holds none, or fields beside it are unknown.
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
    known = {*GENERIC, *within.ignored, *within.shared, within.config}
    unknown = sorted(k for k, value in raw.items() if k not in known and value is not None)
    if unknown:
        named = ", ".join(f"{name}={_short(raw[name])}" for name in unknown)
        raise InputError(
            f"config.json of {within.model_type}: unknown fields {named} (accepted: "
            f"{', '.join((within.config, *within.shared, *within.ignored))})"
        )
    shared = {name: raw[name] for name in within.shared if name in raw}
    return {**within.defaults, **shared, **inner}


def read_config(family: Family, raw: Raw) -> ModelConfig:
    """The architecture that a published config says.

    Raises:
      InputError: fields that are unknown, missing, out of range or not supported at their value.
    """
    raw = _flat(raw)
    ours, known, faults = dict(family.fixed), {*GENERIC, *family.ignored}, []
    for row in family.config:
        if isinstance(row, Field):
            known.add(row.name)
            value = raw.get(row.name, row.default)
            if value is REQUIRED:
                faults.append(f"{row.name} is missing")
            elif row.values is None:
                ours[row.ours] = value
            elif isinstance(value, str | bool | int) and value in row.values:
                ours[row.ours] = row.values[value]
            else:
                accepted = ", ".join(repr(v) for v in row.values)
                faults.append(f"{row.name}={value!r} (accepted: {accepted})")
        elif isinstance(row, Only):
            known.add(row.name)
            if raw.get(row.name) not in (None, row.value):
                faults.append(f"{row.name}={raw[row.name]!r} (accepted: {row.value!r})")
    absent = {r.name: r.default for r in family.config if isinstance(r, Field)}
    told = {k: v for k, v in absent.items() if v is not REQUIRED} | raw
    sized = set(ours) >= _SIZES
    if sized and not (type(ours["layers"]) is int and ours["layers"] <= MOST_LAYERS):
        said = f"{_theirs(family, 'layers')}={_short(ours['layers'])}"
        faults.append(f"{said} (accepted: an integer of at most {MOST_LAYERS})")
        sized = False
    for row in family.config:
        if isinstance(row, Group):
            known |= set(row.names)
            # Without the sizes a group would only repeat what is wrong with them.
            ours |= _read_group(row, told, faults) if sized else {}
    unknown = sorted(k for k, value in raw.items() if k not in known and value is not None)
    if unknown:
        named = ", ".join(f"{name}={_short(raw[name])}" for name in unknown)
        faults.append(f"unknown fields {named} (accepted: those of the {family.name} family)")
    if faults:
        raise InputError(f"config.json of {family.name}", why="; ".join(faults))
    return _typed(family, ours)


def _read_group(row: Group, raw: Raw, faults: list[str]) -> dict[str, Any]:
    try:
        return dict(row.read(raw))
    except InputError as error:
        faults.append(str(error))
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        names = ", ".join(row.names)
        faults.append(f"{names}: not as accepted in this family ({error!r})")
    return {}


def _typed(family: Family, ours: dict[str, Any]) -> ModelConfig:
    """The config, its numbers of the declared types: JSON writes 10000 for 10000.0."""
    hints = typing.get_type_hints(ModelConfig)
    for name, value in ours.items():
        hint = hints[name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if float in kinds and type(value) is int:
            ours[name] = float(value)
        elif tuple[float, ...] in kinds and isinstance(value, tuple):
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
    try:
        return ModelConfig(**ours)
    except InputError as error:
        raise InputError(f"config.json of {family.name}", why=str(error)) from error


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
    differ: dict[str, str] = {}  # field -> what the family has instead
    for row in family.config:
        if isinstance(row, Field):
            value = getattr(config, row.ours)
            if value is None:  # some readers refuse a null where a default is meant
                value = _meaning(config, row.ours)
            if row.values is not None:
                named = [theirs for theirs, ours in row.values.items() if ours == value]
                if not named:
                    differ[row.ours] = ", ".join(map(repr, dict.fromkeys(row.values.values())))
                value = named[0] if named else row.default
            out[row.name] = value
        elif isinstance(row, Only):
            out[row.name] = row.value
        else:
            out |= row.write(config)
    back = read_config(family, out)
    for field in dataclasses.fields(ModelConfig):
        if field.name not in OURS_ALONE:
            kept = _meaning(back, field.name)
            if kept != _meaning(config, field.name):
                differ.setdefault(field.name, repr(kept))
    if differ:
        named = [f"{k}={_meaning(config, k)!r} (accepted: {v})" for k, v in differ.items()]
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
    return getattr(config, name)


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
