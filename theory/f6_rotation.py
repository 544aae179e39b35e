"""F6. SGD and Muon do not see the basis of the residual stream; Adam does.

Statement. Let U(G_1 .. G_n) be an optimiser's update after the gradients G of a matrix. For every
orthogonal Q and P,

    SGD with momentum and Muon:  U(Q G_1 P .. Q G_n P) = Q U(G_1 .. G_n) P;
    Adam and Lion:               the same for signed permutations, but not for rotations.

Hence, if a model's function and the distribution of its initial parameters do not change when the
residual stream is rotated, neither does the distribution of what SGD or Muon train: the channels of
the given basis are like those of a random one. Under Adam they need not be: it prefers the
coordinate basis, and outlier channels are large coordinates.

In training on Bigram-Backcopy (full runs) the neuron-RMS kurtosis of the states is held against its
values in random bases: like them under SGD and Muon, above them under Adam.

Assumptions. For the second part: no norm gains, no biases, isotropic initial values, all matrices
under Muon.

Proof. SGD's update is linear in G. Muon's is an odd polynomial of the momentum in the sense of
singular values, M p(M^T M), which commutes with both rotations. Adam's and Lion's are functions of
each entry, which commute with signed permutations where they are odd, and not with the rotations of
the control. By induction over steps the whole trajectory is rotated.

Source: He et al. 2024 (arXiv:2405.19279) and Kaul et al. 2024 (arXiv:2410.17174) for Adam's part in
outliers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from optax import contrib

from sysout_jax.core.measures import neuron_rms_kurtosis
from theory import tiny
from theory.check import Part, Quantities, compare, statement
from theory.decompositions import qr

SHAPES = ((2, 2), (3, 7), (8, 5))  # (D, F)
GRADIENTS = 2
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(1.0, 0.9),
    "muon": lambda: contrib.muon(1.0),
    "adam": lambda: optax.adam(1.0),
    "lion": lambda: optax.lion(1.0),
}
ROTATES = ("sgd", "muon")
TRAINED, SEEDS, BASES = 1000, 4, 200
# Standard deviations over random bases. The mean over seeds times sqrt(seeds) is about normal for
# an optimiser that sees no basis, and beyond it once in 1000 keys.
LIKE_ANY = 3.29


class Instance(NamedTuple):
    """Gradients, two rotations, and two signed permutations."""

    gradients: Float[Array, "S D F"]
    left: Float[Array, "D D"]
    right: Float[Array, "F F"]
    signed_left: Float[Array, "D D"]
    signed_right: Float[Array, "F F"]


def rotation(key: Array, dim: int) -> Float[Array, "D D"]:
    """A uniformly random orthogonal matrix."""
    q, r = qr(jax.random.normal(key, (dim, dim), jnp.float64))
    return q * jnp.sign(jnp.diagonal(r))[None, :]


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Instance:
    """Normal gradients of size `scale`, far above Adam's eps."""
    keys = jax.random.split(key, 7)

    def signed(of_order: Array, of_sign: Array, dim: int) -> Array:
        sign = jax.random.rademacher(of_sign, (dim,), jnp.float64)
        return jnp.eye(dim)[jax.random.permutation(of_order, dim)] * sign[None, :]

    return Instance(
        scale * jax.random.normal(keys[0], (GRADIENTS, *shape), jnp.float64),
        rotation(keys[1], shape[0]),
        rotation(keys[2], shape[1]),
        signed(keys[3], keys[4], shape[0]),
        signed(keys[5], keys[6], shape[1]),
    )


def update(name: str, gradients: Float[Array, "S D F"]) -> Float[Array, "D F"]:
    """The last of the updates that a sequence of gradients gives."""
    optimizer = OPTIMIZERS[name]()
    params = {"w": jnp.zeros_like(gradients[0])}
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for gradient in gradients:
            updates, state = optimizer.update({"w": gradient}, state, params)
    return updates["w"]


def _bases(case: Instance, name: str) -> tuple[Array, Array]:
    return (case.left, case.right) if name in ROTATES else (case.signed_left, case.signed_right)


def predict(case: Instance) -> Quantities:
    """The update of the gradients, turned."""
    found = {}
    for name in OPTIMIZERS:
        left, right = _bases(case, name)
        found[name] = left @ update(name, case.gradients) @ right
    return found


def measure(case: Instance) -> Quantities:
    """The update of the turned gradients."""
    return {name: update(name, _turned(case.gradients, *_bases(case, name))) for name in OPTIMIZERS}


def control(case: Instance) -> Quantities:
    """Adam in place of SGD and Muon; rotations in place of signed permutations."""
    turned = _turned(case.gradients, case.left, case.right)
    return {name: update("adam" if name in ROTATES else name, turned) for name in OPTIMIZERS}


def _turned(gradients: Array, left: Array, right: Array) -> Array:
    return jnp.einsum("ad,sdf,fb->sab", left, gradients, right)


# ----------------------------------------------------------------------- trained models


def muon(steps: int) -> optax.GradientTransformation:
    """Muon for every matrix of `tiny`, stacked by layer or not."""
    names = tiny.init(tiny.Setting(), jax.random.key(0))
    stacked, single = contrib.MuonDimensionNumbers(1, 2), contrib.MuonDimensionNumbers(0, 1)
    dimensions = {name: single if name in tiny.OUTER else stacked for name in names}
    return contrib.muon(tiny.rate(2e-2, steps), muon_weight_dimension_numbers=dimensions)


def basis_scores(key: Array, optimizer: optax.GradientTransformation) -> np.ndarray:
    """How far the kurtosis of the last block's output in the given basis is above that in random
    ones, per seed, in their standard deviations."""
    of_seeds, of_bases = jax.random.split(key)
    setting = tiny.Setting()
    params = tiny.train(setting, optimizer, TRAINED, tiny.draw_seeds(of_seeds, SEEDS))
    _, seen = tiny.habits(setting, params)
    states = seen.states[:, :, -1].astype(jnp.float64).reshape(SEEDS, -1, tiny.WIDTH)
    bases = jax.vmap(lambda k: rotation(k, tiny.WIDTH))(jax.random.split(of_bases, BASES))

    @jax.jit
    def score(x: Array) -> Array:
        turned = jax.lax.map(lambda q: neuron_rms_kurtosis(x @ q), bases)
        return (neuron_rms_kurtosis(x) - jnp.mean(turned)) / jnp.std(turned)

    return np.array([float(score(x)) for x in states])


def _trained_parts(key: Array) -> list[Part]:
    optimizers = {"adam": tiny.adam(TRAINED), "sgd": tiny.sgd(TRAINED), "muon": muon(TRAINED)}
    scores = {name: basis_scores(key, each) for name, each in optimizers.items()}
    together = {name: float(abs(x.mean()) * np.sqrt(SEEDS)) for name, x in scores.items()}
    data = {name: x.tolist() for name, x in scores.items()}
    return [
        Part(f"trained with {name}", SEEDS, together[name], LIKE_ANY, together["adam"], data)
        for name in ROTATES
    ]


@statement("F6", "SGD and Muon commute with rotations of the residual stream, Adam does not")
def verify(key: Array, quick: bool) -> list[Part]:
    of_updates, of_training = jax.random.split(key)
    # Muon's polynomial, of slope 3.4 at zero, is applied five times: rounding grows 500 times.
    parts = compare(draw, predict, measure, control, of_updates, shapes=SHAPES, quick=quick)
    return parts if quick else parts + _trained_parts(of_training)
