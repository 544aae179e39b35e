from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sysout_jax.analysis.intervene import explicit_factor
from sysout_jax.analysis.intervene.conversion import with_prefix
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init

BASE = ModelConfig(
    vocab=23, context=13, layers=2, width=20, heads=2, mlp_width=11, norm="rms", mlp="swiglu"
)
FIRST = 5
SHAPES = {
    "learned": BASE,
    "grouped": replace(BASE, heads=4, kv_heads=2, head_dim=6, bias=True, norm="layer"),
    "rotary": replace(BASE, position="rope"),
    "none, capped": replace(BASE, position="none", attn_softcap=3.0, query_scale=0.9),
    "scanned": replace(BASE, norm_placement="sandwich").with_execution(scan_layers=True),
    "offset": replace(BASE, position_offset=2),
}


def model(config, seed=0):
    """A random model, far from its initial values: sinks and large logits are the point."""
    params = init(config, jax.random.key(seed))
    return jax.tree.map(lambda x: 6.0 * x if x.ndim > 1 else x, params)


def tokens(config, rows=3, length=11):
    drawn = jax.random.randint(jax.random.key(1), (rows, length), 0, config.vocab)
    return drawn.at[:, 0].set(FIRST)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_a_first_token_is_an_extra_key(config):
    params = model(config)
    ids = tokens(config)
    whole, _ = forward(config, params, ids)
    new_config, new_params = with_prefix(config, params, [FIRST])
    without, taps = forward(new_config, new_params, ids[:, 1:], {"attn_extra": None})
    np.testing.assert_allclose(without, whole[:, 1:], atol=2e-5 * float(jnp.abs(whole).max()))
    found = explicit_factor.factors(config, params, np.asarray(ids))
    np.testing.assert_allclose(1.0 - taps["attn_extra"], found.s, atol=1e-5)
    other, _ = forward(*with_prefix(config, params, [FIRST + 1]), ids[:, 1:])
    assert float(jnp.abs(other - whole[:, 1:]).max()) > 1e-2 * float(jnp.abs(whole).max())


def test_a_gate_that_is_the_factor_leaves_out_the_sinks_value_alone():
    """One layer whose first token has the value 0: S o^R is all there is (theory A1)."""
    config = replace(BASE, layers=1, heads=1)
    params = model(config)
    value = params["block_0"]["attn"]["value"]
    ids = tokens(config)
    _, taps = forward(config, params, ids, {"attn_norm": None})
    first = taps["attn_norm"][0, 0, 0]
    direction = first / jnp.linalg.norm(first)
    drained = value - jnp.einsum("D,KH->DKH", direction, jnp.einsum("D,DKH->KH", direction, value))
    params = {
        **params,
        "block_0": {**params["block_0"], "attn": {**params["block_0"]["attn"], "value": drained}},
    }
    found = explicit_factor.factors(config, params, np.asarray(ids[:1]))
    x, s = found.flat
    # 10 queries in 20 dimensions: a gate can be every factor exactly
    kernel, *_ = np.linalg.lstsq(x[0], special.logit(np.float64(s[0])), rcond=None)
    gates = explicit_factor.Gates(kernel[None], np.zeros((1, 1)))
    assert explicit_factor.explained(gates, found).min() > 0.999
    whole, _ = forward(config, params, ids[:1])
    without, _ = forward(*explicit_factor.with_gates(config, params, gates), ids[:1, 1:])
    np.testing.assert_allclose(without, whole[:, 1:], atol=1e-3 * float(jnp.abs(whole).max()))


def test_gates_that_were_planted_are_found():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 101, 5)).astype(np.float32)
    kernel, bias = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 3))
    logits = np.einsum("LBTD,LDN->LBNT", x, kernel) + bias[:, None, :, None]
    found = explicit_factor.Factors(x, special.expit(logits).astype(np.float32))
    gates = explicit_factor.fit_gates(found, ridge=0.0)
    np.testing.assert_allclose(gates.kernel, kernel, atol=2e-3)
    np.testing.assert_allclose(gates.bias, bias, atol=2e-3)
    assert explicit_factor.explained(gates, found).min() > 0.9999


def test_a_fit_is_calibrated_and_no_worse_than_a_constant():
    """Where S owes nothing to x, the gate is its mean, and R^2 about 0."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 4, 257, 3)).astype(np.float32)
    found = explicit_factor.Factors(x, rng.uniform(size=(1, 4, 2, 257)).astype(np.float32))
    gates, constant = explicit_factor.fit_gates(found), explicit_factor.constant_gates(found)
    np.testing.assert_allclose(
        gates(found.flat[0]).mean(axis=1), found.flat[1].mean(axis=1), atol=1e-3
    )
    np.testing.assert_allclose(explicit_factor.explained(constant, found), 0.0, atol=1e-6)
    assert (explicit_factor.explained(gates, found) > -1e-6).all()
    assert (explicit_factor.explained(gates, found) < 0.02).all()


def test_a_factor_of_zero_or_one_stays_finite():
    x = np.ones((1, 2, 7, 3), np.float32)
    found = explicit_factor.Factors(x, np.zeros((1, 2, 1, 7), np.float32))
    for gates in (explicit_factor.fit_gates(found), explicit_factor.constant_gates(found)):
        assert np.isfinite(gates.kernel).all()
        assert np.isfinite(gates.bias).all()
        assert gates(found.flat[0]).max() < 1e-3
    assert np.isnan(explicit_factor.explained(explicit_factor.constant_gates(found), found)).all()


def test_other_models_are_refused():
    with pytest.raises(InputError, match="variant=sigmoid: accepted: a model of variant softmax"):
        explicit_factor.check(replace(BASE, variant="sigmoid"))
    explicit_factor.check(BASE)
