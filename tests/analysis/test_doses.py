"""Doses on a model whose cause is planted: found where it is, given as much as it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.analysis.intervene.dose_response import ACTIVATION, WEIGHT, check, doses, find
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init, unstack_blocks
from tests.analysis import planted

FACTORS = (0.0, 1.0, 3.0)
ROWS = planted.rows()


@pytest.fixture(scope="module")
def found():
    return doses(planted.CONFIG, planted.params(), ROWS, FACTORS, controls=2, batch=3)


def of(found, treatment, factor, control=False):
    (each,) = [
        r for r in found.responses
        if (r.treatment, r.factor, r.control) == (treatment, factor, control)
    ]  # fmt: skip
    return each


def measured(params, place, edit=None):
    """(peak, ratio, attention) from raw values."""
    edits = {"block_out": edit} if edit else None
    taps = {"block_out": None, "attn_weights": None}
    raw = forward(planted.CONFIG, params, jnp.asarray(ROWS[:, :-1]), taps, edits)[1]
    state = np.asarray(raw["block_out"], np.float64)[place.layer]
    norms = np.linalg.norm(state, axis=-1)
    sizes = np.abs(state)
    layer, head = place.head
    return (
        np.mean(norms[:, 0] / norms[:, 1:].mean(axis=1)),
        np.mean(sizes[:, 0].max(1) / np.median(sizes, axis=(1, 2))),
        np.asarray(raw["attn_weights"])[layer, :, head, 1:, 0].mean(),
    )


def test_the_cause_is_found_where_it_was_planted(found):
    assert found.place.layer == planted.MADE
    assert (found.place.neuron, found.place.channel) == (planted.NEURON, planted.CHANNEL)
    assert found.place.head[0] > planted.MADE
    assert find(planted.CONFIG, planted.params(), ROWS, 6) == found.place  # of any batch


@pytest.mark.parametrize(("placement", "norm"), [("sandwich", "rms"), ("out", "layer")])
def test_a_write_is_what_a_norm_after_the_mlp_leaves_of_it(placement, norm):
    """The larger weights of block 0 are divided out; its part of down_out is smaller."""
    config = ModelConfig(
        vocab=11, context=7, layers=3, width=10, heads=2, mlp="relu", mlp_width=13, bias=True,
        norm=norm, norm_placement=placement, position="none",
    )  # fmt: skip
    params = jax.tree.map(lambda x: np.array(10 * x), init(config, jax.random.key(2)))
    rng = np.random.default_rng(1)
    for layer, (larger, scale) in enumerate(((50.0, 0.1), (1.0, 2.0), (1.0, 1.0))):
        block = params[f"block_{layer}"]
        block["mlp"]["down"] *= larger
        block["mlp"]["down_bias"] += larger * rng.standard_normal(10)
        block["mlp_out_norm"]["scale"][:] = scale * rng.uniform(0.1, 3.0, 10)
    params = jax.tree.map(jnp.asarray, params)
    rows = rng.integers(0, 11, (5, 8)).astype(np.int32)
    taps = {"down_in": None, "down_out": None}
    raw = forward(config, params, jnp.asarray(rows[:, :-1]), taps)[1]
    written = []
    for layer in (0, 1):
        mlp = params[f"block_{layer}"]["mlp"]
        hidden, out = (np.asarray(raw[n], np.float64)[layer, :, 0] for n in taps)
        down, bias = (np.asarray(mlp[n], np.float64) for n in ("down", "down_bias"))
        whole = hidden @ down + bias
        if norm == "layer":
            whole, down, bias = (x - x.mean(-1, keepdims=True) for x in (whole, down, bias))
        kept = out / whole  # [B, D]: what the norm, whose bias is 0, multiplies by
        parts = hidden[:, :, None] * down[None] * kept[:, None]
        np.testing.assert_allclose(parts.sum(1), out - kept * bias, atol=1e-4)
        written.append(np.linalg.norm(parts, axis=-1).mean(axis=0))
    place = find(config, params, rows, 3)
    assert (place.layer, place.neuron) == np.unravel_index(np.argmax(written), (2, 13))
    assert place.layer == 1


@pytest.mark.parametrize("factor", FACTORS)
def test_a_dose_of_weight_is_a_row_of_w_down(found, factor):
    params = dict(unstack_blocks(planted.params()))
    name = f"block_{planted.MADE}"
    down = np.array(params[name]["mlp"]["down"])
    down[planted.NEURON] *= factor
    params[name] = {**params[name], "mlp": {**params[name]["mlp"], "down": jnp.asarray(down)}}
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(params.pop(f"block_{i}") for i in range(4)))
    each = of(found, WEIGHT, factor)
    expected = measured({**params, "blocks": stacked}, found.place)
    np.testing.assert_allclose((each.peak, each.ratio, each.attention), expected, rtol=1e-3)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_dose_of_activation_is_a_channel_of_the_first_token(found, factor):
    def edit(state, layer):
        dosed = state.at[:, 0, planted.CHANNEL].multiply(factor)
        return jnp.where(layer == planted.MADE, dosed, state)

    each = of(found, ACTIVATION, factor)
    expected = measured(planted.params(), found.place, edit)
    np.testing.assert_allclose((each.peak, each.ratio, each.attention), expected, rtol=1e-3)


def test_a_dose_of_one_changes_nothing_anywhere(found):
    ones = [each for each in found.responses if each.factor == 1.0]
    assert len(ones) == 4
    for each in ones:
        np.testing.assert_allclose(
            (each.peak, each.ratio, each.attention, each.loss),
            (ones[0].peak, ones[0].ratio, ones[0].attention, ones[0].loss), rtol=1e-4,
        )  # fmt: skip


def test_without_the_planted_weight_the_activation_is_gone_and_elsewhere_it_stays(found):
    before = of(found, WEIGHT, 1.0).ratio
    assert of(found, WEIGHT, 0.0).ratio < 0.1 * before < 2 * before < of(found, WEIGHT, 3.0).ratio
    assert of(found, ACTIVATION, 0.0).ratio < 0.1 * before
    assert of(found, ACTIVATION, 0.0, control=True).ratio > 0.9 * before


def test_models_without_a_cause_before_an_attention_are_refused():
    with pytest.raises(InputError, match="a mixture of experts"):
        check(planted.MIXTURE)
    with pytest.raises(InputError, match="of 1 layer"):
        check(dataclasses.replace(planted.CONFIG, layers=1))
