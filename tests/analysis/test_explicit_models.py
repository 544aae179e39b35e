"""A sink on running text as a part of the model: what the edits that stand for it say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.analysis.intervene.explicit_models import MODELS, explicit_models
from sysout_jax.analysis.intervene.sink_constants import constants
from sysout_jax.analysis.intervene.sink_forms import all_forms
from sysout_jax.analysis.locate.first_token import first_token
from sysout_jax.model.decoder import forward, init
from sysout_jax.model.taps import Edit
from sysout_jax.training.checkpoint import load, save
from sysout_jax.training.distil import added
from tests.analysis import first_sink as planted
from tests.analysis.test_sink_forms import CONFIGS, FIRST, SINK, T, model, some_constants, tokens

LATER, MADE = (1, 2), (0,)  # FIRST and after; the layer that makes the sink


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "windows"])
def test_a_model_says_what_the_edits_say(name):
    """The planted state is there under the edits, and is not in the model."""
    config, params, fitted = CONFIGS[name], model(CONFIGS[name]), some_constants(CONFIGS[name])
    ids = jnp.asarray(tokens(config)[:, :-1])
    edited = all_forms(config, T, SINK, fitted)
    made = explicit_models(config, params, fitted, LATER, MADE)
    assert tuple(made) == tuple(MODELS)
    for form, of in made.items():
        there = forward(config, params, ids, edits=edited[form])[0][:, 1:]
        here = forward(of.config, of.params, ids)[0][:, 1:]
        scale = 1.0 + float(jnp.abs(there).max())
        np.testing.assert_allclose(here, there, atol=3e-4 * scale, err_msg=form)


@pytest.mark.parametrize("form", MODELS)
def test_nothing_reads_the_first_token(form):
    """Layers before hear its word; those with the form do not hear what it then is."""
    config = CONFIGS["rope"]
    made = explicit_models(config, model(config), some_constants(config), LATER, MADE)[form]
    ids = jnp.asarray(tokens(config)[:, :-1])

    def later(state):  # of the first token, as it enters layer FIRST
        edits = {"block_in": Edit(_first_moved, jnp.asarray(state))}
        return np.asarray(forward(made.config, made.params, ids, edits=edits)[0])

    near, far = later(0.0), later(100.0)
    np.testing.assert_array_equal(near[:, 1:], far[:, 1:])
    assert np.abs(near[:, 0] - far[:, 0]).max() > 1e-2


def _first_moved(x, layer, by):
    return jnp.where(layer == FIRST, x.at[0].add(by), x)


def test_windows_have_an_extra_key_alone():
    config = CONFIGS["windows"]
    made = explicit_models(config, model(config), some_constants(config), LATER, MADE)
    assert tuple(made) == ("extra_key",)


@pytest.mark.parametrize("form", MODELS)
def test_other_layers_keep_what_they_do(form):
    """A layer without the form: its attention is softmax's."""
    config = CONFIGS["rope"]
    made = explicit_models(config, model(config), some_constants(config), (2,), MADE)[form]
    ids = jnp.asarray(tokens(config)[:, :-1])
    taps = {"attn_mix": None}
    plain = forward(config, model(config), ids, taps)[1]["attn_mix"]
    mixed = forward(made.config, made.params, ids, taps)[1]["attn_mix"]
    np.testing.assert_allclose(mixed[0], plain[0], atol=1e-5)


def test_a_planted_sink_is_replaced(tmp_path):
    """Found on calibration text, made, saved, loaded: its state is gone, and the loss stays."""
    config, params, rows = planted.CONFIG, planted.params(), planted.texts()
    first = first_token(config, params, rows)
    fitted = constants(config, params, rows[:, :-1], first.sink.first, 4)
    other = jnp.asarray(planted.texts(seed=6)[:, :-1])
    logits, found = forward(config, params, other, {"block_out": None})
    made = explicit_models(config, params, fitted, first.layers, first.writers)
    for form, of in made.items():
        place = tmp_path / form
        save(place, of.config, jax.tree.map(lambda x: x[None], of.params), [0])
        again = load(place, 0)
        now, states = forward(again.config, again.params, other, {"block_out": None})
        assert jnp.abs(states["block_out"]).max() < 0.1 * jnp.abs(found["block_out"]).max()
        if form == "extra_key":
            assert jnp.abs(now - logits)[:, 1:].max() < 0.05 * jnp.abs(logits).max()


def test_what_a_form_adds_is_what_it_says():
    config, known = CONFIGS["rope"], init(CONFIGS["rope"], jax.random.key(0))
    for form, of in explicit_models(config, known, some_constants(config), LATER, MADE).items():
        names = {path[-1] for path in added(of.params, known)}
        assert names == set(MODELS[form])
