"""The config that determines a decoder, and named shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import MLPS, NORMS
from sysout_jax.errors import InputError

PLACEMENTS = ("pre", "post", "sandwich")
POSITIONS = ("learned", "rope", "none")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines a decoder's parameters and its function.

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
    variant: str = "softmax"  # a row of core/attention.py
    norm: str = "rms"  # rms, layer
    norm_placement: str = "pre"  # pre: x + f(n(x)); post: n(x + f(x)); sandwich: x + n(f(n(x)))
    norm_eps: float = 1e-5  # added to the mean square under the root
    position: str = "learned"  # learned, rope, none
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    mlp: str = "gelu"  # relu, gelu, or gated: geglu, swiglu
    bias: bool = False  # biases of linear maps and of LayerNorm
    tied: bool = False  # the output head is the embedding, transposed
    window: int | None = None  # keys visible to a query, itself included; None: all of the past
    init_std: float = 0.02  # standard deviation of initial weights
    scaled_residual_init: bool = False  # GPT-2's 1/sqrt(2 L) on projections into the residual
    scan_layers: bool = False  # one compiled block for all layers: compiles faster when deep
    query_block: int | None = None  # queries attended at a time, for long contexts; None: all
    dtype: str = "float32"  # float32 or bfloat16 activations; parameters are float32

    def __post_init__(self) -> None:
        for name in ("vocab", "context", "layers", "width", "heads"):
            _at_least_one(name, getattr(self, name))
        for name in ("kv_heads", "head_dim", "mlp_width", "window", "query_block"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        for name in ("norm_eps", "init_std"):
            if not getattr(self, name) >= 0:
                raise InputError(
                    f"--{name}={getattr(self, name)}: accepted: a number of at least 0"
                )
        if not self.rope_theta > 0:
            raise InputError(f"--rope_theta={self.rope_theta}: accepted: a number above 0")
        for name, accepted in (
            ("variant", VARIANTS),
            ("norm", NORMS),
            ("norm_placement", PLACEMENTS),
            ("position", POSITIONS),
            ("mlp", MLPS),
            ("dtype", DTYPES),
        ):
            one_of(name, getattr(self, name), tuple(accepted))
        if self.head_dim is None and self.width % self.heads:
            raise InputError(
                f"--heads={self.heads}: does not divide --width={self.width}; "
                "accepted: a divisor of the width, or any number with --head_dim"
            )
        if self.heads % self.sizes["K"]:
            raise InputError(
                f"--kv_heads={self.kv_heads}: does not divide --heads={self.heads}; "
                "accepted: a divisor of the number of heads"
            )
        if self.position == "rope" and self.sizes["H"] % 2:
            raise InputError(
                f"--position=rope: rotates channels in pairs, but heads have {self.sizes['H']}; "
                "accepted: an even head dim (--width / --heads, or --head_dim)"
            )

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size of each axis letter: V, T (learned positions), L, D, N, K, H, F."""
        return MappingProxyType(
            {
                "V": self.vocab,
                "T": self.context,
                "L": self.layers,
                "D": self.width,
                "N": self.heads,
                "K": self.kv_heads or self.heads,
                "H": self.head_dim or self.width // self.heads,
                "F": self.mlp_width or 4 * self.width,
            }
        )


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"--{name}={value}: accepted: an integer of at least 1")


def one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Refuse a value of flag `name` that is not one of the accepted ones."""
    if value not in accepted:
        raise InputError(f"--{name}={value!r}: unknown; accepted: {', '.join(accepted)}")


_GPT2 = ModelConfig(
    norm="layer", position="learned", mlp="gelu", bias=True, tied=True, scaled_residual_init=True
)
_LLAMA = ModelConfig(norm="rms", position="rope", mlp="swiglu")

SHAPES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "backcopy": ModelConfig(layers=1, width=64, heads=1, mlp="relu", context=32),
        "gpt2-tiny": replace(_GPT2, layers=2, width=64, heads=4),
        "gpt2-124m": replace(_GPT2, layers=12, width=768, heads=12, context=1024),
        "llama-tiny": replace(_LLAMA, layers=4, width=128, heads=4, kv_heads=2, mlp_width=344),
        "llama-57m": replace(
            _LLAMA, layers=8, width=512, heads=8, kv_heads=4, mlp_width=1376, context=1024
        ),
    }
)
