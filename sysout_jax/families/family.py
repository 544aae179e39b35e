"""What a family is made of: rows that say how a published config and its tensors read here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sysout_jax.model.config import ModelConfig

Raw = Mapping[str, Any]  # a config.json, nested dicts flattened to "outer.inner"
REQUIRED = object()  # in place of a default that the reference does not have either


@dataclass(frozen=True)
class Field:
    """A field of config.json that is a field here, its values by the same or by other names.

    Its absence means what the reference's default is (families/reference.json).
    """

    name: str
    ours: str
    values: Mapping[Any, Any] | None = None


@dataclass(frozen=True)
class Fixed:
    """A field of config.json that is supported at one value, its default."""

    name: str
    value: Any


@dataclass(frozen=True)
class Group:
    """Fields of config.json that say something here only together.

    `read` takes the config, the reference's defaults in the place of absent fields, and returns the
    fields `ours` of ModelConfig; `write` is its inverse.
    """

    names: tuple[str, ...]
    ours: tuple[str, ...]
    read: Callable[[Raw], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


Row = Field | Fixed | Group


@dataclass(frozen=True)
class Tensor:
    """A stored tensor and the parameters it holds.

    `axes` are the letters of the stored tensor; letters in parentheses share an axis, the slowest
    first. "(N H) D" is a matrix whose rows are heads times head channels. G stands for query heads
    per KV head. Where several parameters are stored in one tensor, "+" is the axis along which they
    lie, and each says how much of it it takes: "key=K" as much as K, "key=1" a slice, "query=G H"
    as much as G times H.
    In names, {l} is the layer and {e} the expert, which is then the first axis here.
    """

    stored: str
    axes: str
    ours: tuple[str, ...]
    when: Callable[[ModelConfig], bool] = lambda config: True


def tensor(
    stored: str, axes: str, *ours: str, when: Callable[[ModelConfig], bool] | None = None
) -> Tensor:
    """A row of a tensor map; `ours` are paths such as "block/attn/query", or "final_norm/scale"."""
    return Tensor(stored, axes, ours) if when is None else Tensor(stored, axes, ours, when)


def norm(stored: str, ours: str, axes: str = "D") -> tuple[Tensor, Tensor]:
    """Rows of a norm's scale and bias."""
    scale, bias = f"{ours}/scale", f"{ours}/bias"
    return tensor(f"{stored}.weight", axes, scale), tensor(f"{stored}.bias", axes, bias)


def biased(stored: str, axes: str, of_bias: str, ours: str) -> tuple[Tensor, Tensor]:
    """Rows of a linear map and its bias, each with its axes."""
    bias = tensor(f"{stored}.bias", of_bias, f"{ours}_bias")
    return tensor(f"{stored}.weight", axes, ours), bias


@dataclass(frozen=True)
class Multimodal:
    """Where checkpoints of several modalities keep a model of a family.

    Attributes:
      model_type: of their config.json.
      config: its field that is the family's own config.
      shared: fields that may stand beside it as well as in it, with the same value.
      names: how stored names begin there, and here.
      others: regular expressions of the other modalities' stored names, which are not read.
    """

    model_type: str
    config: str
    shared: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A family of published models.

    Attributes:
      name: of the row.
      model_types: values of "model_type" in config.json.
      architecture: the class that the reference calls it.
      covers: published models that are of this family, in words.
      cite: its paper.
      fixed: fields of ModelConfig that all its models share.
      config: the config map.
      tensors: the tensor map.
      fused: rows in place of those with the same parameters, where a checkpoint has such names.
      prefix: in front of stored names, which some checkpoints leave out.
      aliases: other spellings of fields that the reference does not know, in older files.
      quantised: methods of "quantization_config" whose weights are read.
      buffers: regular expressions of stored names that hold no parameters.
      within: larger checkpoints that hold such a model.
    """

    name: str
    model_types: tuple[str, ...]
    architecture: str
    covers: str
    cite: str
    fixed: Mapping[str, Any]
    config: tuple[Row, ...]
    tensors: tuple[Tensor, ...]
    fused: tuple[Tensor, ...] = ()
    prefix: str = "model."
    aliases: Mapping[str, str] = field(default_factory=dict)
    quantised: tuple[str, ...] = ()
    buffers: tuple[str, ...] = field(default=())
    within: Multimodal | None = None
