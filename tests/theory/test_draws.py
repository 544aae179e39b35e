"""Random instances are as wide as their statements allow."""

import jax
import jax.numpy as jnp
import numpy as np

from theory import b2_required_range as b2


def test_values_of_the_rest_are_anywhere_from_m_to_twice_m():
    """In B2 which keys are outliers says nothing about the values of the others."""
    cases = jax.vmap(lambda key: b2.draw(key, (31, 5), jnp.asarray(1.0)))(
        jax.random.split(jax.random.key(3), 13)
    )
    along = np.einsum("cth,ch->ct", cases.rest, cases.u) / np.asarray(cases.m)[:, None]
    for of in (along[~np.asarray(cases.outliers)], along[np.asarray(cases.outliers)]):
        assert 1.0 - 1e-9 < of.min() < 1.1
        assert 1.9 < of.max() < 2.0 + 1e-9
