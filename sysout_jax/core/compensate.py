"""Post-training methods that change weights before or while they are rounded or pruned.

Axes: I inputs, O outputs, T calibration tokens. Weights are [I, O]; what is known of the inputs is
their Gram matrix X^T X, [I, I], or the magnitude of each channel.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

BLOCK = 128  # inputs whose errors are passed on together: one matrix product instead of 128
DAMPING = 0.01  # of the mean diagonal of the Gram matrix (Frantar et al. 2022)
SHARES = np.linspace(0.0, 1.0, 21)  # exponents that AWQ searches
Change = Callable[[Float[Array, "O"], Array], Float[Array, "O"]]


def hessian_factor(
    gram: Float[Array, "I I"], damping: float = DAMPING
) -> tuple[Float[Array, "I I"], Bool[Array, "I"]]:
    """The upper Cholesky factor U of the inverse Hessian, (G + lambda I)^-1 = U^T U.

    lambda = damping times the mean diagonal of G. An input that is always zero gets a one on the
    diagonal.

    Returns:
      U, and which inputs are always zero.

    Source: Frantar et al. 2022 (arXiv:2210.17323), section 3.3, step 3.
    """
    diagonal = jnp.diagonal(gram)
    dead = diagonal == 0.0
    ridge = damping * jnp.mean(diagonal)
    full = gram + jnp.diag(jnp.where(dead, 1.0, ridge))
    inverse = jnp.linalg.inv(full)
    return jnp.linalg.cholesky((inverse + inverse.T) / 2.0).T, dead


def compensated(
    w: Float[Array, "I O"],
    factor: Float[Array, "I I"],
    begin: Callable[[Float[Array, "r O"], Any], Change],
    block: int = BLOCK,
    run: int | None = None,
) -> Float[Array, "I O"]:
    """Change one input's weights after the other, each error made up for by those still to come.

    For i = 0 .. I-1: w'_i = change(w_i);  w_j -= U_ij (w_i - w'_i)/U_ii for j > i.

    Args:
      w: [I, O].
      factor: U of `hessian_factor`.
      begin: the weights of a run of inputs as they are when their turn comes, and the first input
        of the run, to the function that changes a row [O], given its place in the run.
      block: inputs whose errors are passed on together.
      run: inputs to a run, a divisor of the inputs of each block; None: a block is one.

    Returns:
      The changed weights. With U diagonal nothing is made up for.

    Source: Frantar et al. 2022 (arXiv:2210.17323), algorithm 1.
    """
    done = []
    for start in range(0, factor.shape[0], block):
        own = slice(start, start + block)
        rows = w[:block]
        rows, errors = _change_block(rows, factor[own, own], begin, start, run or len(rows))
        w = w[block:] - factor[own, start + block :].T @ errors
        done.append(rows)
    return jnp.concatenate(done)


def _change_block(
    rows: Float[Array, "b O"],
    factor: Float[Array, "b b"],
    begin: Callable[[Float[Array, "r O"], Any], Change],
    start: int,
    run: int,
) -> tuple[Float[Array, "b O"], Float[Array, "b O"]]:
    """The changed rows, and (w_i - w'_i)/U_ii of each."""
    inputs = jnp.arange(rows.shape[0])

    def of_run(at: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        first = at * run
        change = begin(jax.lax.dynamic_slice_in_dim(state[0], first, run), start + first)

        def of_input(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            rows, errors = state
            changed = change(rows[i], i - first)
            error = (rows[i] - changed) / factor[i, i]
            later = jnp.where(inputs > i, factor[i], 0.0)
            rows = (rows - later[:, None] * error[None, :]).at[i].set(changed)
            return rows, errors.at[i].set(error)

        return jax.lax.fori_loop(first, first + run, of_input, state)

    state = rows, jnp.zeros_like(rows)
    if run == rows.shape[0]:  # the first input of the run is a number then
        return of_run(0, state)
    return jax.lax.fori_loop(0, rows.shape[0] // run, of_run, state)


def gptq(
    w: Float[Array, "I O"],
    gram: Float[Array, "I I"],
    begin: Callable[[Float[Array, "b O"], int], Change],
    block: int = BLOCK,
    largest_first: bool = False,
) -> Float[Array, "I O"]:
    """Round weights one input at a time, with compensation.

    Args:
      w: [I, O].
      gram: X^T X of calibration inputs.
      begin: as in `compensated`; scales of a group are those of its weights when its turn comes.
      block: inputs to a block: the group, where scales are by group.
      largest_first: inputs by their sum of squares, the largest first, so that what most depends on
        is rounded while all others can still make up for it; `begin` sees them, and groups are, in
        that order. Otherwise in the order of the inputs.

    Source: Frantar et al. 2022 (arXiv:2210.17323); the order is their code's `--act-order`.
    """
    if largest_first:
        order = jnp.argsort(-jnp.diagonal(gram), stable=True)
        moved = gptq(w[order], gram[order][:, order], begin, block)
        return moved[jnp.argsort(order)]
    factor, dead = hessian_factor(gram)
    return compensated(jnp.where(dead[:, None], 0.0, w), factor, begin, block)


def output_error(
    w: Float[Array, "I O"], changed: Float[Array, "I O"], gram: Float[Array, "I I"]
) -> Float[Array, ""]:
    """|X W - X W'|_F^2 = tr(E^T G E), E = W - W', of the inputs behind the Gram matrix."""
    error = w - changed
    return jnp.sum(error * (gram @ error))


def awq(
    w: Float[Array, "I O"],
    gram: Float[Array, "I I"],
    magnitude: Float[Array, "I"],
    quantise: Callable[[Float[Array, "I O"]], Float[Array, "I O"]],
) -> Float[Array, "I O"]:
    """Scale inputs by their activations before rounding, by the best of a family of exponents.

    s = magnitude^a, brought to max(s) min(s) = 1;  W' = diag(1/s) quantise(diag(s) W), with the a
    of `SHARES` of least `output_error`; a = 0 is rounding to nearest.

    Args:
      w: [I, O].
      gram: X^T X of calibration inputs.
      magnitude: the mean |x_i| of each input.
      quantise: rounds a weight matrix.

    Source: Lin et al. 2023 (arXiv:2306.00978), section 3.2. Their code shares s between query, key
    and value, and between gate and up, by the error of what these feed, and then clips.
    """
    safe = jnp.maximum(magnitude, jnp.finfo(magnitude.dtype).tiny)

    def at(share: Array) -> Float[Array, "I O"]:
        log = share * jnp.log(safe)
        s = jnp.exp(log - (jnp.max(log) + jnp.min(log)) / 2.0)[:, None]
        return quantise(w * s) / s

    shares = jnp.asarray(SHARES, w.dtype)
    errors = jax.lax.map(lambda share: output_error(w, at(share), gram), shares)
    return at(shares[jnp.argmin(errors)])


def smooth_scales(
    activations: Float[Array, "I"], weights: Float[Array, "I"], alpha: float = 0.5
) -> Float[Array, "I"]:
    """What to divide each input by, and multiply its weights by, so that both round well.

    s_i = max|x_i|^alpha / max|w_i|^(1 - alpha), and 1 where either is zero.

    Args:
      activations: [I], the largest |x_i| of calibration inputs.
      weights: [I], the largest |W_io| over the outputs.
      alpha: 0 leaves the weights even, 1 the activations.

    Source: Xiao et al. 2022 (arXiv:2211.10438), eq. 4.
    """
    known = (activations > 0.0) & (weights > 0.0)
    x, w = (jnp.where(known, each, 1.0) for each in (activations, weights))
    return x**alpha / w ** (1.0 - alpha)


def hadamard(size: int, key: Array) -> Float[Array, "size size"]:
    """A random orthogonal matrix whose entries are as even as the size allows.

    H = (H_p / sqrt(p)) (x) Q, times random signs by row: p is the largest power of two in the size,
    H_p Sylvester's Hadamard matrix, and Q a random orthogonal matrix of the odd rest (1 for a power
    of two).

    Source: Ashkboos et al. 2024 (arXiv:2404.00456), section 2.2, with Q where they use tables.
    """
    of_signs, of_rest = jax.random.split(key)
    power = size & -size
    sylvester = jnp.ones((1, 1))
    for _ in range(power.bit_length() - 1):
        sylvester = jnp.block([[sylvester, sylvester], [sylvester, -sylvester]])
    # Drawn in float32 where wider is the default, too: a key is one rotation.
    drawn = jax.random.normal(of_rest, (size // power,) * 2, jnp.float32)
    rest, triangle = jnp.linalg.qr(drawn.astype(sylvester.dtype))
    rest = rest * jnp.sign(jnp.diagonal(triangle))[None, :]
    positive = jax.random.bernoulli(of_signs, jnp.float32(0.5), (size,))
    signs = jnp.where(positive, 1.0, -1.0).astype(sylvester.dtype)
    return signs[:, None] * jnp.kron(sylvester / jnp.sqrt(power * jnp.ones(())), rest)
