"""Each statement's shapes and dtypes, and what one-line errors in its formulas do to its check."""

import importlib
import inspect
import tomllib
import types
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

from theory import check

MODULES = {
    id: importlib.import_module(inspect.getmodule(each.parts).__name__)
    for id, each in check.statements().items()
}
WITH_INSTANCES = [id for id, module in MODULES.items() if hasattr(module, "draw")]
MUTATIONS = tomllib.loads((Path(__file__).parent / "mutations.toml").read_text())
CASES = [
    (id, each["error"], each["old"], each["new"])
    for id, errors in MUTATIONS.items()
    for each in errors
]
SURVIVORS = {
    (id, each["error"]) for id, errors in MUTATIONS.items() for each in errors if "survives" in each
}
QUICK = ("A1", "B2", "B5", "C1", "D3", "F3", "F5", "F7")  # whose checks take a second or two
SAMPLE = [case for id in QUICK for case in CASES if case[0] == id and case[:2] not in SURVIVORS]
SAMPLE = [case for at, case in enumerate(SAMPLE) if at % 12 == 0]


@pytest.mark.parametrize("id", WITH_INSTANCES)
def test_shapes_and_dtypes(id):
    module = MODULES[id]
    names = ("floors", "reached", "shared") if id == "B3" else ("predict", "measure", "control")
    case = module.draw(jax.random.key(1), getattr(module, "SHAPES", (3, 8))[-1], jnp.asarray(1.0))
    found = [jax.eval_shape(getattr(module, name), case) for name in names]
    chex.assert_trees_all_equal_shapes_and_dtypes(*found)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float64")}


def source(id):
    return Path(MODULES[id].__file__).read_text()


def passes_with(id, old, new):
    """Whether the check of a copy of the module passes with one line changed."""
    copy = types.ModuleType(MODULES[id].__name__)
    exec(compile(source(id).replace(old, new), MODULES[id].__file__, "exec"), copy.__dict__)
    return copy.verify(jax.random.key(0), quick=True).passed


def test_the_list_is_long_and_survivors_are_few():
    assert MUTATIONS.keys() == MODULES.keys()
    assert all(len(errors) >= 3 for errors in MUTATIONS.values())
    assert len(CASES) >= 75
    assert len({case[:2] for case in CASES}) == len(CASES)
    assert len(SURVIVORS) <= 0.03 * len(CASES)


@pytest.mark.parametrize(("id", "name", "old", "new"), CASES)
def test_an_error_is_of_one_line_that_is_there_once(id, name, old, new):
    assert source(id).count(old) == 1
    assert "\n" not in old + new
    assert old != new


@pytest.mark.parametrize(("id", "name", "old", "new"), SAMPLE)
def test_a_wrong_formula_fails(id, name, old, new):
    assert not passes_with(id, old, new)


@pytest.mark.slow
@pytest.mark.parametrize(("id", "name", "old", "new"), CASES)
def test_every_wrong_formula_fails_but_those_named(id, name, old, new):
    assert passes_with(id, old, new) is ((id, name) in SURVIVORS)
