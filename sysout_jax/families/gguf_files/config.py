"""The metadata of a GGUF file as the config.json that the same model is published with."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isclose, log
from typing import Any

import numpy as np

from sysout_jax.errors import InputError
from sysout_jax.families.gguf_files.header import Header, Tensor
from sysout_jax.families.gguf_files.tensors import unpack

_LOG = logging.getLogger("sysout_jax")
Raw = dict[str, Any]
# Keys that say nothing which tensors and other keys do not: how the file was made, or is run.
_WITHOUT_EFFECT = (
    "vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "leading_dense_block_count",
)  # fmt: skip
# Keys that an architecture may repeat, at the value which says that there is no such thing.
_WITHOUT_EFFECT_AT: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "expert_count": (0,), "expert_used_count": (0,),
    "expert_shared_count": (0,), "attention.max_alibi_bias": (0.0,), "logit_scale": (1.0,),
    "attention.sliding_window": (0,), "rope.scaling.type": ("none",),
    "pooling_type": (0, 1, 2, 3),  # of states behind the last layer: none, mean, CLS, last
    "attention.clamp_kqv": (0.0,), "attention.scale": (0.0,), "rope.scaling.attn_factor": (1.0,),
}  # fmt: skip
_MATTERS = ("rope.", "attention.")  # how keys begin that change numbers, known or not
# What config.json calls a parameter of yarn: its keys, of llama.cpp's converter and of Ollama's.
_YARN = {
    "beta_fast": ("rope.scaling.yarn_beta_fast", "rope.scaling.beta_fast"),
    "beta_slow": ("rope.scaling.yarn_beta_slow", "rope.scaling.beta_slow"),
    "attention_factor": ("rope.scaling.yarn_attn_factor",),
}
_EXTRAPOLATION = ("rope.scaling.yarn_ext_factor", "rope.scaling.extrapolation_factor")


@dataclass
class Metadata:
    """The keys of one architecture, and which of them have been read."""

    header: Header
    architecture: str
    tensors: Mapping[str, Tensor]
    seen: set[str] = field(default_factory=set)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of "{architecture}.{key}".

        Numbers of float32 are those that they were rounded from; of one number for every layer all
        must be the same.

        Raises:
          InputError: layers that differ.
        """
        self.seen.add(key)
        found = self.header.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(found, list) and key != "attention.sliding_window_pattern":
            if len(set(found)) != 1:
                self.refuse(key, f"{found[:8]}", "one value, the same for every layer")
            found = found[0]
        return float(str(np.float32(found))) if isinstance(found, float) else found

    def whole(self, key: str) -> int:
        """An integer of at least 1.

        Raises:
          InputError: another value, or none.
        """
        found = self.get(key)
        if type(found) is not int or found < 1:
            self.refuse(key, repr(found)[:60], "an integer of at least 1")
        return found

    def number(self, key: str, default: float | None = None) -> Any:
        """A number, or the default where there is none.

        Raises:
          InputError: a value that is no number.
        """
        found = self.get(key, default)
        if type(found) not in (int, float, type(default)):
            self.refuse(key, repr(found)[:60], "a number")
        return found

    def refuse(self, key: str, found: str, accepted: str) -> Any:
        """Say what is wrong with a key."""
        raise InputError(
            str(self.header.file), None, accepted, f"{self.architecture}.{key} is {found}"
        )

    def has(self, name: str) -> bool:
        """Whether the first layer has a tensor, e.g. "attn_q.bias"."""
        return f"blk.0.{name}" in self.tensors

    @property
    def heads(self) -> tuple[int, int, int]:
        """N, K and H."""
        heads = self.whole("attention.head_count")
        kv = self.get("attention.head_count_kv", heads)
        size = self.get("attention.key_length", max(1, self.whole("embedding_length") // heads))
        for key in ("attention.value_length", "attention.head_dim"):
            if self.get(key, size) != size:
                self.refuse(key, f"{self.get(key)}", f"{size}")
        if type(kv) is not int or type(size) is not int or min(kv, size) < 1 or heads % kv:
            self.refuse("attention.head_count_kv", f"{kv} of {heads} heads of {size}", "a divisor")
        if heads * size > self.most_rows:
            accepted = f"no more than the {self.most_rows} rows of the largest tensor"
            self.refuse("attention.head_count", f"{heads}, heads of {size}", accepted)
        return heads, kv, size

    @cached_property
    def most_rows(self) -> int:
        """Rows of the tensor that has most."""
        return max((tensor.rows for tensor in self.tensors.values()), default=0)

    def vector(self, name: str) -> list[float] | None:
        """The entries of a tensor of one axis that belongs to the config; None: there is none.

        Raises:
          InputError: it cannot be read, or holds NaN or infinity.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        out = np.empty((tensor.rows, tensor.shape[-1]), np.float32)
        unpack(tensor, None, out)
        return [float(str(x)) for x in out.reshape(-1)]

    def unread(self) -> tuple[str, ...]:
        """The keys of this architecture that have not been read and that the gguf package does not
        know.

        Raises:
          InputError: keys that it knows, or of positions or attention, which may change what the
            model computes.
        """
        start = f"{self.architecture}."
        left = {
            key.removeprefix(start): value
            for key, value in self.header.metadata.items()
            if key.startswith(start) and key.removeprefix(start) not in self.seen
        }
        known = _known_keys()
        fatal = sorted(
            f"{start}{key}={str(value)[:40]}"
            for key, value in left.items()
            if (key in known or key.startswith(_MATTERS))
            and key not in _WITHOUT_EFFECT
            and value not in _WITHOUT_EFFECT_AT.get(key, ())
        )
        if fatal:
            raise InputError(
                f"{self.header.file}: {', '.join(fatal)} (accepted: metadata that says of "
                f"{self.architecture} what this library computes)"
            )
        return tuple(sorted(f"{start}{key}" for key in left if key not in known))


def _known_keys() -> set[str]:
    """Every key of an architecture that the gguf package knows, without the architecture."""
    from gguf.constants import Keys  # takes a tenth of a second to import

    def texts(group: type) -> Iterator[str]:
        for value in vars(group).values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, type):
                yield from texts(value)

    start = "{arch}."
    return {text.removeprefix(start) for text in texts(Keys) if text.startswith(start)}


# ------------------------------------------------------------------------- what many share

LLAMA_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "context_length": "max_position_embeddings",
}
BASE = 10_000.0
RMS = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
LAYER = ("attention.layer_norm_epsilon", "layer_norm_eps")


def llama_like(
    meta: Metadata, eps: tuple[str, str] = RMS, rotary_name: str = "", base: float = BASE
) -> Raw:
    """Sizes, norm, rotary positions and tying under the names that most families use."""
    heads, kv, _ = meta.heads
    raw = {theirs: meta.whole(key) for key, theirs in LLAMA_SIZES.items()}
    return raw | {
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": meta.whole("feed_forward_length"),
        eps[1]: meta.get(eps[0]),
        **rotary(meta, rotary_name, base),
    }


def rotary(meta: Metadata, fraction_name: str = "", base: float = BASE) -> Raw:
    """Base, rule and share of rotary positions.

    Args:
      meta: of the file.
      fraction_name: what config.json calls the share of a head that is turned; empty where it is
        always the whole.
      base: where the file has none, as those of some converters do.
    """
    _, _, size = meta.heads
    turned = meta.get("rope.dimension_count", size)
    raw: Raw = {"rope_theta": meta.get("rope.freq_base", base)}
    if fraction_name:
        raw[fraction_name] = turned / size if type(turned) is int else turned
    elif turned != size:
        meta.refuse("rope.dimension_count", repr(turned), f"{size}, the size of a head")
    divisors = meta.vector("rope_freqs.weight")
    if divisors is not None:
        # Llama 3's rule, already applied to each frequency: "longrope" says just that.
        context = meta.whole("context_length")
        raw["rope_scaling"] = {
            "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors,
            "attention_factor": 1.0, "original_max_position_embeddings": context,
        }  # fmt: skip
        return raw
    rule = _rule(meta)
    return raw | ({"rope_scaling": rule} if rule else {})


def _rule(meta: Metadata) -> Raw | None:
    kind = meta.get("rope.scaling.type")
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear"))
    original = meta.get("rope.scaling.original_context_length")
    yarn = {theirs: _first(meta, keys) for theirs, keys in _YARN.items()}
    _check_factor(meta, factor if kind == "yarn" and factor else None)
    if kind == "none" or (kind is None and factor in (None, 0.0, 1.0)):
        return None
    if kind in ("linear", None):
        return {"rope_type": "linear", "factor": factor}
    if kind == "longrope" and "rope_factors_long.weight" in meta.tensors:
        return None  # the architecture reads its divisors
    if kind == "longrope":
        meta.refuse("rope.scaling.type", "'longrope'", "with the tensors rope_factors_*")
    if kind != "yarn":
        meta.refuse("rope.scaling.type", repr(kind)[:60], "none, linear, yarn, longrope")
    if _first(meta, _EXTRAPOLATION) not in (None, 1.0):
        meta.refuse(_EXTRAPOLATION[0], f"{_first(meta, _EXTRAPOLATION)}", "1.0")
    if yarn["attention_factor"] == 1.0:  # llama.cpp's word for the rule's own
        yarn["attention_factor"] = None
    own = 0.1 * log(factor) + 1.0 if factor else 1.0
    if yarn["attention_factor"] and isclose(yarn["attention_factor"] * own, 1.0, rel_tol=1e-4):
        # Of DeepSeek-R1-0528-Qwen3-8B: a multiplier, which transformers and llama.cpp leave out.
        said = f"yarn's factor of channels that turn is its own, {own:.4g}"
        _LOG.warning("%s: %s, and not %.4g", meta.header.file, said, yarn["attention_factor"])
        yarn["attention_factor"] = None
    given = {"factor": factor, "original_max_position_embeddings": original, **yarn}
    return {"rope_type": "yarn", **{k: v for k, v in given.items() if v is not None}}


def _check_factor(meta: Metadata, factor: float | None) -> None:
    """Refuse another factor of turned channels than yarn's own.

    llama.cpp multiplies yarn's own by it. In files of OLMo 3 by its first converter, and in
    Ollama's, it is yarn's own, which then comes twice there; the published model has it once.
    """
    if "rope_factors_long.weight" in meta.tensors:
        return  # longrope's, which the architecture reads
    given = meta.number("rope.scaling.attn_factor", 1.0)
    usual = [1.0] if factor is None else [1.0, 0.1 * log(factor) + 1.0]
    if not any(isclose(given, one, rel_tol=1e-5) for one in usual):
        meta.refuse("rope.scaling.attn_factor", f"{given}", " or ".join(f"{x:.6g}" for x in usual))


def _first(meta: Metadata, keys: tuple[str, ...]) -> Any:
    """The number under the first of several names that is there."""
    return next((x for x in [meta.number(key) for key in keys] if x is not None), None)


def window(meta: Metadata, absent: int = 0) -> Raw:
    """The window, or what its absence means, and of which layers; 0 is none."""
    raw: Raw = {"sliding_window": meta.get("attention.sliding_window", absent) or None}
    pattern = meta.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        raw["layer_types"] = ["sliding_attention" if x else "full_attention" for x in pattern]
    elif pattern is not None:
        raw["sliding_window_pattern"] = pattern
    return raw


def experts(meta: Metadata) -> Raw:
    """How many experts there are, how many a token sees, and how wide they are."""
    width = meta.whole("feed_forward_length")
    if meta.get("expert_feed_forward_length", width) != width:
        meta.refuse(
            "expert_feed_forward_length", f"{meta.get('expert_feed_forward_length')}", f"{width}"
        )
    return {
        "num_local_experts": meta.whole("expert_count"),
        "num_experts_per_tok": meta.whole("expert_used_count"),
    }
