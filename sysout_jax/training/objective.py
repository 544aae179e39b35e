"""What a step lowers: the loss of next tokens, and penalties on activations.

To add a penalty, write its function of one sequence's tap and its row of `PENALTIES`.
Axes: B sequences, S = T + 1 tokens of each, T positions, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sysout_jax.core.layers import widened
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, final_states
from sysout_jax.model.loss import mean_loss
from sysout_jax.model.taps import Edits

TAU, POWER = 3.0, 4  # of TWEO, its authors' choice


@dataclass(frozen=True)
class Penalty:
    """A row of the table: a function of what a tap sees, averaged over layers and sequences."""

    tap: str
    fn: Callable[[Array], Array]
    formula: str
    cite: str


def extreme(h: Float[Array, "T D"]) -> Float[Array, ""]:
    """mean over tokens and channels of (|h| / 3)^4 (Liang et al. 2025, arXiv:2511.23225, TWEO)."""
    return jnp.mean((widened(h) / TAU) ** POWER)


PENALTIES: Mapping[str, Penalty] = MappingProxyType(
    {
        "tweo": Penalty(
            "block_out", extreme, "mean (|h|/3)^4 of every block's output",
            "Liang et al. 2025 (arXiv:2511.23225)",
        ),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """What a step lowers.

    Raises:
      InputError: a penalty that there is not, one twice, or a weight that is no number above 0.
    """

    loss_from: int = 0  # the first position whose prediction counts
    penalties: tuple[str, ...] = ()  # NAME=WEIGHT of each

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weights]
        if len(set(names)) < len(names):
            raise InputError("penalties", ",".join(self.penalties), "each of them once")

    @property
    def weights(self) -> tuple[tuple[str, float], ...]:
        """(name, weight) of each penalty."""
        found = []
        for each in self.penalties:
            name, _, weight = each.partition("=")
            try:
                number = float(weight)
            except ValueError:
                number = float("nan")
            if name not in PENALTIES or not 0.0 < number < float("inf"):
                accepted = f"NAME=WEIGHT with a weight above 0, of {', '.join(PENALTIES)}"
                raise InputError("penalties", each, accepted)
            found.append((name, number))
        return tuple(found)


NEXT_TOKENS = Objective()  # their loss alone, from the first position on


def batch_loss(
    config: ModelConfig,
    params: Params,
    batch: Int[Array, "B S"],
    edits: Edits | None = None,
    objective: Objective = NEXT_TOKENS,
    devices: int = 1,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """loss + sum_k weight_k penalty_k, and the loss alone: nats per token.

    Args:
      config, params: of the model.
      batch: token ids, inputs batch[:, :-1] and targets batch[:, 1:].
      edits: of the decoder.
      objective: what is added, and from where on predictions count.
      devices: that divide the sequences among them.
    """
    chosen = [(PENALTIES[name], weight) for name, weight in objective.weights]
    taps = {penalty.tap: _all(penalty.tap, chosen) for penalty, _ in chosen}
    states, seen = final_states(config, params, batch[:, :-1], taps, edits=edits)
    start = objective.loss_from
    loss = mean_loss(config, params, states[:, start:], batch[:, 1 + start :], devices)
    added = (weight * jnp.mean(seen[penalty.tap][penalty.formula]) for penalty, weight in chosen)
    return sum(added, loss), loss


def _all(tap: str, chosen: list[tuple[Penalty, float]]) -> Callable[[Array], dict[str, Array]]:
    """Every penalty of a tap, by its formula."""
    mine = [penalty for penalty, _ in chosen if penalty.tap == tap]
    return lambda x: {penalty.formula: penalty.fn(x) for penalty in mine}
