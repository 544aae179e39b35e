"""What training begins with: where it ended, where another run ended, a model, or nothing."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sysout_jax.data import Source
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, stack_blocks, unstack_blocks
from sysout_jax.model.execution import Execution
from sysout_jax.model.stored import flat, from_record
from sysout_jax.results import as_flag, leaves
from sysout_jax.training import hosts
from sysout_jax.training.checkpoint import load, saved_seeds
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.sharding import place
from sysout_jax.training.states import (
    NO_STATE,
    Saving,
    Say,
    StateStore,
    reaches,
    restore,
    saved_steps,
)
from sysout_jax.training.step import TrainState

Row = dict[str, Any]
# What may differ between the parts of a run: to which devices it goes, and so the last bits.
MAY_CHANGE = ("mesh", "parallel")
# Of a model that others begin with, what may differ: nothing that its parameters know.
MAY_CHANGE_IN_MODEL = ("context", "init_std", *(each.name for each in fields(Execution)))


@dataclass(frozen=True)
class StartingPoint:
    """What training begins with: the state after some steps, and what was logged up to there."""

    state: TrainState
    step: int = 0
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class States:
    """Where the training states of a run go, and what it begins with."""

    directory: Path  # of the run's states
    saving: Saving
    say: Say  # hears one line of each state that cannot be used
    resume_from: Path | None = None  # another run's states
    init_from: Path | None = None  # a model directory
    stopping: Callable[[], bool] = lambda: False  # whether this process is asked to stop

    def asked_to_stop(self) -> bool:
        """Whether any process of the run is; all of them have to ask together."""
        return any(hosts.all_gather_flag(self.stopping()))

    def of(self, config: TrainConfig, corpus: Source, seeds: tuple[int, ...]) -> "GroupStates":
        """Those of one group of seeds."""
        return GroupStates(self, config, corpus, seeds)


class GroupStates:
    """The training states of one group of seeds; a context that waits for the last to be saved.

    Args:
      states: of the run.
      config, corpus: of the run.
      seeds: of the group.
    """

    def __init__(
        self, states: States, config: TrainConfig, corpus: Source, seeds: tuple[int, ...]
    ) -> None:
        self.states, self.config, self.corpus, self.seeds = states, config, corpus, seeds
        self._name = f"{config.variant}-seed-{seeds[0]}"
        self._store = StateStore(states.directory / self._name, states.saving, states.say)
        self._data = fingerprint(config, corpus, seeds)
        self._saved = 0

    def __enter__(self) -> "GroupStates":
        self._store.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._store.__exit__(*error)

    def begin(self, architecture: ModelConfig, start: Callable[[], TrainState]) -> StartingPoint:
        """What training begins with: the first of these that there is.

        1. The newest whole state in the run's own directory: the run was interrupted.
        2. The newest whole state of the run `resume_from`, with its rows: this run goes on.
        3. The parameters of the model `init_from`, at step 0 with a fresh optimiser.
        4. From scratch: the state that the seeds give.

        Args:
          architecture: of the run.
          start: gives the state of case 4, in whose places the others are put.

        Raises:
          InputError: there are states and none is whole; the state is of another config or other
            data, the model of another shape.
        """
        places: list[tuple[Path, Callable[..., Any]]] = [
            (self._store.directory, self._store.restore)
        ]
        if self.states.resume_from is not None:
            other = self.states.resume_from / self._name
            places.append((other, partial(restore, other, say=self.states.say)))
        for where, read in places:
            # The state that only says where arrays go is gone before they come.
            check = partial(self._check, where)
            there = hosts.broadcast_json(bool(saved_steps(where)))
            found = read(_shapes(start()), check=check) if there else None
            if there and found is None:
                raise InputError(str(where), why=NO_STATE)
            if found is not None:
                state, about = found
                self._saved = about["step"]
                rows = [_from_json(row) for row in about["rows"]]
                return StartingPoint(state, about["step"], rows, about["seconds"])
        fresh = start()
        if self.states.init_from is None:
            return StartingPoint(fresh)
        path, params = self.states.init_from, fresh.params
        return StartingPoint(
            fresh._replace(params=initial(path, architecture, self.corpus, self.seeds, params))
        )

    def due(self, step: int) -> bool:
        """Whether the state after so many steps is to be kept: it is time, or the run is asked to
        stop. All processes have to ask together."""
        return self.states.asked_to_stop() or self._is_time(step)

    def _is_time(self, step: int) -> bool:
        every = self.states.saving.save_every
        return reaches(every, self._saved, step) or step == self.config.steps

    def save(
        self, step: int, state: Callable[[], TrainState], rows: list[Row], seconds: float
    ) -> bool:
        """Keep a state if one is due; if the run is asked to stop, wait until it is there.

        Args:
          step: how many steps led to it.
          state: gives the state of the group.
          rows: logged up to there.
          seconds: spent up to there.

        Returns:
          Whether the run is asked to stop.

        Raises:
          OSError: it cannot be written.
        """
        stopping = self.states.asked_to_stop()
        if (stopping or self._is_time(step)) and step > self._saved:
            about = {
                "config": asdict(self.config),
                "seeds": list(self.seeds),
                "data": self._data,
                "seconds": seconds,
                "rows": [_to_json(row) for row in rows],
            }
            self._store.save(step, state(), about, finished=step == self.config.steps)
            self._saved = step
        if stopping:
            self._store.wait()
        return stopping

    def _check(self, where: Path, about: Mapping[str, Any]) -> None:
        check_same(about["config"], self.config, where)
        if about["seeds"] != list(self.seeds):
            raise InputError(
                "seeds",
                ",".join(map(str, self.seeds)),
                "those",
                f"{where} is of {','.join(map(str, about['seeds']))}",
            )
        if about["data"] != self._data:
            raise InputError(
                "corpus",
                self.config.corpus,
                "that text, with its tokenizer",
                f"not the text that {where} was trained on",
            )


def check_same(stored: Mapping[str, Any], config: TrainConfig, where: Path) -> None:
    """Refuse a config that contradicts the one that a state was trained with.

    Raises:
      InputError: names the first flag that differs.
    """
    before, now = (
        _by_flag(stored, from_record(stored["model"])),
        _by_flag(asdict(config), config.model),
    )
    for name in dict.fromkeys((*now, *before)):
        was, asked = before.get(name), now.get(name)
        if was != asked and name not in MAY_CHANGE:
            raise InputError(
                name,
                as_flag(asked),
                "that, or --init_from=RUN/models/NAME, which takes parameters alone",
                f"{where} was trained with {as_flag(was)}",
            )


def _by_flag(config: Mapping[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Every value of a run's config by the name of its flag, as JSON has it."""
    tree: dict[str, Any] = json.loads(json.dumps({**config, "model": flat(model)}))
    return {**tree.pop("model"), **dict(leaves(tree))}


