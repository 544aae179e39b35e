"""Where the weights of a model come from: for records, and never part of what a model is."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Origin:
    """What was read.

    All origins are equal, so that two loads of one model are one structure to JAX.

    Attributes:
      kind: of what: a run, safetensors, gguf, or llama2.c.
      place: a path, or a name that was fetched.
      ignored: fields of its config that the reference implementation does not read either.
      quantised: the format that the stored weights were dequantised from; None: they were not.
    """

    kind: str = field(compare=False)
    place: str = field(compare=False)
    ignored: tuple[str, ...] = field(default=(), compare=False)
    quantised: str | None = field(default=None, compare=False)
