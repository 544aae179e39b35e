"""Rows that many families share: sizes, rotary positions with their rules, windows by layer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import log
from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import REQUIRED, Field, Group, Raw, Row, Tensor, biased, tensor
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.rope import RULES, Rope

GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu",
    "gelu_new": "geglu",
    "gelu": "geglu_exact",
    "relu": "reglu",
}
PLAIN = {
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
}


# Everything that counts something, under the names most families use.
SIZES: tuple[Row, ...] = (
    Field("vocab_size", "vocab"),
    Field("max_position_embeddings", "context"),
    Field("num_hidden_layers", "layers"),
    Field("hidden_size", "width"),
    Field("num_attention_heads", "heads"),
    Field("num_key_value_heads", "kv_heads"),
    Field("head_dim", "head_dim"),
    Field("intermediate_size", "mlp_width"),
    Field("initializer_range", "init_std"),
)


EXPERTS: tuple[Row, ...] = (  # of models that choose among many small ones
    Field("num_experts_per_tok", "experts_per_token"),
    Field("norm_topk_prob", "experts_sum_to_one"),
)


def expert_tensors() -> tuple[Tensor, ...]:
    """A router, and gate, up and down of each expert."""
    inside = "layers.{l}.mlp."
    return (
        tensor(f"{inside}gate.weight", "E D", "block/mlp/router"),
        *(
            tensor(f"{inside}experts.{{e}}.{name}_proj.weight", axes, f"block/mlp/{name}")
            for name, axes in (("gate", "F D"), ("up", "F D"), ("down", "D F"))
        ),
    )


FUSED_EXPERTS = (  # as transformers 5 saves mixtures with save_original_format=False
    tensor("layers.{l}.mlp.gate.weight", "E D", "block/mlp/router"),
    tensor("layers.{l}.mlp.experts.gate_up_proj", "E + D", "block/mlp/gate=F", "block/mlp/up=F"),
    tensor("layers.{l}.mlp.experts.down_proj", "E D F", "block/mlp/down"),
)


def _natural_head_dim(raw: Raw) -> dict[str, Any]:
    natural = raw["hidden_size"] // raw["num_attention_heads"]
    if raw.get("head_dim") not in (None, natural):
        raise InputError("head_dim", raw["head_dim"], f"{natural}, hidden size over heads")
    return {}


# of a family whose rotary positions alone read it
NATURAL_HEAD_DIM = Group(("head_dim",), (), _natural_head_dim, lambda c: {})


# ------------------------------------------------------------------------- rotary positions

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


# ------------------------------------------------------------------------- windows by layer


def windowed(size: int | None, layers: Sequence[bool]) -> dict[str, Any]:
    """The window's fields, of a size and of which layers have it."""
    chosen = tuple(layer for layer, has in enumerate(layers) if has)
    if size is None or not chosen:
        return {"window": None, "window_layers": None}
    return {"window": size, "window_layers": None if all(layers) else chosen}


def windows(
    local: Callable[[int, Raw], bool],
    switch: bool = False,
    others: tuple[str, ...] = (),
    least: int | None = None,
    named: bool = True,
) -> Group:
    """Windows of some layers: "layer_types", or the pattern that its absence means.

    Args:
      local: whether a layer (from 0) has the window, where "layer_types" does not say.
      switch: whether "use_sliding_window" turns windows on.
      others: fields that `local` reads.
      least: what is written as the window where no layer has one; None where null is accepted.
      named: whether "layer_types" is written where all layers are alike.
    """
    names = ("sliding_window", "layer_types", *others)
    names += ("use_sliding_window",) if switch else ()

    def read(raw: Raw) -> dict[str, Any]:
        layers, size = raw["num_hidden_layers"], raw.get("sliding_window")
        if switch and not raw["use_sliding_window"]:
            size = None
        kinds = raw.get("layer_types") or [
            "sliding_attention" if size and local(i, raw) else "full_attention"
            for i in range(layers)
        ]
        unknown = {str(kind) for kind in kinds} - {"sliding_attention", "full_attention"}
        if unknown or len(kinds) != layers:
            raise InputError(
                "layer_types",
                None,
                "sliding_attention or full_attention for each layer",
                f"{len(kinds)} of {layers} layers, {', '.join(sorted(unknown))}",
            )
        return windowed(size, [kind == "sliding_attention" for kind in kinds])

    def write(c: ModelConfig) -> dict[str, Any]:
        chosen = c.layers_with_window
        kinds = ["sliding_attention" if i in chosen else "full_attention" for i in range(c.layers)]
        out: dict[str, Any] = {"sliding_window": c.window or least}
        out |= {"layer_types": kinds} if named or len(set(kinds)) > 1 else {}
        return out | ({"use_sliding_window": c.window is not None} if switch else {})

    return Group(names, ("window", "window_layers"), read, write)


# ------------------------------------------------------------------------- tensors


def llama_attention(norms: bool = True) -> tuple[Tensor, ...]:
    """LLaMA's names of the embedding, the head, attention and, unless not, the two norms."""
    at = "layers.{l}.self_attn."
    norm_rows = (
        tensor("layers.{l}.input_layernorm.weight", "D", "block/attn_norm/scale"),
        tensor("layers.{l}.post_attention_layernorm.weight", "D", "block/mlp_norm/scale"),
    )
    return (
        tensor("embed_tokens.weight", "V D", "embed"),
        tensor("/lm_head.weight", "V D", "head"),
        tensor("norm.weight", "D", "final_norm/scale"),
        *biased(at + "q_proj", "(N H) D", "(N H)", "block/attn/query"),
        *biased(at + "k_proj", "(K H) D", "(K H)", "block/attn/key"),
        *biased(at + "v_proj", "(K H) D", "(K H)", "block/attn/value"),
        *biased(at + "o_proj", "D (N H)", "D", "block/attn/out"),
        *(norm_rows if norms else ()),
    )


LLAMA_MLP = (
    *biased("layers.{l}.mlp.gate_proj", "F D", "F", "block/mlp/gate"),
    *biased("layers.{l}.mlp.up_proj", "F D", "F", "block/mlp/up"),
    *biased("layers.{l}.mlp.down_proj", "D F", "D", "block/mlp/down"),
)
# Queries, keys and values of each KV head in one tensor; in the braces "_bias", or nothing.
FUSED = ("block/attn/query{}=G", "block/attn/key{}=1", "block/attn/value{}=1")
ROTARY_BUFFER = r".*rotary_emb\.inv_freq"
LLAMA_LIKE = {"norm": "rms", "position": "rope", "bias": False}
EPS = Field("rms_norm_eps", "norm_eps")
ATTENTION_BIASES = (Field("attention_bias", "qkv_bias"), Field("attention_bias", "out_bias"))
TIED = Field("tie_word_embeddings", "tied")
ACT = Field("hidden_act", "mlp", GATED)
LLAMA_ROWS: tuple[Row, ...] = (*SIZES, EPS, TIED, ACT, *ATTENTION_BIASES)
