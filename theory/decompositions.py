"""Matrix decompositions of which one program may hold several.

XLA's CPU client runs independent LAPACK calls of a program side by side on one pool of threads, and
each batched call waits there for further threads of that pool: on two cores, two of them wait for
each other for good (jaxlib 0.10.2 and 0.11.2). Mapped one matrix at a time, no call waits.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_batching.sequential_vmap
def eigh(a: Float[Array, "N N"]) -> tuple[Float[Array, "N"], Float[Array, "N N"]]:
    """Eigenvalues, ascending, and eigenvectors, one a column, of a symmetric matrix."""
    values, vectors = jnp.linalg.eigh(a)
    return values, vectors


@jax.custom_batching.sequential_vmap
def qr(a: Float[Array, "N M"]) -> tuple[Float[Array, "N K"], Float[Array, "K M"]]:
    """The factors Q and R of a matrix."""
    q, r = jnp.linalg.qr(a)
    return q, r


@jax.custom_batching.sequential_vmap
def pinv(a: Float[Array, "N M"]) -> Float[Array, "M N"]:
    """The pseudoinverse."""
    return jnp.linalg.pinv(a)


@jax.custom_batching.sequential_vmap
def singular_values(a: Float[Array, "N M"]) -> Float[Array, "K"]:
    """The singular values, descending."""
    return jnp.linalg.svd(a, compute_uv=False)
