"""What benchmarks against forward hooks on `transformers` share: model, rows, turns, comparison."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sysout_jax.errors import InputError
from sysout_jax.families.export import export
from sysout_jax.model.config import SHAPES, ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.model.model import Model

BOUND = 1e-3  # how far apart ours and the peer may be, as a share


class Differs(ValueError):
    """Ours and the peer do not find the same."""


def peer() -> dict[str, Any]:
    """What a record says of the peer, after it was asked for.

    Raises:
      InputError: it is not installed.
    """
    for module, name in (("torch", "PyTorch"), ("transformers", "transformers")):
        if find_spec(module) is None:
            raise InputError(
                f"{name} is not installed", accepted="pip install -r requirements-reference.txt"
            )
    import transformers

    from benchmarks import torch_decoder  # which imports PyTorch

    return {"transformers": transformers.__version__, **torch_decoder.prepare()}


def llama(layers: int, width: int, heads: int, vocab: int, context: int) -> ModelConfig:
    """A LLaMA of that size."""
    return replace(
        SHAPES["llama-57m"], layers=layers, width=width, heads=heads, kv_heads=heads,
        mlp_width=43 * width // 16, vocab=vocab, context=context,
    )  # fmt: skip


def write_model(config: ModelConfig, directory: Path) -> Path:
    """A random model of that config, as its family publishes it; returns its directory."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        export(Model(config, init(config, jax.random.key(0)), None), directory / "model", "llama")
    return directory / "model"


def write_rows(directory: Path, vocab: int, sequences: int, length: int) -> Path:
    """Random token ids, and the next tokens that `analyze` takes too; returns their file."""
    path = directory / f"rows-{length}.npy"
    np.save(path, np.random.default_rng(0).integers(0, vocab, (sequences, length + 1), np.int32))
    return path


def in_turn(
    calls: Mapping[str, Callable[[], dict[str, Any]]], rounds: int, say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """Name -> what each round's call returned; every second round in the opposite order."""
    passes: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            done = calls[name]()
            passes[name].append(done)
            above = (done["peak"] - done["loaded"]) / 2**20
            say(f"{name}: {done['seconds'][-1]:.1f} s, {above:.0f} MiB above the model")
    return passes


def relative_differences(ours: Any, theirs: Any, at: str = "") -> Iterator[tuple[str, float]]:
    """How far numbers are from the peer's, place by place, as shares of the largest there.

    Args:
      ours: nested mappings, whose leaves are nested lists of numbers, numbers or None.
      theirs: the same; entries that only one of the two has are not compared.
      at: the place that they are from.
    """
    if isinstance(theirs, Mapping):
        for name in ours.keys() & theirs.keys():
            yield from relative_differences(ours[name], theirs[name], f"{at} {name}".strip())
    elif isinstance(theirs, list) and isinstance(theirs[0], Mapping):
        for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from relative_differences(a, b, f"{at} {row}")
    else:
        a, b = (np.asarray(x, float) for x in (ours, theirs))  # None is NaN
        if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
            yield at, float("inf")
        elif not np.isnan(b).all():
            yield at, float(np.nanmax(np.abs(a - b)) / max(np.nanmax(np.abs(b)), 1e-30))


def check(ours: Any, theirs: Any) -> float:
    """The largest share by which ours and the peer differ.

    Raises:
      Differs: it is above the bound.
    """
    where, share = max(relative_differences(ours, theirs), key=lambda each: each[1])
    if not share <= BOUND:
        raise Differs(f"{where}: {share:.1e} from the peer's; accepted: at most {BOUND:.0e}")
    return share
