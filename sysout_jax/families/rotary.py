"""Rotary positions as published configs say them: the rules, flat or by kind of layer."""

from collections.abc import Collection, Mapping
from math import log
from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import REQUIRED, Group, Raw
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.rope import RULES, Rope

# rule -> (its name, key in the published dict -> (field here, default; REQUIRED: none)): all that
# the reference reads of a rule, with yarn's mscale
_RULES: dict[str, tuple[str, dict[str, tuple[str, Any]]]] = {
    "default": ("plain", {}),
    "linear": ("linear", {"factor": ("factor", REQUIRED)}),
    "dynamic": ("dynamic", {"factor": ("factor", REQUIRED)}),
    "llama3": (
        "llama3",
        {
            "factor": ("factor", REQUIRED),
            "low_freq_factor": ("low", REQUIRED),
            "high_freq_factor": ("high", REQUIRED),
        },
    ),
    "yarn": (
        "yarn",
        {
            "factor": ("factor", None),
            "beta_fast": ("fast", 32.0),
            "beta_slow": ("slow", 1.0),
            "truncate": ("truncate", True),
            "attention_factor": ("scale", None),
        },
    ),
    "longrope": (
        "longrope",
        {
            "factor": ("factor", None),
            "short_factor": ("short", REQUIRED),
            "long_factor": ("long", REQUIRED),
            "attention_factor": ("scale", None),
        },
    ),
}
_ORIGINAL = "original_max_position_embeddings"


def rotary(
    theta: float = 10_000.0,
    fraction: float = 1.0,
    theta_name: str = "rope_theta",
    fraction_name: str = "partial_rotary_factor",
    default: Raw | None = None,
    renamed: Mapping[str, str] | None = None,
    partly: bool = False,
    rules: Collection[str] = (),
    interleaved: bool = False,
) -> Group:
    """Rotary positions in both published spellings, of which "rope_scaling" wins.

    Args:
      theta: the base where none is given.
      fraction: of the channels that are turned, where none is given.
      theta_name, fraction_name: what config.json calls them outside of "rope_parameters".
      default: the rule where none is given.
      renamed: older names of rules.
      partly: as of `read_rule`.
      rules: those that the family's code has; none: all.
      interleaved: whether a pair is two adjacent channels.
    """

    def read(raw: Raw) -> dict[str, Any]:
        for name in ("rope_parameters", "rope_scaling"):
            if not isinstance(raw.get(name), Mapping | None):
                raise InputError(f"{name}={raw[name]!r}", accepted="an object or null")
        given = raw.get("rope_scaling") or raw.get("rope_parameters") or default or {}
        _check_base(raw, theta_name, theta, given)
        by_layer = sorted(name for name, value in given.items() if isinstance(value, Mapping))
        if by_layer:
            raise InputError(
                f"rope_parameters of {', '.join(by_layer)}", accepted="one rule for all"
            )
        kind = given.get("rope_type", given.get("type", "default"))
        kind = (renamed or {}).get(kind, kind)
        if rules and kind not in rules:
            raise InputError("rope_type", repr(kind), ", ".join(rules))
        given = {
            "rope_theta": raw.get(theta_name, theta),
            "partial_rotary_factor": raw.get(fraction_name, fraction),
            **given,
            "rope_type": kind,
        }
        return {"rope": read_rule(given, raw, partly) | {"interleaved": interleaved}}

    def write(c: ModelConfig) -> dict[str, Any]:
        rule = write_rule(c.rope) or ({"rope_type": "default"} if default else None)
        out = {theta_name: c.rope.theta, "rope_scaling": rule}
        if rule and rule["rope_type"] == "longrope":  # where Phi-3's code looks for it
            out[_ORIGINAL] = rule[_ORIGINAL]
        return out | ({fraction_name: c.rope.fraction} if c.rope.fraction != fraction else {})

    names = ("rope_parameters", "rope_scaling", theta_name, fraction_name, _ORIGINAL)
    return Group(names, ("rope",), read, write)


def _check_base(raw: Raw, theta_name: str, usual: float, given: Raw) -> None:
    """Refuse a "rope_scaling" that takes the place of "rope_parameters", and with it of a base.

    Raises:
      InputError: the base is there alone, where the reference would not read it, but take `usual`.
    """
    beside = (raw.get("rope_parameters") or {}).get("rope_theta", usual)
    if beside != usual and "rope_theta" not in given and raw.get(theta_name) is None:
        accepted = f"the same inside of rope_scaling, or {theta_name} beside it"
        raise InputError(f"rope_parameters.rope_theta={beside}", accepted=accepted)


def unread_of_rule(raw: Raw) -> list[str]:
    """Keys of the published rotary dicts that no rule reads, as "rope_scaling.attn_factor"."""
    read = {"rope_type", "type", "rope_theta", "partial_rotary_factor", _ORIGINAL, "mscale",
            "mscale_all_dim", *(key for _, keys in _RULES.values() for key in keys)}  # fmt: skip
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        given = raw.get(name) or {}
        for each in (given, *given.values()) if isinstance(given, Mapping) else ():
            of_kind = each if isinstance(each, Mapping) else {}
            found += [
                f"{name}.{key}" for key, value in of_kind.items()
                if key not in read and value is not None and not isinstance(value, Mapping)
            ]  # fmt: skip
    return list(dict.fromkeys(found))


