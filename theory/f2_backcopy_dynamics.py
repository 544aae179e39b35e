"""F2. Bigram-Backcopy: the sink's logit grows like log(t)/2, its value contracts; trained heads.

Statement. Let the rest of the model already give a query token's next-token distribution pi, and
let a head add o to the logits log pi, with the gap Delta to BOS, the value beta of BOS, and the
mean obar of the other values:

    o = p beta + (1 - p) obar,   p = sigma(Delta),   L = E_pi[-log softmax(log pi + o)].

With r = softmax(log pi + o) - pi and S = diag(pi) - pi pi^T,

    (i)   dL/dDelta = p (1 - p) <r, beta - obar>,   dL/dbeta = p r;
    (ii)  |r - S o|_1 <= (max o - min o)^2 / (6 sqrt 3), with no smaller constant: to first order
          dbeta/dt = -p S (p beta + (1 - p) obar), so beta contracts to -((1 - p)/p) obar up to a
          constant, which tends to nothing;
    (iii) with beta = 0, Delta ~ log(2 E obar^T S obar t)/2 for every idle query token: all grow
          alike, and differ by constants.

In training on the task with Adam (full runs): attention of idle queries to BOS above 0.8 and a
value below 0.4 of the mean under softmax, no attention to BOS under ReLU weights. Two claims of the
source were not found at this size: residual peaks under Adam, and full sinks under SGD, whose
one-layer heads attend mostly to themselves (B5). README.md has the numbers.

Assumptions. Contexts that say nothing on the next token (the query is no trigger); Delta is a
parameter for each query token, beta one vector.

Proof. (i) Chain rule. (ii) Along t o, t in (0, 1), softmax has the second derivative pi_k (y_k -
Var), y_k = (o_k - mu)^2. Let max o - min o = 1, A the tokens with y_k > Var, P its probability. The
sum of |pi_k (y_k - Var)| is 2 P (1 - P) (E[y|A] - E[y|not A]). The second mean is at least c^2, the
first at most (1 - 2 mu') x + mu' (1 - mu'), with mu' = mu - min o, c and -x the distances of the
two sides' means to mu, P x = (1 - P) c. Over P, mu' and c this is largest at c = mu' = P, where it
is 2 P (1 - P) (1 - 2P) <= 1/(3 sqrt 3), as two tokens of probabilities P and 1 - P have it; the
integral of 1 - t is 1/2. The fixed point has S o = 0, whose kernel is the constants. (iii) L is o^T
S o/2 to second order, (1 - p) ~ exp(-Delta); then as in C2.

Source: Guo et al. 2024 (arXiv:2410.13835), section 4, in this package's form.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from sysout_jax.core.backcopy import TEXT_TOKENS, chain
from sysout_jax.core.primitives import softmax_weights
from theory import tiny
from theory.check import TOLERANCE, Part, Quantities, absolute, at_most, compare, statement
from theory.descent import descend
from theory.once import jit_once

SHAPES = (64, 5, 2)  # V
LR, STEPS, LOOKS = 4.0, 50_000, 100  # of the gap: as long as C2's
QUERIES, CONTEXTS, WRITTEN = 4, 8, 20.0  # the logit that a head writes for a token it attends to
SLOPE = 0.02  # as in C2
# Of gaps, whose correction is 3 exp(-Delta) (C2's next term) at gaps of 4 and more; and of their
# differences, in which most of it cancels.
OFF, APART = 0.06, 0.02
SMALL = 1e-4  # outputs at which the remainder is of second order to that accuracy
FIXED = 1e-6  # of the value: the descent ends where its gradient is 1e-16
TRAINED, SEEDS = 1000, 3
SINK, DRAINED = 0.2, 0.4


class Instance(NamedTuple):
    """A query token's next-token distribution, the gap, BOS's value and the mean of the others."""

    log_pi: Float[Array, "V"]
    gap: Float[Array, ""]
    beta: Float[Array, "V"]
    rest: Float[Array, "V"]


def draw(key: Array, vocab: int, scale: Array) -> Instance:
    """Distributions from nearly even to nearly certain; values of size up to 10."""
    keys = jax.random.split(key, 4)
    size = 10.0 ** jax.random.uniform(keys[0], (), jnp.float64, -3.0, 1.0)
    log_pi = jax.nn.log_softmax(
        jnp.log10(10.0 * scale) * jax.random.normal(keys[1], (vocab,), jnp.float64)
    )
    beta, rest = size * jax.random.normal(keys[2], (2, vocab), jnp.float64)
    return Instance(log_pi, 2.0 * jax.random.normal(keys[3], (), jnp.float64), beta, rest)


def added(case: Instance) -> Float[Array, "V"]:
    """o, by the softmax of core over two keys."""
    logits = jnp.stack([case.gap, jnp.zeros_like(case.gap)])[None, None]
    weights = softmax_weights(logits, jnp.ones((1, 2), bool))[0][0, 0]
    return weights @ jnp.stack([case.beta, case.rest])


def loss(case: Instance, log_next: Float[Array, "V"]) -> Float[Array, ""]:
    """The expected cross-entropy where the next token has the log-distribution `log_next`."""
    logits = case.log_pi + added(case)
    return jnp.exp(log_next) @ (jax.nn.logsumexp(logits) - logits)


def covariance(log_pi: Float[Array, "V"]) -> Float[Array, "V V"]:
    """S = diag(pi) - pi pi^T."""
    pi = jnp.exp(log_pi)
    return jnp.diag(pi) - jnp.outer(pi, pi)


def size(case: Instance) -> Array:
    """The unit of errors, since <r, beta - obar> can cancel."""
    return jnp.max(jnp.abs(jnp.stack([case.beta, case.rest])))


def predict(case: Instance) -> Quantities:
    """Both gradients in closed form, and the bound of the remainder."""
    p, rest = jax.nn.sigmoid(case.gap), jax.nn.sigmoid(-case.gap)
    o = p * case.beta + rest * case.rest
    r = jax.nn.softmax(case.log_pi + o) - jnp.exp(case.log_pi)
    return {
        "gap": p * rest * r @ (case.beta - case.rest) / size(case),
        "value": p * r,
        "remainder": jnp.square(jnp.max(o) - jnp.min(o)) / (6.0 * jnp.sqrt(3.0)),
    }


def two_sided(case: Instance) -> Instance:
    """Equality in (ii) to the accuracy SMALL: outputs of two sizes, the larger one, on the first
    token, with the probability (1 - 1/sqrt 3)/2."""
    first = jnp.arange(len(case.rest)) == 0
    share = (1.0 - jnp.sqrt(1.0 / 3.0)) / 2.0
    others = jax.nn.logsumexp(jnp.where(first, -jnp.inf, case.log_pi))
    log_pi = jnp.where(first, jnp.log(share), jnp.log1p(-share) + case.log_pi - others)
    o = SMALL * first.astype(case.rest.dtype)
    return case._replace(log_pi=log_pi, beta=o, rest=o)


def measure(case: Instance) -> Quantities:
    """Autodiff of the loss."""
    return _gradients(case, case.log_pi)


def control(case: Instance) -> Quantities:
    """A context that does say something: the next token is distributed as obar would have it."""
    return _gradients(case, jax.nn.log_softmax(case.log_pi + case.rest))


def _gradients(case: Instance, log_next: Array) -> Quantities:
    def of(gap: Array, beta: Array) -> Array:
        return loss(case._replace(gap=gap, beta=beta), log_next)

    gap, beta = jax.grad(of, argnums=(0, 1))(case.gap, case.beta)
    linear = covariance(case.log_pi) @ added(case)
    return {
        "gap": gap / size(case),
        "value": beta,
        "remainder": jnp.sum(jnp.abs(beta / jax.nn.sigmoid(case.gap) - linear)),
    }


# --------------------------------------------------------- growth and contraction, of the chain


def _contexts(key: Array) -> tuple[Float[Array, "Q V"], Float[Array, "C V"]]:
    """log pi of the most frequent idle tokens, and obar of contexts: what each token writes for
    itself, as copying heads do, by its share."""
    task = chain(0)
    idle = [t for t in np.argsort(-task.first).tolist() if not task.is_trigger[t]][:QUERIES]
    rows = task.rows(np.asarray(jax.random.uniform(key, (32, CONTEXTS))))[:, 1:]
    share = np.stack([np.bincount(row, minlength=TEXT_TOKENS) for row in rows]) / rows.shape[1]
    return jnp.log(jnp.asarray(task.transition[idle])), jnp.asarray(WRITTEN * share)


def predicted_gaps(log_pi: Array, rest: Array, time: float) -> Float[Array, "Q"]:
    """log(2 E obar^T S obar t)/2 for each query."""
    variance = jax.vmap(lambda x: jnp.mean(jnp.sum(rest @ covariance(x) * rest, axis=1)))(log_pi)
    return jnp.log(2.0 * variance * time) / 2.0


def grown_gaps(log_pi: Array, rest: Array, told: float) -> np.ndarray:
    """Gaps of all queries under gradient descent, [looks, Q]; `told` is how far the contexts
    inform on the next token."""

    def one(gap: Array, log_pi: Array, rest: Array) -> Array:
        case = Instance(log_pi, gap, jnp.zeros_like(rest), rest)
        return loss(case, jax.nn.log_softmax(log_pi + told * rest))

    over_contexts = jax.vmap(one, (None, None, 0))

    def total(gaps: Array, step: Array) -> Array:
        each = jax.vmap(over_contexts, (0, 0, None))(gaps, log_pi, rest)
        return jnp.sum(jnp.mean(each, axis=1))

    run = jax.jit(  # whose steps are many enough to be compiled well
        lambda gaps: descend(
            total, gaps, optax.sgd(LR), STEPS, watch=lambda x: x, every=STEPS // LOOKS
        )[1]
    )
    return np.asarray(run(jnp.zeros(len(log_pi))))


def _growth(key: Array) -> list[Part]:
    log_pi, rest = _contexts(key)
    time = LR * (STEPS // LOOKS) * np.arange(1.0, LOOKS + 1)
    gaps, told = (grown_gaps(log_pi, rest, each) for each in (0.0, 0.1))
    predicted = np.asarray(predicted_gaps(log_pi, rest, float(time[-1])))
    later = time > time[-1] / 10.0
    slopes = [np.polyfit(np.log(time[later]), x[later], 1)[0] for x in (gaps, told)]
    off = [float(np.max(np.abs(x / 0.5 - 1.0))) for x in slopes]
    away = [x[-1] - predicted for x in (gaps, told)]
    off_gaps = [float(np.max(np.abs(x))) for x in away]
    apart = [float(np.max(np.abs(x - x[0]))) for x in away]
    data = {"time": time.tolist(), "gaps": gaps.T.tolist(), "slopes": slopes[0].tolist()}
    return [
        Part("slopes", QUERIES, off[0], SLOPE, off[1], data),
        Part("gaps", QUERIES, off_gaps[0], OFF, off_gaps[1]),
        Part("differences of gaps", QUERIES, apart[0], APART, apart[1]),
    ]


def _contraction(key: Array) -> Part:
    """Where beta ends, against -((1 - p)/p) obar; with a context that informs as the control."""
    of_pi, of_beta, of_rest = jax.random.split(key, 3)
    log_pi = jax.nn.log_softmax(jax.random.normal(of_pi, (5,), jnp.float64))
    beta, rest = (jax.random.normal(k, (5,), jnp.float64) for k in (of_beta, of_rest))
    case = Instance(log_pi, jnp.asarray(1.0), beta, rest)

    def final(log_next: Array) -> Array:
        def of(beta: Array, step: Array) -> Array:
            return loss(case._replace(beta=beta), log_next)

        return jit_once(lambda b: descend(of, b, optax.sgd(5.0), 5000)[0])(beta)

    predicted = -jnp.exp(-case.gap) * rest  # (1 - p)/p = exp(-Delta)

    def off(found: Array) -> float:
        away = found - predicted
        return float(jnp.max(jnp.abs(away - jnp.mean(away))))

    found, told = final(log_pi), final(jax.nn.log_softmax(log_pi + rest))
    return Part("value of BOS", 1, off(found), FIXED, off(told))


# ----------------------------------------------------------------------- trained heads


def _trained_parts(key: Array) -> list[Part]:
    seeds = tiny.draw_seeds(key, SEEDS)
    runs = {
        "adam": (tiny.Setting(), tiny.adam(TRAINED)),
        "sgd": (tiny.Setting(), tiny.sgd(TRAINED)),
        "adam, ReLU": (tiny.Setting(variant="relu"), tiny.adam(TRAINED)),
    }
    found = {
        name: tiny.habits(setting, tiny.train(setting, optimizer, TRAINED, seeds))[0]
        for name, (setting, optimizer) in runs.items()
    }
    data = {
        name: {field: x.ravel().tolist() for field, x in habit._asdict().items()}
        for name, habit in found.items()
    }
    adam, relu = found["adam"], found["adam, ReLU"]
    return [
        Part(
            "trained: sink",
            SEEDS,
            float(1 - adam.first.min()),
            SINK,
            float(1 - relu.first.max()),
            data,
        ),
        Part("trained: value", SEEDS, float(adam.drain.max()), DRAINED, float(relu.drain.min())),
    ]


@statement("F2", "Bigram-Backcopy: sink logits grow like log(t)/2 and the sink's value contracts")
def verify(key: Array, quick: bool) -> list[Part]:
    of_gradients, of_growth, of_value, of_training = jax.random.split(key, 4)
    parts = compare(
        draw, predict, measure, control, of_gradients, shapes=SHAPES,
        error={"gap": absolute, "value": absolute, "remainder": at_most},
        tolerance=dict.fromkeys(("gap", "value", "remainder"), TOLERANCE)
        | {"remainder: tight": 10.0 * SMALL},
        tight={"remainder": two_sided}, quick=quick,
    )  # fmt: skip
    parts += [*_growth(of_growth), _contraction(of_value)]
    return parts if quick else parts + _trained_parts(of_training)
