"""From the implicit factor to an explicit one: a softmax model that no longer has its sink.

A first token that sees only itself has the same key and value in every text, layer by layer. What
it does to the others can therefore be put into parameters, and the token left out of the text:

    o_i = S_i o^R_i + (1 - S_i) v_0,    S_i = sigma(LSE_R(s_i) - q_i.k_0/sqrt(H))

(theory A1, A2). As an extra key and value that are parameters this is exact; as a gate
sigma(w.x_i + b) fitted to S_i it is the explicit factor of An et al. 2025, and loses what S_i does
not owe linearly to x_i, and (1 - S_i) v_0. Axes: L layers, B sequences, T positions, D width, N
heads, K KV heads, H head dim, M queries of all sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import linalg, optimize, special

from sysout_jax.analysis.compress.compressed import Compressed, losses
from sysout_jax.analysis.intervene.conversion import with_own, with_prefix
from sysout_jax.analysis.locate.scan import over_batches, whole_maps
from sysout_jax.errors import InputError
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward
from sysout_jax.model.taps import Edit

FORMS: Mapping[str, str] = {
    "trained": "as trained",
    "factor": "S itself, the sink's value dropped",
    "extra_key": "key and value as parameters",
    "dropped": "no sink, no factor",
    "constant": "factor per head: mean of S",
    "gate": "factor per head and token: gate fitted to S",
    "bias": "constant bias per head, E[1-S] v_0",
    "constant_bias": "mean of S, and constant bias",
    "factor_bias": "S itself, and constant bias",
    "gate_bias": "gate fitted to S, and constant bias",
    "logit": "one constant logit per head, and value",
}
RIDGE = 1e-4  # of the gates' kernels, beside a mean over queries: keeps separable data finite
CLIP = 1e-6  # S is kept this far from 0 and 1 where its logit is taken


@dataclass(frozen=True)
class Form:
    """A model that plays the part of the trained one, and how it reads a row of text."""

    config: ModelConfig
    params: Params
    reads_first: bool = False
    edits: Mapping[str, Edit] = field(default_factory=dict)

    def rows(self, rows: Int[np.ndarray, "B S"]) -> Int[np.ndarray, "B s"]:
        """The rows as this model reads them."""
        return rows if self.reads_first else rows[:, 1:]

    def losses(self, rows: Int[np.ndarray, "B S"], batch: int = 8) -> Float[np.ndarray, "B"]:
        """The mean loss of each row's tokens from the third on, in nats: all that a model without
        the first token predicts."""
        model = Compressed(self.params, self.edits)
        return losses(self.config, model, self.rows(rows), batch, int(self.reads_first))


@dataclass(frozen=True)
class Factors:
    """The implicit factor of every query but the first, and what a gate would see.

    S is the share of attention that does not go to the first token.
    """

    x: Float[np.ndarray, "L B T D"]  # attention inputs after their norm
    s: Float[np.ndarray, "L B N T"]

    @property
    def flat(self) -> tuple[Float[np.ndarray, "L M D"], Float[np.ndarray, "L M N"]]:
        """Both with all queries in one axis."""
        layers, _, heads, _ = self.s.shape
        s = np.moveaxis(self.s, 2, 3).reshape(layers, -1, heads)
        return self.x.reshape(layers, -1, self.x.shape[-1]), s


@dataclass(frozen=True)
class Gates:
    """One gate per layer and head: sigma(x.kernel + bias)."""

    kernel: Float[np.ndarray, "L D N"]
    bias: Float[np.ndarray, "L N"]

    def __call__(self, x: Float[np.ndarray, "L M D"]) -> Float[np.ndarray, "L M N"]:
        """The values of the gates."""
        logits = np.einsum("LMD,LDN->LMN", x, self.kernel) + self.bias[:, None]
        opened: np.ndarray = special.expit(logits)
        return opened


def check(config: ModelConfig) -> None:
    """Refuse a model whose attention has another form already.

    Raises:
      InputError: another variant than softmax.
    """
    if config.variant != "softmax":
        raise InputError("variant", config.variant, "a model of variant softmax")


def factors(
    config: ModelConfig, params: Params, tokens: Int[np.ndarray, "B T"], batch: int = 8
) -> Factors:
    """Measure S_i = 1 - p_i0 of every query i >= 1, head and layer.

    Args:
      config: the architecture, of variant softmax.
      params: its parameters.
      tokens: [B, T], the first of each row the one to be left out.
      batch: sequences that are run together.

    Raises:
      InputError: sequences that are too long.
    """
    whole_maps(tokens.shape[1])
    run = partial(_factors, config)
    x, s = over_batches(run, params, tokens, batch)
    return Factors(x, s)


@jit_quickly(0)
def _factors(config: ModelConfig, params: Params, tokens: Array) -> tuple[Array, Array]:
    taps: Any = {
        "attn_norm": lambda x: x[1:].astype(jnp.float32),
        "attn_weights": lambda p: 1.0 - p[:, 1:, 0],
    }
    _, found = forward(config, params, tokens, taps)
    return found["attn_norm"], found["attn_weights"]


def fit_gates(found: Factors, ridge: float = RIDGE) -> Gates:
    """The gates that predict S from the attention input, by logistic regression on shares.

    min over w, b of the mean over queries of -S log g - (1 - S) log(1 - g) + ridge |w|^2 / 2,
    g = sigma(w.x + b): convex, and calibrated (mean g = mean S).

    Args:
      found: of calibration text.
      ridge: the penalty's weight.
    """
    x, s = found.flat
    layers, _, width = x.shape
    heads = s.shape[-1]
    kernels, biases = np.zeros((layers, width, heads)), np.zeros((layers, heads))
    penalty = np.append(np.full(width, ridge), 0.0)[:, None]  # the bias is free
    for layer in range(layers):
        inputs, shares = np.insert(np.float64(x[layer]), width, 1.0, axis=1), np.float64(s[layer])
        # In coordinates in which the cost is about equally curved in all directions a few steps
        # are enough: a sink's inputs have channels a hundred times larger than others.
        curved = inputs.T @ inputs / (4 * len(inputs)) + np.diag(penalty[:, 0] + 1e-12)
        turned = linalg.solve_triangular(linalg.cholesky(curved), np.eye(width + 1))
        seen = inputs @ turned

        def cost(
            flat: np.ndarray, seen: Any = seen, shares: Any = shares, turned: Any = turned
        ) -> Any:
            steps = flat.reshape(-1, heads)
            logits, kernel = seen @ steps, turned @ steps
            loss = np.mean(np.logaddexp(0.0, logits) - shares * logits, axis=0).sum()
            slope = (special.expit(logits) - shares) / len(seen)
            grad = seen.T @ slope + turned.T @ (penalty * kernel)
            return loss + 0.5 * np.sum(penalty * kernel**2), grad.ravel()

        constant = np.zeros((width + 1, heads))
        constant[-1] = special.logit(inside(shares.mean(axis=0)))
        begin = np.linalg.solve(turned, constant).ravel()
        best = optimize.minimize(cost, begin, jac=True, method="L-BFGS-B", options={"maxiter": 500})
        found_at = turned @ best.x.reshape(-1, heads)
        kernels[layer], biases[layer] = found_at[:-1], found_at[-1]
    return Gates(kernels, biases)


def constant_gates(found: Factors) -> Gates:
    """The gates that are the mean of S over queries, whatever the token."""
    x, s = found.flat
    kernel = np.zeros((len(x), x.shape[-1], s.shape[-1]))
    return Gates(kernel, special.logit(inside(s.mean(axis=1))))


def explained(gates: Gates, found: Factors) -> Float[np.ndarray, "L N"]:
    """R^2 = 1 - mean (S - g)^2 / var S of each gate; NaN where S does not vary."""
    x, s = found.flat
    error, spread = np.mean((s - gates(x)) ** 2, axis=1), np.var(s, axis=1)
    return 1.0 - error / np.where(spread > 0.0, spread, np.nan)


def inside(share: np.ndarray) -> np.ndarray:
    """Shares whose logits are finite."""
    return np.clip(share, CLIP, 1.0 - CLIP)


def without_first(config: ModelConfig, variant: str) -> ModelConfig:
    """The config of the model that reads the same text without its first token."""
    learned = config.position == "learned"
    offset = config.position_offset + 1 if learned else config.position_offset
    return replace(config, variant=variant, position_offset=offset)


def forms(
    config: ModelConfig, params: Params, first: int, found: Factors
) -> tuple[dict[str, Form], Gates]:
    """Every form of a model, named as in `FORMS`, and the gates that were fitted.

    Args:
      config: the architecture, of variant softmax.
      params: its parameters.
      first: the token id that every text begins with.
      found: the factors on calibration text.
    """
    gates, constant = fit_gates(found), constant_gates(found)
    made = {
        "trained": Form(config, params, reads_first=True),
        "factor": Form(config, params, True, {"attn_weights": Edit(_without_first_key)}),
        "dropped": Form(without_first(config, "softmax"), params),
        "constant": Form(*with_gates(config, params, constant)),
        "gate": Form(*with_gates(config, params, gates)),
        "extra_key": Form(*with_prefix(config, params, [first])),
    }
    return {name: made[name] for name in FORMS if name in made}, gates


def _without_first_key(weights: Float[Array, "N T S"], layer: Array) -> Array:
    """What softmax gives the other keys: o becomes S o^R (theory A1)."""
    del layer
    return weights.at[..., 0].set(0.0)


def with_gates(config: ModelConfig, params: Params, gates: Gates) -> tuple[ModelConfig, Params]:
    """The softmax model whose sink's part is played by gates: of variant head_gate.

    It reads text without the first token.
    """
    own = {"variant_gate_kernel": gates.kernel, "variant_gate_bias": gates.bias}
    return without_first(config, "head_gate"), with_own(params, "attn", own)
