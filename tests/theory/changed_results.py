"""Deliberate errors of T1 to T6: id -> {error: (function of the module, its new result)}."""

import jax.numpy as jnp


def edit(name, change):
    """One quantity of what a function returns, changed."""
    return lambda found: {**found, name: change(found[name])}


MUTATIONS = {
    "T1": {
        "keys at the place before": ("places", lambda at: at - 1),
        "all keys where the first is": ("places", lambda at: 0 * at + at[0]),
        "keys not moved": ("places", lambda at: at + len(at)),
        "ALiBi's bias dropped": ("constants", lambda e: e._replace(bias=0.0 * e.bias)),
        "the window forgotten": ("constants", lambda e: e._replace(mask=e.mask | True)),
        "values drained": ("constants", lambda e: e._replace(values=0.0 * e.values)),
        "layers exchanged": ("constants", lambda e: e._replace(keys=e.keys[::-1])),
    },
    "T2": {
        "the sink's logit dropped": ("predict", edit("factor", lambda s: 0.0 * s + 1.0)),
        "the mass for the factor": ("predict", edit("factor", lambda s: 1.0 - s)),
        "log of the keys' number": ("evidence", lambda x: x - jnp.log(2.0)),
        "the difference for half of it": ("predict", edit("two contexts", lambda x: 2.0 * x)),
        "half of the variance": ("predict", edit("best gate", lambda x: x / 2.0)),
        "a deviation for a variance": ("predict", edit("best gate", jnp.sqrt)),
        "tanh(d/2)": ("predict", edit("one constant", lambda x: 2.0 * x / (1.0 + x * x))),
        "d/4": ("predict", edit("one constant", jnp.arctanh)),
        "tanh(d/8)": ("predict", edit("one constant", lambda x: jnp.tanh(jnp.arctanh(x) / 2.0))),
    },
    "T3": {
        "W u dropped": ("split", lambda pair: (0.0 * pair[0], pair[1])),
        "beta too small": ("split", lambda pair: (pair[0], 0.9 * pair[1])),
        "D - 1 for D": ("magnitude", lambda a: 0.99 * a),
        "half of the magnitude": ("magnitude", lambda a: a / 2.0),
        "r for the diameter": ("magnitude", lambda a: 2.0 * a),
        "a weaker largest value": ("predict", edit("largest value", lambda x: 0.999 * x)),
        "square root of D dropped": ("first_order", lambda a: a / jnp.sqrt(5.0)),
        "first order off by 1%": ("first_order", lambda a: 1.01 * a),
    },
    "T4": {
        "sign of what renormalising leaves": ("predict", edit("nothing", lambda x: -x)),
        "S for 1 - S": ("predict", edit("factor", lambda x: jnp.max(jnp.abs(x)) - x)),
        "the bias forgotten": ("predict", edit("means", lambda x: x - jnp.mean(x))),
        "E (1 - S)^2 for Var(S)": ("predict", edit("factor and bias", lambda x: 2.0 * x)),
        "a drained value": ("predict", edit("factor", lambda x: 0.0 * x)),
        "half of the bound": ("predict", edit("output", lambda x: x / 2.0)),
        "twice the bound": ("predict", edit("output", lambda x: 2.0 * x)),
    },
    "T5": {
        "no move": ("predict", edit("model: mark, all layers", lambda x: 0.0 * x)),
        "a move after emergence": (
            "predict", edit("model: mark, later layers", lambda x: x.at[0].set(1.0))
        ),
        "the masked key counted": (
            "predict", edit("model: attention, later layers", lambda x: x / (1.0 + x))
        ),
        "the sink's mass": ("predict", edit("model: attention, all layers", lambda x: 0.999 * x)),
        "weights not renormalised": ("predict", edit("RoPE: weights, last layer", lambda x: x / 2)),
        "another text": ("predict", edit("ALiBi: states, all layers", jnp.negative)),
    },
    "T6": {
        "twice the norm": ("least_norm", lambda x: 2.0 * x),
        "square root of D dropped": ("predict", edit("least value", lambda x: x / 2.0)),
        "a larger least value": ("predict", edit("least value", lambda x: 1.001 * x)),
        "the mass of the rest": ("predict", edit("mass", lambda x: 1.0 - x)),
        "a value that is not drained": ("predict", edit("output", lambda x: x + 0.01)),
    },
}  # fmt: skip
