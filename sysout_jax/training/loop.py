"""The training loop: seeds in groups, steps in calls, measurements in between."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sysout_jax.analysis.outliers import outlier_summary
from sysout_jax.data import Backcopy, TextCorpus, load_corpus
from sysout_jax.errors import Diverged, InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, param_axes
from sysout_jax.model.model import Model
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.hosts import gathered
from sysout_jax.training.optimizer import make_optimizer
from sysout_jax.training.parallel import Devices, make_devices
from sysout_jax.training.step import token_loss

Corpus = Backcopy | TextCorpus
Log = Callable[[dict[str, Any]], None]
Keep = Callable[[int, tuple[int, ...], Params], None]  # step, seeds, their parameters stacked


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    config: TrainConfig
    architecture: ModelConfig
    params: Params  # a leading axis over config.seeds on every leaf
    tokenizer: Any
    rows: list[dict[str, Any]] = field(repr=False)  # what was logged, in order

    def model(self, seed: int | None = None) -> Model:
        """The model of one seed; the first if None.

        Raises:
          InputError: the run has no such seed.
        """
        if seed is not None and seed not in self.config.seeds:
            accepted = ", ".join(map(str, self.config.seeds))
            raise InputError(f"seed {seed}: not in this run; accepted: {accepted}")
        at = 0 if seed is None else self.config.seeds.index(seed)
        return Model(self.architecture, jax.tree.map(lambda x: x[at], self.params), self.tokenizer)


def train(
    config: TrainConfig,
    corpus: Corpus | None = None,
    log: Log | None = None,
    keep: Keep | None = None,
) -> Run:
    """Train one variant with every seed of the config.

    Args:
      config: the run.
      corpus: what `load_corpus` returned for `config.corpus`; None loads it.
      log: called with each row as it is made: {"variant", "seeds", "step", "tokens_per_second",
        "loss": [per seed], "grad_norm": [per seed]} after every call, and with "val_loss" and
        "measures" {name: [per seed]} besides at step 0, every `measure_every` steps and the last.

      keep: called with the parameters of each group of seeds at step 0, every
        `checkpoint_every` steps and the last, if that is not 0; it must copy what it keeps.

    Returns:
      A `Run`.

    Raises:
      InputError: corpus and config do not fit together.
      Diverged: a loss was not finite; rows up to there have been logged.
    """
    if corpus is None:
        corpus = load_corpus(config.corpus, config.tokenizer, config.bos)
    architecture = config.architecture(corpus.vocab)
    rows: list[dict[str, Any]] = []

    def record(row: dict[str, Any]) -> None:
        rows.append(row)
        if log:
            log(row)

    params = []
    for first in range(0, len(config.seeds), config.seeds_at_once):
        group = config.seeds[first : first + config.seeds_at_once]
        params.append(_train_group(config, architecture, corpus, group, record, keep))
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x), *params)
    return Run(config, architecture, stacked, corpus.tokenizer, rows)


def _train_group(
    config: TrainConfig,
    architecture: ModelConfig,
    corpus: Corpus,
    seeds: tuple[int, ...],
    record: Log,
    keep: Keep | None,
) -> Params:
    optimizer = make_optimizer(config.optimizer, config.steps, param_axes(architecture))
    devices = make_devices(
        config.parallel,
        config.mesh_shape,
        architecture,
        optimizer,
        config.batch_size,
        config.accumulate,
        config.param_dtype,
    )
    state = devices.start(jnp.stack([jax.random.key(seed) for seed in seeds]))
    measure = _make_measure(config, architecture, corpus, devices)
    common = {"variant": config.variant, "seeds": list(seeds)}

    def checkpoint(step: int) -> None:
        due = config.checkpoint_every and step % config.checkpoint_every == 0
        if due or (config.checkpoint_every and step == config.steps):
            params = gathered(devices.params(state))
            if keep:
                keep(step, seeds, params)

    record(common | {"step": 0} | measure(devices.params(state)))
    checkpoint(0)
    calls = list(_calls(config))
    stream = (devices.put(_batches(config, corpus, seeds, devices.rows, *call)) for call in calls)
    batches = next(stream)
    for step, count in calls:
        begun = time.perf_counter()
        state, report = devices.steps(state, batches)
        batches = next(stream, batches)  # made while the device works
        loss, grad_norm = np.asarray(report.loss), np.asarray(report.grad_norm)
        seconds = time.perf_counter() - begun
        row = common | {
            "step": step + count,
            "tokens_per_second": count * len(seeds) * config.batch_size * config.seq_len / seconds,
            "loss": loss.mean(axis=0),
            "grad_norm": grad_norm.mean(axis=0),
        }
        if not np.isfinite(loss).all():
            record(row)
            at, which = (int(i[0]) for i in np.nonzero(~np.isfinite(loss)))
            raise Diverged(config.variant, step + at + 1, seeds[which], float(loss[at, which]))
        if (step + count) % config.measure_every == 0 or step + count == config.steps:
            row |= measure(devices.params(state))
        record(row)
        checkpoint(step + count)
    return gathered(devices.params(state))


def _calls(config: TrainConfig) -> Iterator[tuple[int, int]]:
    """The steps of the run as (first step, count), cut where a measurement or checkpoint is due."""
    periods = [period for period in (config.measure_every, config.checkpoint_every) if period]
    step = 0
    while step < config.steps:
        due = min(period - step % period for period in periods)
        count = min(config.steps_per_call, due, config.steps - step)
        yield step, count
        step += count


def _batches(
    config: TrainConfig,
    corpus: Corpus,
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


def _make_measure(
    config: TrainConfig, architecture: ModelConfig, corpus: Corpus, devices: Devices
) -> Callable[[Params], dict[str, Any]]:
    """A function from stacked parameters to validation loss and outlier measures, per seed.

    Every seed is measured on the same validation batches, and the measures of batches averaged.
    """
    shape = (config.batch_size, config.seq_len)
    batches = np.stack([corpus.batch("val", 0, n, *shape) for n in range(config.val_batches)])
    task = corpus if isinstance(corpus, Backcopy) else None
    noop = None if task is None else ~task.trigger_queries(batches[..., :-1])

    def of_batch(params: Params, batch: Array, noop: Array | None) -> dict[str, Any]:
        batch = devices.spread(batch)
        loss = jnp.mean(token_loss(architecture, params, batch))
        measures = outlier_summary(architecture, params, batch[:, :-1], noop)
        return {"val_loss": loss, "measures": measures}

    @jax.jit
    def measure(params: Params) -> dict[str, Any]:
        def of_seed(params: Params) -> dict[str, Any]:
            found = jax.lax.map(lambda b: of_batch(params, *b), (batches, noop))
            return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)

        return jax.vmap(of_seed)(params)

    return lambda params: jax.device_get(gathered(measure(params)))
