"""The training loop: seeds in groups, steps in calls, measurements in between."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.core import flash
from sysout_jax.data import Backcopy, Source, TextCorpus, load_corpus
from sysout_jax.data.corpus import Progress
from sysout_jax.data.tokenizer import Tokenizer
from sysout_jax.errors import Diverged, InputError, Preempted
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, param_axes
from sysout_jax.model.model import Model
from sysout_jax.showing import facts
from sysout_jax.training import hosts
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.held_out import HeldOut, Measure, held_out, measuring, rows_at_once
from sysout_jax.training.hosts import gather_to_hosts
from sysout_jax.training.optimizer import make_optimizer
from sysout_jax.training.parallel import Devices, make_devices
from sysout_jax.training.resume import Row, StartingPoint, States, fingerprint
from sysout_jax.training.step import StepRecord, TrainState

Corpus = Backcopy | TextCorpus
Log = Callable[[Row], None]
Keep = Callable[[int, tuple[int, ...], Params], None]  # step, seeds, their parameters stacked


@dataclass(frozen=True)
class _Programs:
    """What a run compiles, once for all its groups of seeds."""

    architecture: ModelConfig
    devices: Devices
    held_out: Callable[[tuple[int, ...]], HeldOut]  # of seeds
    measure: Measure


@dataclass(frozen=True, repr=False)
class Run:
    """A finished training run."""

    config: TrainConfig  # with the name of the corpus that was given
    architecture: ModelConfig
    params: Params  # a leading axis over config.seeds on every leaf
    tokenizer: Tokenizer | None
    rows: list[Row]  # what was logged, in order
    seconds: float  # spent, in all parts of an interrupted run

    def __repr__(self) -> str:
        return f"Run({'; '.join(f'{name} {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        return facts("Run", self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        c = self.config
        found: dict[int, float] = {}  # the last of each seed
        for row in self.rows:
            found |= dict(zip(row["seeds"], row.get("val_loss", ()), strict=False))
        return [
            ("variant", c.variant),
            ("corpus", c.corpus),
            ("steps", f"{c.steps:,}"),
            ("validation loss", ", ".join(f"{x:.4g} (seed {seed})" for seed, x in found.items())),
            ("seconds", f"{self.seconds:.0f}"),
        ]

    def model(self, seed: int | None = None) -> Model:
        """The model of one seed; the first if None.

        Raises:
          InputError: the run has no such seed.
        """
        if seed is not None and seed not in self.config.seeds:
            accepted = ", ".join(map(str, self.config.seeds))
            raise InputError("seed", seed, accepted, "not in this run")
        at = 0 if seed is None else self.config.seeds.index(seed)
        return Model(self.architecture, jax.tree.map(lambda x: x[at], self.params), self.tokenizer)


def corpus_of(config: TrainConfig, progress: Progress | None = None) -> Corpus:
    """The corpus that a run draws its batches from; errors and `progress` as in `load_corpus`."""
    return load_corpus(
        config.corpus, config.tokenizer, config.bos, None, progress, config.train_tokens,
        config.token_dtype,
    )  # fmt: skip


def check_kernel(config: ModelConfig) -> None:
    """Refuse a fused kernel that this process's devices do not have.

    Raises:
      InputError: they are no GPUs or TPUs.
    """
    if config.execution.flash and not flash.available():
        where = jax.default_backend().upper()
        raise InputError("flash", True, "on a GPU or TPU", f"no effect on a {where}")


def train(
    config: TrainConfig,
    corpus: Source | None = None,
    log: Log | None = None,
    keep: Keep | None = None,
    states: States | None = None,
) -> Run:
    """Train one variant with every seed of the config.

    Args:
      config: the run.
      corpus: what `corpus_of` returned for the config; None loads it. Of `Backcopies` every
        seed has its own chain.
      log: called with each row as it is made: {"variant", "seeds", "step", "tokens_per_second",
        "loss": [per seed], "grad_norm": [per seed]} after every call, both the means over its
        steps, and with "val_loss" and
        "measures" {name: [per seed]} besides at step 0, every `measure_every` steps and the last.
        A run that goes on logs the rows before its interruption again.
      keep: called with the parameters of each group of seeds at step 0, every
        `checkpoint_every` steps and the last, if that is not 0; it must copy what it keeps.
      states: where training states go, and what the run begins with; None for no states, and from
        scratch. An interrupted run ends with the bits of one that was not.

    Returns:
      A `Run`.

    Raises:
      InputError: corpus and config do not fit together, a fused kernel that is not here, or
        several processes of which one has another config or text.
      Diverged: a loss or a gradient was not finite; rows up to there have been logged.
      Preempted: it was asked to stop; its state is saved.
    """
    if corpus is None:
        corpus = corpus_of(config)
    if isinstance(corpus, str):
        raise InputError("corpus", repr(corpus), "what corpus_of returned; the name in the config")
    architecture = config.architecture(corpus.vocab)
    check_kernel(architecture)
    if hosts.is_distributed():
        hosts.agree(repr((config, fingerprint(config, corpus, config.seeds))))
    rows: list[Row] = []

    def record(row: Row) -> None:
        rows.append(row)
        if log:
            log(row)

    if states and states.asked_to_stop():
        raise Preempted(f"asked to stop before variant {config.variant}")
    programs = _programs(config, architecture, corpus)
    params, seconds = [], 0.0
    for first in range(0, len(config.seeds), config.seeds_at_once):
        group = config.seeds[first : first + config.seeds_at_once]
        trained, spent = _train_group(config, programs, corpus, group, record, keep, states)
        params.append(trained)
        seconds += spent
    join = np.concatenate if hosts.is_distributed() else jnp.concatenate
    stacked = jax.tree.map(lambda *x: join(x), *params)
    told = replace(config, corpus=corpus.name)
    return Run(told, architecture, stacked, corpus.tokenizer, rows, seconds)


def _train_group(
    config: TrainConfig,
    programs: _Programs,
    corpus: Source,
    seeds: tuple[int, ...],
    record: Log,
    keep: Keep | None,
    states: States | None,
) -> tuple[Params, float]:
    """The parameters of one group of seeds after the last step, and the seconds they took."""
    devices, measured_on = programs.devices, programs.held_out(seeds)
    clock, rows = time.perf_counter(), list[Row]()
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(states.of(config, corpus, seeds)) if states else None
        start = partial(_start, devices, seeds)
        begun = own.begin(programs.architecture, start) if own else StartingPoint(start())
        state = devices.placed(begun.state)
        begun = replace(begun, state=state)  # what was placed is not held beside it

        def logged(row: Row) -> None:
            rows.append(row)
            record(row)

        for row in begun.rows:
            logged(row)

        def wanted(step: int) -> bool:
            """Whether the state after a step is looked at before it is trained on."""
            due = any(_due(every, step, config) for every in _periods(config))
            return due or (own is not None and own.due(step))

        def reached(state: TrainState, row: Row) -> None:
            """Measure, log and keep what is due after a step."""
            step = row["step"]
            if _due(config.measure_every, step, config):
                found = programs.measure(devices.params(state), *measured_on)
                row |= jax.device_get(gather_to_hosts(found))
            logged(row)
            if _due(config.checkpoint_every, step, config):
                params = gather_to_hosts(devices.params(state), wanted=keep is not None)
                if keep:
                    keep(step, seeds, params)
            seconds = begun.seconds + time.perf_counter() - clock
            stop = own and own.save(step, partial(devices.whole, state), rows, seconds)
            if stop and step < config.steps:
                raise Preempted(f"asked to stop at step {step} of variant {config.variant}")

        if not rows:
            reached(state, {"variant": config.variant, "seeds": list(seeds), "step": 0})
        calls = _steps(config, corpus, seeds, devices, state, begun.step, wanted)
        for after, row, diverged in calls:
            if diverged or after is None:
                logged(row)
            else:
                state = after
                reached(state, row)
            if diverged:
                raise diverged
    spent = begun.seconds + time.perf_counter() - clock
    return gather_to_hosts(devices.params(state)), spent


def _start(devices: Devices, seeds: tuple[int, ...]) -> TrainState:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return devices.whole(devices.start(keys))


def _steps(
    config: TrainConfig,
    corpus: Source,
    seeds: tuple[int, ...],
    devices: Devices,
    state: TrainState,
    done: int,
    wanted: Callable[[int], bool],
) -> Iterator[tuple[TrainState | None, Row, Diverged | None]]:
    """The state after each call that follows `done` steps, and the row of its steps.

    A state that is not wanted is given to the next call before the row of its own is read, so that
    the device has work while rows are read and logged; it is gone then, and None in its place.
    """
    calls = [call for call in _calls(config) if call[0] >= done]
    stream = (devices.put(_batches(config, corpus, seeds, devices.rows, *call)) for call in calls)
    batches = next(stream, jnp.zeros(0))  # a finished run has no call left
    unread: list[tuple[int, StepRecord]] = []
    clock = time.perf_counter()

    def read() -> tuple[Row, Diverged | None]:
        nonlocal clock
        step, report = unread.pop()
        found = _row(config, seeds, step, report, lambda: time.perf_counter() - clock)
        clock = time.perf_counter()
        return found

    for step, count in calls:
        if not unread:
            clock = time.perf_counter()
        state, report = devices.steps(state, batches)
        batches = next(stream, batches)  # made while the device works
        if unread:
            yield None, *read()
        unread.append((step, report))
        if wanted(step + count):
            yield state, *read()


def _row(
    config: TrainConfig,
    seeds: tuple[int, ...],
    step: int,
    report: StepRecord,
    seconds: Callable[[], float],
) -> tuple[Row, Diverged | None]:
    """The row of a call's steps, read as soon as they are done, and what is wrong with them.

    Args:
      config, seeds: of the run.
      step: how many steps came before.
      report: [steps, seeds], of the call.
      seconds: that the call took, asked when it is done.
    """
    loss, grad_norm = np.asarray(report.loss), np.asarray(report.grad_norm)
    tokens = loss.size * config.batch_size * config.seq_len
    row = {
        "variant": config.variant,
        "seeds": list(seeds),
        "step": step + len(loss),
        "tokens_per_second": tokens / seconds(),
        "loss": loss.mean(axis=0),
        "grad_norm": grad_norm.mean(axis=0),
    }
    # A finite loss may have a gradient that is not: of the last step no other loss would tell.
    finite = np.isfinite(loss) & np.isfinite(grad_norm)
    if finite.all():
        return row, None
    at, which = (int(i[0]) for i in np.nonzero(~finite))
    found, what = float(loss[at, which]), "loss"
    if np.isfinite(found):
        found, what = float(grad_norm[at, which]), "gradient's norm"
    return row, Diverged(config.variant, step + at + 1, seeds[which], found, what)


def _periods(config: TrainConfig) -> list[int]:
    """After how many steps each a state is looked at."""
    return [every for every in (config.measure_every, config.checkpoint_every) if every]


def _due(every: int, step: int, config: TrainConfig) -> bool:
    """Whether what is done every so many steps and at the last is; 0: never."""
    return every > 0 and (step % every == 0 or step == config.steps)


def _calls(config: TrainConfig) -> Iterator[tuple[int, int]]:
    """The steps of the run as (first step, count), cut where a measurement or checkpoint is due."""
    step = 0
    while step < config.steps:
        due = min(period - step % period for period in _periods(config))
        count = min(config.steps_per_call, due, config.steps - step)
        yield step, count
        step += count


def _batches(
    config: TrainConfig,
    corpus: Source,
    seeds: tuple[int, ...],
    rows: np.ndarray | None,
    step: int,
    count: int,
) -> np.ndarray:
    """[count, seeds, rows, T+1]: batch n of seed s depends on (s, n) alone."""
    shape = (config.batch_size, config.seq_len)
    return np.array(
        [
            [corpus.batch("train", seed, step + n, *shape, rows) for seed in seeds]
            for n in range(count)
        ]
    )


def _programs(config: TrainConfig, architecture: ModelConfig, corpus: Source) -> _Programs:
    devices = make_devices(
        config.parallel,
        config.mesh_shape,
        architecture,
        make_optimizer(config.optimizer, config.steps, param_axes(architecture)),
        config.batch_size,
        config.accumulate,
        config.param_dtype,
        config.objective,
    )
    rows = rows_at_once(config, architecture, devices)
    validation = partial(held_out, config, corpus, rows)
    return _Programs(architecture, devices, validation, measuring(architecture, corpus, devices))
