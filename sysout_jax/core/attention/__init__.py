"""Attention variants: one table, each row a few lines over the same primitives.

To add a variant, write one decorated function in the module of its kind. Its parameters, their
sharding, the flag's choices, its tests, its plot label and its row in the documentation follow from
the entry. A name with plus signs composes variants ("value_bias+key_bias", core/variants.py).

Symbols of the formulas: s = q.k/sqrt(H) are the logits of the visible keys, S their number in the
sequence, p the weights, v the values, x the attention input of the query's token (x' of the
key's), primes mark extra keys and biases, which are parameters.
"""

from sysout_jax.core.attention import extra_keys as extra_keys
from sysout_jax.core.attention import gates as gates
from sysout_jax.core.attention import weights as weights
from sysout_jax.core.attention.paper import PAPER as PAPER
from sysout_jax.core.variants import VARIANTS as VARIANTS
from sysout_jax.core.variants import Param as Param
from sysout_jax.core.variants import Variant
from sysout_jax.core.variants import variant as variant


def variants() -> tuple[Variant, ...]:
    """The table of attention variants: name, formula, citation, parameters."""
    return tuple(VARIANTS.values())
