"""Where the weights of a model come from: for records, and never part of what a model is."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Origin:
    """What was read.

    All origins are equal, so that two loads of one model are one structure to JAX.

    Attributes:
      place: a path.
      weights: how they are stored there, e.g. "safetensors (272 BF16)".
      ignored: fields of its config that the reference implementation does not read either.
    """

    place: str = field(compare=False)
    weights: str = field(compare=False)
    ignored: tuple[str, ...] = field(default=(), compare=False)