def initial(
    path: Path, architecture: ModelConfig, corpus: Source, seeds: tuple[int, ...], fresh: Params
) -> Params:
    """The parameters of a saved model: each seed's own where it has several, else the same for all.

    Args:
      path: the model directory.
      architecture, corpus, seeds: of the run.
      fresh: parameters of the run, in whose places and types the model's are put.

    Raises:
      InputError: no model directory, or of another shape, tokenizer or other seeds.
    """
    several = len(saved_seeds(path)) > 1
    models = [load(path, seed if several else None, on_host=True) for seed in seeds]
    there, here = flat(models[0].config), flat(architecture)
    for name in dict.fromkeys((*here, *there)):
        was, asked = there.get(name), here.get(name)
        if was != asked and name not in MAY_CHANGE_IN_MODEL:
            raise InputError(
                "init_from",
                path,
                f"a model of the same architecture, or --{name}={as_flag(was)}",
                f"{name} {as_flag(was)}, but the run has {as_flag(asked)}",
            )
    theirs, ours = models[0].tokenizer, corpus.tokenizer
    if (theirs and theirs.fingerprint) != (ours and ours.fingerprint):
        raise InputError(
            "init_from",
            path,
            "a model of the same tokenizer",
            "its tokenizer is not that of this corpus",
        )
    params = [_laid_out(model.params, architecture.execution.scan_layers) for model in models]
    stacked = jax.tree.map(lambda *x: np.stack(x), *params)

    def put(new: Any, old: Any) -> Any:
        if new.shape != old.shape:
            raise InputError(
                "init_from",
                path,
                "a model of the same shape",
                f"a parameter of shape {new.shape[1:]}, but the run has {old.shape[1:]}",
            )
        return place(new.astype(old.dtype), old.sharding)

    return dict(jax.tree.map(put, dict(stacked), dict(fresh)))


def _laid_out(params: Params, scanned: bool) -> Params:
    """The parameters of layers one by one, or of all together as a run with --scan_layers has."""
    if ("blocks" in params) == scanned:
        return params
    return stack_blocks(params) if scanned else unstack_blocks(params)


def _shapes(state: TrainState) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def fingerprint(config: TrainConfig, corpus: Source, seeds: tuple[int, ...]) -> str:
    """The SHA-256 of the first batches: other text, tokenizer or code that cuts it gives others."""
    shape = (config.batch_size, config.seq_len)
    digest = hashlib.sha256()
    for split, seed in (("val", 0), *(("train", seed) for seed in seeds)):
        digest.update(np.asarray(corpus.batch(split, seed, 0, *shape), np.int64).tobytes())
    return digest.hexdigest()


def _to_json(value: Any) -> Any:
    """Rows as JSON that gives every bit back."""
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return np.asarray(value).tolist() if isinstance(value, np.ndarray | jax.Array) else value


def _from_json(row: Mapping[str, Any]) -> Row:
    """A row as the loop makes it: float32 arrays over seeds."""
    back: Row = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            back[key] = _from_json(value)
        else:
            numbers = isinstance(value, list) and key != "seeds"
            back[key] = np.asarray(value, np.float32) if numbers else value
    return back