def rotary_by_kind(theta: float, local: tuple[str, float] | None = None) -> Group:
    """Rotary positions with a base of layers with a window, and a base and rule of the others.

    Args:
      theta: the base where none is given.
      local: what config.json calls the base of layers with a window outside of "rope_parameters",
        and its default; None: the other one.
    """

    def read(raw: Raw) -> dict[str, Any]:
        given, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
        if "type" in scaling and "rope_type" not in scaling:
            why = "versions of the published code disagree on whether it is read"
            raise InputError("rope_scaling", None, "rope_type in place of type", why)
        if local is None and given == {"rope_type": "default", "rope_theta": theta}:
            given = {}  # of all layers: what versions of the code agree on
        if set(given) - {"sliding_attention", "full_attention"}:
            why = f"versions of the published code disagree on {', '.join(sorted(given))}"
            raise InputError("rope_parameters", None, "one of each kind of layer", why)
        base = raw.get("rope_theta", theta)
        own = raw.get(*local) if local else theta
        if (
            local is None
            and base != theta
            and "rope_theta" not in (given.get("sliding_attention") or {})
        ):
            why = "versions of the published code disagree on layers with a window"
            raise InputError("rope_theta", base, f"{theta:g}, or rope_parameters", why)
        kinds = {"sliding_attention": (own, {}), "full_attention": (base, scaling)}
        nearby, everywhere = (
            {"rope_theta": told, "partial_rotary_factor": 1.0, **(given.get(kind) or {}), **more}
            for kind, (told, more) in kinds.items()
        )
        if read_rule(nearby, raw)["rule"] != "plain":
            raise InputError("rope_parameters of sliding_attention", accepted="rope_type default")
        return {"rope": read_rule(everywhere, raw) | {"local_theta": nearby["rope_theta"]}}

    def write(c: ModelConfig) -> dict[str, Any]:
        rule, own = write_rule(c.rope), c.rope.local_theta or c.rope.theta
        if local:
            return {"rope_theta": c.rope.theta, local[0]: own, "rope_scaling": rule}
        if c.rope.theta == own == theta:
            return {"rope_theta": theta, "rope_scaling": rule}
        plain = {"rope_type": "default"}
        full = {**(rule or plain), "rope_theta": c.rope.theta}
        return {"rope_parameters": {
            "full_attention": full,
            "sliding_attention": {**plain, "rope_theta": own},
        }}  # fmt: skip

    names = ("rope_parameters", "rope_theta", "rope_scaling", *(local or ())[:1])
    return Group(names, ("rope",), read, write)


def read_rule(given: Raw, raw: Raw, partly: bool = False) -> dict[str, Any]:
    """The fields of a `Rope`, and its rule, that one published dict of rotary parameters says.

    Args:
      given: that dict.
      raw: the whole config.
      partly: whether the family's heads may be turned in part; the code of others ignores a
        fraction, so that one which says 0.5 would be another model than its own.

    Raises:
      InputError: an unknown rule, a missing parameter, or a fraction that is ignored.
    """
    fraction = given["partial_rotary_factor"]
    if not partly and fraction not in (1.0, None):
        raise InputError("partial_rotary_factor", fraction, "1.0")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _RULES:
        raise InputError("rope_type", repr(kind), ", ".join(_RULES))
    rule, parameters = _RULES[kind]
    original = raw.get(_ORIGINAL) or given.get(_ORIGINAL)
    context = original or raw["max_position_embeddings"]
    if kind == "dynamic":
        context = raw["max_position_embeddings"]
    found = {
        "rule": rule,
        "theta": given["rope_theta"],
        "fraction": 1.0 if fraction is None and not partly else fraction,
    }
    if hasattr(RULES[rule], "context"):
        found["context"] = context
    for key, (ours, missing) in parameters.items():
        value = missing if given.get(key) is None else given[key]
        if key == "truncate":  # null is no, as the reference takes it
            value = bool(given.get(key, missing))
        if value is REQUIRED:
            raise InputError("rope_parameters", None, "a number", f"rule {kind} without {key}")
        if value is None and ours == "factor":
            if original is None:
                raise InputError(
                    "rope_parameters",
                    None,
                    "a number for one of them",
                    f"rule {kind} without factor and {_ORIGINAL}",
                )
            value = raw["max_position_embeddings"] / context
        found[ours] = tuple(value) if isinstance(value, list) else value
    if rule == "yarn" and found["scale"] is None:
        found["scale"] = _yarn_scale(found["factor"], given)
    return found


def _yarn_scale(factor: float, given: Raw) -> float | None:
    """yarn's scale of turned channels where DeepSeek's two exponents are given, else None."""
    exponents = given.get("mscale"), given.get("mscale_all_dim")
    if not all(exponents):
        return None
    turned, whole = (1 + 0.1 * float(m or 0) * log(max(factor, 1.0)) for m in exponents)
    return turned / whole


def write_rule(rope: Rope) -> dict[str, Any] | None:
    """The inverse of `read_rule`, without base and fraction; None for the plain rule."""
    if rope.rule == Rope.rule:
        return None
    _, parameters = _RULES[rope.rule]
    out: dict[str, Any] = {"rope_type": rope.rule}
    for key, (ours, _) in {_ORIGINAL: ("context", None), **parameters}.items():
        value = getattr(rope, ours, None)
        if value is not None:
            out[key] = list(value) if isinstance(value, tuple) else value
    return out
