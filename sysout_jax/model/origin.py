"""Where the weights of a model come from: for records, and never part of what a model is."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CACHE = "XDG_CACHE_HOME"


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

    @property
    def told(self) -> dict[str, Any]:
        """For a record; as those are shown to others, a place in the cache or the home begins with
        its name."""
        place, roots = Path(self.place), {"~": Path.home()}
        if os.environ.get(CACHE):
            roots = {f"${CACHE}": Path(os.environ[CACHE])} | roots
        for name, root in roots.items():
            if place.is_relative_to(root):
                return asdict(self) | {"place": str(Path(name, place.relative_to(root)))}
        return asdict(self)
