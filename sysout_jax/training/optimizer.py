"""Optimisers and schedules, from a config and the axes of the parameters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import jax
import optax
from optax import contrib

from sysout_jax.errors import InputError, at_least, finite, of_kinds, one_of
from sysout_jax.model.execution import DTYPES

OPTIMIZERS = ("adamw", "sgd", "lion", "muon")
SCHEDULES = ("constant", "cosine", "wsd")
# Optimiser or schedule -> the fields of the config that it has and some other has not.
USES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "adamw": ("beta1", "beta2", "eps"),
        "sgd": ("momentum",),
        "lion": ("beta1", "beta2"),
        "muon": ("beta1", "beta2", "momentum", "eps"),
        "constant": (),
        "cosine": ("lr_floor",),
        "wsd": ("lr_floor", "cooldown"),
    }
)
MUON_RMS = 0.2  # Liu et al. 2025 (arXiv:2502.16982): updates matched to AdamW's RMS


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser of a run.

    Raises:
      InputError: a value is out of range.
    """

    optimizer: str = "adamw"  # adamw, sgd, lion, muon
    lr: float = 1e-3  # peak learning rate
    schedule: str = "cosine"  # after warm-up: constant, cosine, or wsd (constant, then linear)
    warmup: int = 20  # steps of linear increase, from lr/warmup to lr
    lr_floor: float = 0.1  # share of the peak, which cosine and wsd reach one step after the last
    cooldown: float = 0.2  # share of steps at the end over which wsd falls
    beta1: float = 0.9  # of AdamW, Lion, and Muon's Adam part
    beta2: float = 0.95  # of the same
    momentum: float = 0.95  # of SGD and Muon
    eps: float = 1e-8  # under Adam's quotient
    decay: float = 0.1  # decoupled weight decay, on matrices and embeddings only
    clip: float = 1.0  # largest global gradient norm; 0: any
    moment_dtype: str = "float32"  # of the first moment: float32, bfloat16

    def __post_init__(self) -> None:
        of_kinds(self)
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("moment_dtype", self.moment_dtype, DTYPES)
        at_least(0, "warmup", self.warmup)
        for name in ("lr", "eps"):
            finite(name, getattr(self, name))
        for name in ("decay", "clip"):
            finite(name, getattr(self, name), or_zero=True)
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "a number from 0 to below 1")
        for name in ("lr_floor", "cooldown"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(name, getattr(self, name), "a number from 0 to 1")


def unused(optimizers: Iterable[str], schedules: Iterable[str]) -> dict[str, list[str]]:
    """The fields without effect on any of these, and for each field those on which it has one."""
    chosen = {*optimizers, *schedules}
    fields = dict.fromkeys(field for of in USES.values() for field in of)
    using = {field: [name for name, of in USES.items() if field in of] for field in fields}
    return {field: names for field, names in using.items() if chosen.isdisjoint(names)}


def effective(config: OptimizerConfig) -> OptimizerConfig:
    """The config with each field that has no effect at its default."""
    without = unused([config.optimizer], [config.schedule])
    return replace(config, **{field: getattr(OptimizerConfig, field) for field in without})


def cooldown_steps(config: OptimizerConfig, steps: int) -> int:
    """The steps at the end over which wsd falls: from the peak, which the first of them still has,
    to what would be the floor one step after the last."""
    return min(max(round(config.cooldown * steps), 1), max(steps - config.warmup, 1))


def check_cooldown(config: OptimizerConfig, steps: int) -> None:
    """Whether wsd is another schedule than constant.

    Raises:
      InputError: no step of the run is below the peak.
    """
    if config.schedule == "wsd" and cooldown_steps(config, steps) < 2:
        raise InputError(
            "schedule",
            "wsd",
            ("a cooldown of at least 2 steps after the warm-up, or --schedule=constant"),
            (
                f"with --cooldown={config.cooldown}, --warmup={config.warmup} and "
                f"--steps={steps} no step is below the peak"
            ),
        )


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of each optimiser step: linear warm-up, then the chosen schedule.

    With lr the peak, w steps of warm-up, n steps in all, f the floor's share and c the
    `cooldown_steps`, step t = 0, 1, .. n - 1 has lr (t + 1)/w for t < w, and then, with
    s = t - w and m = n - w, lr (constant), lr (f + (1 - f)(1 + cos(pi s/m))/2) (cosine), or
    lr (1 - (1 - f) max(s - m + c, 0)/c) (wsd): of the last two t = n would have the floor f lr.
    """
    after = max(steps - config.warmup, 1)
    if config.schedule == "constant":
        rest = optax.constant_schedule(config.lr)
    elif config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(config.lr, after, alpha=config.lr_floor)
    else:
        falling = cooldown_steps(config, steps)
        rest = optax.join_schedules(
            [
                optax.constant_schedule(config.lr),
                optax.linear_schedule(config.lr, config.lr_floor * config.lr, falling),
            ],
            [after - falling],
        )
    if not config.warmup:
        return rest
    rise = optax.linear_schedule(config.lr / config.warmup, config.lr, max(config.warmup - 1, 1))
    return optax.join_schedules([rise, rest], [config.warmup])


def make_optimizer(config: OptimizerConfig, steps: int, axes: Any) -> optax.GradientTransformation:
    """The gradient transformation of a run.

    Args:
      config: which optimiser.
      steps: the length of the run, for the schedule.
      axes: the tree of axis letters that `param_axes` returns; matrices ("->") are decayed, and
        those that are not embeddings or the head are orthogonalised by Muon.
    """
    lr = learning_rate(config, steps)
    decayed = jax.tree.map(is_matrix, axes)
    moment = None if config.moment_dtype == "float32" else config.moment_dtype
    adam: dict[str, Any] = {
        "b1": config.beta1, "b2": config.beta2, "mu_dtype": moment,
        "weight_decay": config.decay, "mask": decayed,
    }  # fmt: skip
    if config.optimizer == "adamw":
        update = optax.adamw(lr, eps=config.eps, **adam)
    elif config.optimizer == "lion":
        update = optax.lion(lr, **adam)
    elif config.optimizer == "sgd":
        update = optax.chain(
            optax.trace(decay=config.momentum, accumulator_dtype=moment),
            optax.add_decayed_weights(config.decay, mask=decayed),
            optax.scale_by_learning_rate(lr),
        )
    else:
        # Decay is applied outside: contrib.muon would decay every parameter of its Adam part,
        # norms and biases too.
        muon = contrib.muon(
            1.0,
            beta=config.momentum,
            eps=config.eps,
            mu_dtype=moment,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            consistent_rms=MUON_RMS,
            muon_weight_dimension_numbers=jax.tree.map(muon_dimensions, axes),
        )
        update = optax.chain(
            muon,
            optax.add_decayed_weights(-config.decay, mask=decayed),
            optax.scale_by_schedule(lr),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), update) if config.clip else update


def is_matrix(axes: str) -> bool:
    """Whether a parameter maps one space to another, so that weight decay applies."""
    return "->" in axes


def muon_dimensions(axes: str) -> contrib.MuonDimensionNumbers | None:
    """Muon's reading of a parameter, or None to leave it to Adam.

    Muon is for hidden matrices: vectors, embeddings, positions and the head go to Adam (Jordan et
    al. 2024), here with Nesterov's momentum, as optax.contrib.muon has it. The letters before the
    arrow are contracted; leading "L" and "E" stack layers and experts.
    """
    inputs, _, outputs = (side.split() for side in axes.partition("->"))
    if not outputs or {"V", "T"} & {*inputs, *outputs}:
        return None
    stacked = len(list(takewhile({"L", "E"}.__contains__, inputs)))
    n_in, total = len(inputs), len(inputs) + len(outputs)
    return contrib.MuonDimensionNumbers(
        reduction_axis=tuple(range(stacked, n_in)), output_axis=tuple(range(n_in, total))
    )
