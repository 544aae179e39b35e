"""How a decoder is run, which changes nothing of what it is."""

from dataclasses import dataclass

from sysout_jax.core import flash
from sysout_jax.errors import InputError, at_least, of_kinds, one_of

REMATS = ("none", "block", "dots")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Execution:
    """How a run computes a decoder: its function stays the same but for rounding.

    `scan_layers` says that the parameters of layers are stacked: a model that exists keeps it.

    Raises:
      InputError: a value is not accepted, or has no effect beside another.
    """

    scan_layers: bool = False  # one compiled block for all layers: compiles faster when deep
    remat: str = "none"  # what the backward pass computes again: none, block, dots (all but those)
    query_block: int | None = None  # queries attended at a time, for long contexts; None: all
    loss_block: int | None = None  # positions whose logits a loss has at a time; None: by number
    flash: bool = False  # a fused kernel mixes, where it can: bfloat16, softmax, no tap
    dtype: str = "float32"  # float32 or bfloat16 activations; parameters are as they were loaded

    def __post_init__(self) -> None:
        of_kinds(self)
        one_of("remat", self.remat, REMATS)
        one_of("dtype", self.dtype, DTYPES)
        at_least(1, "query_block", self.query_block)
        at_least(1, "loss_block", self.loss_block)
        if self.flash and self.dtype not in flash.DTYPES:
            raise InputError("flash", True, "--dtype=bfloat16", f"no effect in {self.dtype}")
        if self.flash and self.query_block is not None:
            why = f"no effect with --query_block={self.query_block}"
            raise InputError("flash", True, "all queries at a time", why)
