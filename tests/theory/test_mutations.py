"""Each statement's shapes and dtypes, and what one deliberate error does to its check."""

import importlib
import inspect

import chex
import jax
import jax.numpy as jnp
import pytest

from tests.theory import mutations_t
from theory import check

MODULES = {
    id: importlib.import_module(inspect.getmodule(each.parts).__name__)
    for id, each in check.statements().items()
}
WITH_INSTANCES = [id for id, module in MODULES.items() if hasattr(module, "draw")]


def edit(name, change):
    """One quantity of what a function returns, changed."""
    return lambda found: {**found, name: change(found[name])}


# id -> {error: (function of the module, what becomes of its result)}
MUTATIONS = {
    "A1": {
        "outliers' part dropped": ("predict", lambda q: {**q, "output": q["scaled rest"]}),
        "factor of the outliers": ("predict", edit("factor", lambda x: 1.0 - x)),
        "factor dropped": ("predict", lambda q: {**q, "scaled rest": q["output"]}),
    },
    "A2": {
        "bias of (b) dropped": ("predict", lambda q: {**q, "value_bias": q["softmax_off_by_one"]}),
        "sign of a logit": ("extra_logit", lambda s: -s),
        "a 1 in place of the 0 logit": ("extra_logit", lambda s: s + 1.0),
    },
    "B1": {"half of the distance more": ("hull_distance", lambda x: 1.5 * x)},
    "B2": {
        "missing log(T - 1)": ("predict", edit("equality", lambda x: x / 2.0)),
        "nu forgotten": ("required", lambda x: x + 0.5),
        "mass of the rest": ("predict", edit("mass", lambda x: 1.0 - x / 2.0)),
    },
    "B3": {
        "missing log T": ("competing", lambda x: 1),
        "twice the radius": ("floors", edit("value_bias", lambda x: 2.0 * x)),
    },
    "B4": {
        "cotangent": ("predict", edit("rms: angle", lambda x: jnp.pi / 2 - x)),
        "D - 1 for D": ("predict", edit("layer: gradient", lambda x: 0.9 * x)),
        "angle for half of it": ("predict", edit("layer: to limit", lambda x: 2.0 * x)),
    },
    "B5": {
        "the own token's share": ("predict", edit("own", lambda x: 0.9 * x)),
        "opposed values forgotten": ("predict", edit("spread", lambda x: 2.0 * x)),
        "the smallest value": ("predict", edit("small values", lambda x: x / 2.0)),
    },
    "C1": {
        "sign": ("predict", edit("sink", lambda x: -x)),
        "o_i dropped": ("predict", edit("output", lambda x: jnp.cumsum(x, axis=0))),
    },
    "C2": {
        "a constant more": ("predict", lambda t: 1.01 * t),
        "Adam's lr alone": ("adam_rate", lambda rho: 1e-3),
    },
    "C3": {
        "sign of the decay": ("predict", edit("value", lambda x: -x)),
        "factor 1 - p dropped": ("predict", edit("gap", lambda x: 2.0 * x)),
    },
    "C4": {
        "gate squared": ("predict", edit("pressure", lambda x: 2.0 * x)),
        "gate of twice the rate": ("field", lambda v: (v[0], 2.0 * v[1])),
    },
    "D1": {
        "half a Hessian": ("predict", edit("hessian", lambda x: x / 2.0)),
        "eigenvalue without <g, u>": ("predict", edit("eigenvalue", lambda x: 0.0 * x + 0.5)),
    },
    "D3": {"alpha at its largest": ("predict", edit("energy", lambda x: 2.0 * x))},
    "E1": {"no clipping of the last bit": ("predict", edit("sqnr", lambda x: x + 0.5))},
    "E2": {
        "one-sided maximum": ("predict", lambda x: 0.96 * x),
        "power": ("power", lambda x: x / 2),
    },
    "F1": {
        "divided by j - 1": ("predict", edit("relu: output", lambda x: 1.1 * x)),
        "sigmoid in place of twice it": ("predict", edit("gate: output", lambda x: 0.999 * x)),
        "attention to BOS": ("predict", edit("gate: weights", lambda x: x.at[:, 0].add(0.1))),
    },
    "F2": {
        "sign of the gap": ("predict", edit("gap", lambda x: -x)),
        "share p dropped": ("predict", edit("value", lambda x: 1.1 * x)),
        "half of the remainder's bound": ("predict", edit("remainder", lambda x: x / 4.0)),
        "missing factor 2": ("predicted_gaps", lambda x: x * 1.1),
    },
    "F3": {
        "rows for columns": ("predict", edit("column mass", jnp.flip)),
        "sign of the gradient": ("predict", edit("value", lambda x: -x)),
        "square root of D dropped": ("predict", edit("state", lambda x: x / jnp.sqrt(5.0))),
        "a gain that does not fall": ("predict", lambda q: {**q, "larger state": q["state"]}),
    },
    "F4": {"alpha added twice": ("predict", edit("ratio", lambda x: 2.0 * x + 1.0))},
    "F5": {
        "one token too many": ("predict", edit("no positions", lambda x: x / 2.0)),
        "bound with e^xi": ("predict", edit("rope", lambda x: x / 2.0)),
    },
    "F6": {"turned the other way": ("predict", edit("sgd", lambda x: x[::-1]))},
    "F7": {
        "sign": ("predict", edit("softpick", lambda x: -x)),
        "stretch forgotten": ("predict", edit("clipped", lambda x: x / 13.0)),
    },
    "F8": {"staying forgotten": ("path_sum", lambda x: x - jnp.eye(len(x)))},
    "F9": {"another window": ("predict", lambda x: 1.05 * x)},
    **mutations_t.MUTATIONS,
}


def test_every_statement_has_a_deliberate_error():
    assert MUTATIONS.keys() == MODULES.keys()


@pytest.mark.parametrize("id", WITH_INSTANCES)
def test_shapes_and_dtypes(id):
    module = MODULES[id]
    names = ("floors", "reached", "shared") if id == "B3" else ("predict", "measure", "control")
    case = module.draw(jax.random.key(1), getattr(module, "SHAPES", (3, 8))[-1], jnp.asarray(1.0))
    found = [jax.eval_shape(getattr(module, name), case) for name in names]
    chex.assert_trees_all_equal_shapes_and_dtypes(*found)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float64")}


@pytest.mark.parametrize(
    ("id", "name"), [(id, name) for id, each in MUTATIONS.items() for name in each]
)
def test_a_wrong_formula_fails(id, name, monkeypatch):
    function, change = MUTATIONS[id][name]
    module = MODULES[id]
    right = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *args: change(right(*args)))
    assert not module.verify(jax.random.key(0), quick=True).passed
