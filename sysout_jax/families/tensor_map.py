"""Stored tensors to parameters and back, by the rows of a family's tensor map."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sysout_jax.families.family import Family, Tensor
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_axes, param_shapes

Path = tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """The share that one parameter has of a stored tensor."""

    path: Path  # of the parameter
    axes: tuple[str, ...]  # its letters
    along: tuple[str, ...]  # letters of its extent along "+", the slowest first; "1" for one
    expert: int | None = None  # which slice of the parameter's first axis it is


@dataclass(frozen=True)
class Stored:
    """One stored tensor of a checkpoint: its name, its shape, and who owns what of it."""

    name: str
    groups: tuple[tuple[str, ...], ...]  # letters of each axis, those that share one together
    parts: tuple[Part, ...]
    sizes: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it must have."""
        return tuple(math.prod(self._size(letter) for letter in group) for group in self.groups)

    def _size(self, letter: str) -> int:
        if letter == "+":
            return sum(map(self._extent, self.parts))
        return 1 if letter == "1" else self.sizes[letter]

    def _extent(self, part: Part) -> int:
        """How much of "+" a parameter takes."""
        return math.prod(self._size(letter) for letter in part.along)

    @property
    def _letters(self) -> tuple[str, ...]:
        return tuple(letter for group in self.groups for letter in group)

    def take(self, part: Part, array: np.ndarray) -> np.ndarray:
        """The parameter, or the expert of it, that `part` says: a view, its axes in our order."""
        spread = array.reshape([self._size(letter) for letter in self._letters])
        letters = list(self._letters)
        if "+" in letters:
            at, before = letters.index("+"), self.parts.index(part)
            start = sum(map(self._extent, self.parts[:before]))
            spread = spread[(slice(None),) * at + (slice(start, start + self._extent(part)),)]
            letters[at : at + 1] = part.along
            spread = spread.reshape([self._size(letter) for letter in letters])
        order = [letters.index(letter) for letter in self._order(part)]
        rest = [i for i in range(len(letters)) if i not in order]
        return spread.transpose(*rest, *order).reshape(self._target(part))

    def put(self, params: Mapping[Path, np.ndarray]) -> np.ndarray:
        """The stored tensor, from the parameters by path."""
        pieces = []
        for part in self.parts:
            value = params[part.path]
            value = value if part.expert is None else value[part.expert]
            spread = value.reshape([self._size(letter) for letter in self._order(part)])
            split = [part.along if letter == "+" else (letter,) for letter in self._letters]
            named = [letter for letters in split for letter in letters if letter != "1"]
            spread = spread.transpose([self._order(part).index(letter) for letter in named])
            pieces.append(spread.reshape([math.prod(map(self._size, group)) for group in split]))
        at = self._letters.index("+") if "+" in self._letters else 0
        whole = np.concatenate(pieces, axis=at) if len(pieces) > 1 else pieces[0]
        return np.ascontiguousarray(whole.reshape(self.shape))

    def _order(self, part: Part) -> tuple[str, ...]:
        """The parameter's letters, query heads as KV heads times G where they are stored so."""
        by_group = "G" in {*self._letters, *part.along}
        expand = {"N": ("K", "G")} if by_group else {}
        return tuple(inner for letter in part.axes for inner in expand.get(letter, (letter,)))

    def _target(self, part: Part) -> tuple[int, ...]:
        return tuple(self.sizes[letter] for letter in part.axes)


def layout(family: Family, config: ModelConfig) -> list[Stored]:
    """Every tensor that a checkpoint of this architecture stores."""
    sizes = dict(config.sizes) | {"G": config.heads // config.sizes["K"]}
    axes = {path: text for path, text in leaves(param_axes(config))}
    return [
        Stored(name, axis_groups(row.axes), parts, sizes)
        for row in family.tensors
        if row.when(config)
        for name, parts in _expand(family, row, config, axes)
    ]


def _expand(
    family: Family, row: Tensor, config: ModelConfig, axes: Mapping[Path, str]
) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """The row for every layer and expert; nothing where the architecture lacks its parameters."""
    name = row.stored[1:] if row.stored.startswith("/") else family.prefix + row.stored
    for layer in range(config.layers) if "{l}" in name else (0,):
        for expert in range(config.experts) if "{e}" in name else (None,):
            parts = []
            for owner in row.ours:
                text, _, along = owner.partition("=")
                path = tuple(text.replace("block/", f"block_{layer}/", 1).split("/"))
                if path in axes:
                    letters = tuple(x for x in axes[path].split() if x != "->")
                    own = letters if expert is None else letters[1:]
                    parts.append(Part(path, own, tuple(along.split()), expert))
            if parts:
                yield name.format(l=layer, e=expert), tuple(parts)


def axis_groups(axes: str) -> tuple[tuple[str, ...], ...]:
    """The letters of each axis of "(N H) D": those in parentheses share one."""
    found = re.findall(r"\(([^)]*)\)|(\S+)", axes)
    return tuple(tuple((inside or alone).split()) for inside, alone in found)


def leaves(tree: Any) -> Iterator[tuple[Path, Any]]:
    """The leaves of a tree of dicts with their paths of names."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield tuple(key.key for key in path), leaf


def shapes(config: ModelConfig) -> dict[Path, tuple[int, ...]]:
    """The shape of every parameter of an architecture, by path."""
    return {path: leaf.shape for path, leaf in leaves(param_shapes(config))}
