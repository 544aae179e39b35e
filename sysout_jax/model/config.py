"""The config that determines a decoder, and named shapes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from sysout_jax.core import flash
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import MLPS
from sysout_jax.core.norms import NORMS
from sysout_jax.errors import InputError, at_least, finite, of_kinds, one_of
from sysout_jax.model.execution import Execution
from sysout_jax.model.rope import Rope, flag
from sysout_jax.model.sink import ExplicitSink

PLACEMENTS = ("pre", "post", "out", "sandwich")
POSITIONS = ("learned", "rope", "alibi", "none")
PARALLEL_BLOCKS = ("none", "shared", "separate")
QUERY_KEY_NORMS = ("none", "head", "whole")


@dataclass(frozen=True)
class ModelConfig:
    """What a decoder is, everything that determines its parameters and its function; and, in a
    class of its own, how it is run.

    Raises:
      InputError: a value is out of range, or two values do not fit together.
    """

    vocab: int = 256  # V, set by the corpus when training
    context: int = 128  # positions that `learned` has parameters for
    layers: int = 2  # L, blocks
    width: int = 64  # D, of the residual stream
    heads: int = 2  # N, query heads
    kv_heads: int | None = None  # K, heads of keys and values; None: as many as heads
    head_dim: int | None = None  # H; None: width / heads
    mlp_width: int | None = None  # F; None: 4 * width
    variant: str = "softmax"  # a row of core/attention
    norm: str = "rms"  # rms, layer, gated, pre_affine, single_scale, tanh
    norm_placement: str = "pre"  # pre: x + f(n(x)); post: n(x + f(x)); out: x + n(f(x)); sandwich
    norm_eps: float = 1e-5  # added to the mean square under the root
    norm_rank: int = 16  # R, of the gate of norm gated
    norm_scale: bool = True  # norms have a learned scale for each channel
    norm_plus_one: bool = False  # that scale is stored as its difference from 1 (Gemma)
    parallel_block: str = "none"  # attention and MLP side by side: shared norm, or separate
    position: str = "learned"  # learned, rope, alibi, none
    position_offset: int = 0  # rows of the learned positions before the first (OPT: 2)
    rope: Rope = field(default_factory=Rope)  # how position rope turns heads
    rope_layers: tuple[int, ...] | None = None  # layers (from 0) that it turns heads in; None: all
    alibi_falcon: bool = False  # divided by sqrt(H), and rounded to bfloat16 as Falcon was trained
    mlp: str = "gelu"  # relu, gelu(_exact), or gated: geglu(_exact), swiglu, reglu, shifted_glu
    mlp_limit: float | None = None  # up within -limit..limit, the gate at most limit (gpt-oss)
    experts: int = 0  # E, MLPs to choose from; 0: one MLP for all tokens
    experts_per_token: int = 2  # of which this many see a token
    experts_sum_to_one: bool = True  # their weights do; no: they are shares among all experts
    bias: bool = False  # biases of linear maps and of LayerNorm
    norm_bias: bool | None = None  # of LayerNorm; None: as bias
    qkv_bias: bool | None = None  # of queries, keys and values; None: as bias
    out_bias: bool | None = None  # of the projection out of heads; None: as bias
    mlp_bias: bool | None = None  # of the MLP and the router; None: as bias
    head_bias: bool = False  # of the output head
    query_key_norm: str = "none"  # before positions: of each head, or of the whole width
    query_scale: float | None = None  # of q.k; None: 1/sqrt(head dim)
    query_scale_by_layer: bool = False  # and over the layer's number, from 1 (Mistral's GPT-2)
    clip_qkv: float | None = None  # queries, keys and values within -clip..clip
    attn_softcap: float | None = None  # c: logits of attention become c tanh(s/c)
    final_softcap: float | None = None  # the same for the output's
    logit_scale: float = 1.0  # multiplies the output's logits, before that
    residual_scale: float = 1.0  # multiplies what attention and MLP write (Granite)
    embed_scale: float = 1.0  # multiplies embeddings
    embed_norm: bool = False  # embeddings go through a norm of their own (BLOOM)
    embed_width: int | None = None  # W, mapped to the width and back (OPT-350M); None: no map
    tied: bool = False  # the output head is the embedding, transposed
    window: int | None = None  # keys visible to a query, itself included; None: all of the past
    window_layers: tuple[int, ...] | None = None  # layers (from 0) with the window; None: all
    sink: ExplicitSink | None = None  # keys of no token, of a converted model
    init_std: float = 0.02  # standard deviation of initial weights
    scaled_residual_init: bool = False  # GPT-2's 1/sqrt(2 L) on projections into the residual
    execution: Execution = field(default_factory=Execution)  # how it is run

    def __post_init__(self) -> None:
        of_kinds(self)
        self._check_ranges()
        self._check_choices()
        self._check_norms()
        self._check_heads()
        self._check_positions()
        if self.sink is not None:
            self.sink.check(self.layers, self.variant)
        self._check_flash()
        if self.experts and self.experts_per_token > self.experts:
            raise InputError(
                "experts_per_token",
                self.experts_per_token,
                "at most that",
                f"more than --experts={self.experts}",
            )
        if self.parallel_block != "none" and self.norm_placement != "pre":
            raise InputError(
                "parallel_block",
                self.parallel_block,
                "pre, where attention and MLP are side by side",
                f"--norm_placement={self.norm_placement}",
            )

    def _check_ranges(self) -> None:
        for name in ("experts", "position_offset"):
            at_least(0, name, getattr(self, name))
        for name in (
            "vocab", "context", "layers", "width", "heads", "experts_per_token",
            "kv_heads", "head_dim", "mlp_width", "window", "embed_width", "norm_rank",
        ):  # fmt: skip
            at_least(1, name, getattr(self, name))
        for name in ("norm_eps", "init_std"):
            finite(name, getattr(self, name), or_zero=True)
        for name in (
            "mlp_limit", "query_scale", "clip_qkv", "attn_softcap", "final_softcap", "embed_scale",
            "logit_scale", "residual_scale",
        ):  # fmt: skip
            finite(name, getattr(self, name))

    def _check_choices(self) -> None:
        for name, accepted in (
            ("variant", VARIANTS),
            ("norm", NORMS),
            ("norm_placement", PLACEMENTS),
            ("parallel_block", PARALLEL_BLOCKS),
            ("position", POSITIONS),
            ("mlp", MLPS),
            ("query_key_norm", QUERY_KEY_NORMS),
        ):
            one_of(name, getattr(self, name), accepted)

    def _check_norms(self) -> None:
        """Refuse what has no effect on the norm."""
        heads_too = self.query_key_norm != "none"
        for name, norm, used in (
            ("norm_rank", "gated", self.norm == "gated"),
            ("norm_eps", "another", self.norm != "tanh" or heads_too),
            ("norm_scale", "another", NORMS[self.norm].scaled or heads_too),
        ):
            value = getattr(self, name)
            if not used and value != getattr(ModelConfig, name):
                raise InputError(name, value, f"with --norm={norm}", f"no effect with {self.norm}")
        if self.norm_plus_one and not (self.norm_scale and (NORMS[self.norm].scaled or heads_too)):
            raise InputError("norm_plus_one", True, "norms with a scale a channel", "no effect")

    def _check_heads(self) -> None:
        if self.head_dim is None and self.width % self.heads:
            raise InputError(
                "heads",
                self.heads,
                "a divisor of the width, or any number with --head_dim",
                f"does not divide --width={self.width}",
            )
        if self.heads % self.sizes["K"]:
            raise InputError(
                "kv_heads",
                self.kv_heads,
                "a divisor of the number of heads",
                f"does not divide --heads={self.heads}",
            )

    def _check_positions(self) -> None:
        for name, has, needs in (
            ("window_layers", self.window is not None, "--window"),
            ("rope_layers", self.position == "rope", "--position=rope"),
        ):
            chosen = getattr(self, name)
            if chosen is not None and not (
                has
                and all(0 <= x < self.layers for x in chosen)
                and list(chosen) == sorted(set(chosen))
            ):
                raise InputError(
                    name,
                    ",".join(map(str, chosen)),
                    f"layers from 0 to {self.layers - 1} in order, with {needs}",
                )
        if self.position_offset + self.keys_before >= self.context:
            raise InputError(
                "position_offset",
                self.position_offset,
                "less than that",
                f"leaves none of the --context={self.context} positions",
            )
        if self.position == "rope":
            self.rope.check(self.sizes["H"])
            return
        for name, value in asdict(self.rope).items():
            if value != getattr(Rope, name):
                raise InputError(flag(name), value, "with --position=rope", "no effect")

    def _check_flash(self) -> None:
        """Refuse a fused kernel where it can mix nothing: its logits are plain."""
        if not self.execution.flash:
            return
        for prevents, said in (
            (self.attn_softcap is not None, f"--attn_softcap={self.attn_softcap}"),
            (self.position == "alibi", "--position=alibi"),
            (self.sink is not None, "the keys of a converted model"),
        ):
            if prevents:
                raise InputError("flash", True, "without it", f"no effect with {said}")
        if not flash.takes(self.sizes["H"]):
            accepted = f"heads of a multiple of {flash.PADDING}, of at most {flash.LARGEST}"
            why = f"no effect on heads of {self.sizes['H']} channels"
            raise InputError("flash", True, accepted, why)

    @property
    def channel_scales(self) -> bool:
        """Whether the norms of the residual stream have a scale for each channel."""
        return self.norm_scale and NORMS[self.norm].scaled

    @property
    def keys_before(self) -> int:
        """Positions before the text's first, which keys of an explicit sink have."""
        return 0 if self.sink is None or self.sink.replaces_first else self.sink.keys

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sequence that learned positions allow; None: any length."""
        if self.position != "learned":
            return None
        return self.context - self.position_offset - self.keys_before

    @property
    def layers_with_window(self) -> tuple[int, ...]:
        """The layers, from 0, in which `window` limits attention."""
        if self.window is None:
            return ()
        return tuple(range(self.layers)) if self.window_layers is None else self.window_layers

    def window_of(self, layer: int) -> int | None:
        """The keys that a query of a layer sees, itself included; None: all of the past."""
        return self.window if layer in self.layers_with_window else None

    @property
    def fused(self) -> bool:
        """Whether a fused kernel mixes the values: `flash`, with a size that the kernel takes."""
        extra_key = VARIANTS[self.variant].extra_key
        return self.execution.flash and flash.takes(self.sizes["H"], extra_key, self.window)

    def with_execution(self, **changes: Any) -> "ModelConfig":
        """The same model, run otherwise.

        Args:
          changes: fields of `Execution`.

        Raises:
          InputError: a value is not accepted, or has no effect in this model.
        """
        return replace(self, execution=replace(self.execution, **changes))

    def has_bias(self, part: str) -> bool:
        """Whether a part of the model, e.g. "qkv", has biases."""
        own = getattr(self, f"{part}_bias")
        return bool(self.bias if own is None else own)

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size of each axis letter: V, W, T (learned positions), L, D, N, K, H, F, E, R (the
        norms' gates), and C of the keys of an explicit sink."""
        return MappingProxyType(
            {
                "V": self.vocab,
                "W": self.embed_width or self.width,
                "T": self.context,
                "L": self.layers,
                "D": self.width,
                "N": self.heads,
                "K": self.kv_heads or self.heads,
                "H": self.head_dim or self.width // self.heads,
                "F": self.mlp_width or 4 * self.width,
                "E": self.experts,
                "R": self.norm_rank,
                "C": 0 if self.sink is None else self.sink.keys,
            }
        )


_GPT2 = ModelConfig(
    norm="layer", position="learned", mlp="gelu", bias=True, tied=True, scaled_residual_init=True
)
_LLAMA = ModelConfig(norm="rms", position="rope", mlp="swiglu")

SHAPES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "backcopy": ModelConfig(layers=1, width=64, heads=1, mlp="relu"),
        "gpt2-tiny": replace(_GPT2, layers=2, width=64, heads=4),
        "gpt2-124m": replace(_GPT2, layers=12, width=768, heads=12, context=1024, vocab=50257),
        "llama-tiny": replace(_LLAMA, layers=4, width=128, heads=4, kv_heads=2, mlp_width=344),
        "llama-57m": replace(
            _LLAMA, layers=8, width=512, heads=8, kv_heads=4, mlp_width=1376, context=1024
        ),
        "llama2-7b": replace(
            _LLAMA, layers=32, width=4096, heads=32, mlp_width=11_008, context=4096, vocab=32_000
        ),
    }
)
