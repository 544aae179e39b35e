"""What a training step costs: time measured side by side, and floating-point operations."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_axes
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import make_optimizer
from sysout_jax.training.step import Step, StepRecord, TrainState, make_step, make_steps, start

STEPS = 5  # optimiser steps in each timed call


def alternated(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds that each call takes, all of them in each round.

    One after the other, a slow minute of the machine would count against one of them alone. So
    each is called once to compile and then in turn, every second round in the opposite order,
    which takes out a steady drift as well. Compare ratios within rounds.

    Args:
      calls: name -> a function that returns when its work is done.
      rounds: how often each is called after that first time.

    Returns:
      name -> [rounds].
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            begun = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - begun)
    return {name: np.array(values) for name, values in seconds.items()}


@dataclass
class Stepping:
    """Some steps in one call, the same batches each time, on from where the last call ended."""

    steps: Step
    state: TrainState
    batches: Array

    def __call__(self) -> StepRecord:
        self.state, report = self.steps(self.state, self.batches)
        jax.block_until_ready((self.state, report))
        return report


def step_seconds(
    configs: Mapping[str, TrainConfig], vocab: int, rounds: int, steps: int = STEPS
) -> dict[str, np.ndarray]:
    """Seconds per optimiser step of one seed, `alternated` over configs.

    Args:
      configs: name -> run; only its first seed is timed, on random tokens.
      vocab: of the corpus.
      rounds: how often each is called.
      steps: in each call.

    Returns:
      name -> [rounds].
    """
    calls = {}
    for name, config in configs.items():
        architecture = config.architecture(vocab)
        optimizer = make_optimizer(config.optimizer, config.steps, param_axes(architecture))
        key = jax.random.key(config.seeds[0])
        shape = (steps, 1, config.batch_size, config.seq_len + 1)
        batches = jax.random.randint(key, shape, 0, vocab)
        begin = partial(start, architecture, optimizer, dtype=config.param_dtype)
        step = make_steps(
            make_step(architecture, optimizer, config.accumulate, objective=config.objective)
        )
        state = jax.vmap(begin)(key[None])
        calls[name] = Stepping(step, state, batches)
    seconds = alternated(calls, rounds)
    return {name: values / steps for name, values in seconds.items()}


def laid_out(model: ModelConfig, **execution: Any) -> ModelConfig:
    """A model whose operations XLA can count: without loops over layers and fused kernels.

    Of a mixture it has one expert as wide as those of a token: on a CPU, where operations are
    counted, each expert would see every token.
    """
    if model.experts:
        width = model.experts_per_token * model.sizes["F"]
        model = replace(model, experts=1, experts_per_token=1, mlp_width=width)
    return model.with_execution(scan_layers=False, flash=False, **execution)


def step_flops(config: TrainConfig, vocab: int) -> float:
    """Floating-point operations of one optimiser step, as XLA counts them before it optimises.

    Loops are counted once whatever their length, so layers, queries, the loss and the parts of a
    batch are laid out without any; what a fused kernel does is not counted, so there is none.
    """
    model = config.architecture(vocab)
    architecture = laid_out(model, query_block=None, loss_block=config.seq_len)
    optimizer = make_optimizer(config.optimizer, config.steps, param_axes(architecture))
    state = jax.eval_shape(partial(start, architecture, optimizer), jax.random.key(0))
    batch = jax.ShapeDtypeStruct((config.batch_size, config.seq_len + 1), np.int32)
    step = make_step(architecture, optimizer, accumulate=1, objective=config.objective)
    lowered = jax.jit(step).lower(state, batch)
    counted: Any = lowered.cost_analysis()
    return float(counted["flops"])
