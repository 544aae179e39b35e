"""A sink as parameters: the model without the tokens that begin every text says the same."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.intervene.conversion import (
    unrotated,
    with_bounds,
    with_constants,
    with_own,
    with_prefix,
)
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init, stack_blocks
from sysout_jax.model.execution import Execution
from sysout_jax.model.rope import Rope, Yarn
from sysout_jax.model.sink import WITHOUT, ExplicitSink
from sysout_jax.model.stream import streamed
from sysout_jax.training import checkpoint

BASE = ModelConfig(
    vocab=23, context=40, layers=3, width=20, heads=4, kv_heads=2, head_dim=6, mlp_width=11,
    mlp="swiglu", position="rope",
)  # fmt: skip
PREFIX = (5, 2, 5)
SHAPES = {
    "rotary": {},
    "rotary, no groups": {"kv_heads": None},
    "rotary, adjacent pairs, a part": {"rope": Rope(interleaved=True, fraction=0.67)},
    "yarn, scaled": {"rope": Yarn(factor=4.0, context=8)},
    "alibi": {"position": "alibi"},
    "alibi of Falcon": {"position": "alibi", "alibi_falcon": True},
    "learned": {"position": "learned", "position_offset": 2},
    "no positions": {"position": "none"},
    "normed heads": {"query_key_norm": "head"},
    "normed whole": {"query_key_norm": "whole", "norm": "layer", "bias": True},
    "a window": {"window": 4},
    "some windows, own base": {
        "window": 5,
        "window_layers": (0, 2),
        "rope": Rope(local_theta=90.0),
    },
    "no positions in a layer": {"rope_layers": (0, 2)},
    "no positions where no window is": {
        "window": 5,
        "window_layers": (1,),
        "rope_layers": (1,),
        "rope": Rope(local_theta=90.0),
    },
    "norm of embeddings": {"embed_norm": True, "norm": "layer", "bias": True, "position": "alibi"},
    "scaled branches and logits": {"residual_scale": 0.6, "logit_scale": 0.5},
    "capped, clipped": {"attn_softcap": 3.0, "query_scale": 0.9, "clip_qkv": 2.0},
    "blocks of queries": {"execution": Execution(query_block=4)},
    "post": {"norm_placement": "post", "norm": "layer", "bias": True},
    "sandwich": {"norm_placement": "sandwich", "norm_plus_one": True},
    "side by side": {"parallel_block": "shared"},
    "experts": {"experts": 3},
    "sink logit": {"variant": "sink_logit"},
    "an extra key": {"variant": "attention_bias"},
    "gates": {"variant": "context_scale"},
    "steeper over more keys": {"variant": "scalable_softmax"},
    "no sum of one": {"variant": "relu"},
}


def model(config, seed=0):
    """A random model, far from its initial values: sinks and large logits are the point."""
    params = init(config, jax.random.key(seed))
    return jax.tree.map(lambda x: 3.0 * x if x.ndim > 1 else x, params)


def texts(config, begin, rows=3, length=12):
    drawn = jax.random.randint(jax.random.key(1), (rows, length), 0, config.vocab)
    first = jnp.broadcast_to(jnp.asarray(begin, jnp.int32), (rows, len(begin)))
    return jnp.concatenate([first, drawn], axis=1)


# What layers that are scanned do another way: windows and bases by layer, routers, blocks.
SCANNED = ("rotary", "some windows, own base", "experts", "blocks of queries")


@pytest.mark.parametrize(
    ("shape", "scan", "count"),
    [*((name, False, 3) for name in SHAPES), *((name, True, 1) for name in SCANNED)],
)
def test_tokens_that_begin_every_text_are_parameters(shape, scan, count):
    config = replace(BASE, **SHAPES[shape]).with_execution(scan_layers=scan)
    params, begin = model(config.with_execution(scan_layers=False)), PREFIX[:count]
    params = stack_blocks(params) if scan else params
    ids = texts(config, begin)
    whole, _ = forward(config, params, ids)
    changed, more = with_prefix(config, params, begin)
    rest, _ = forward(changed, more, ids[:, count:])
    scale = float(jnp.abs(whole).max())
    np.testing.assert_allclose(rest, whole[:, count:], rtol=0, atol=1e-4 * scale)
    without, _ = forward(config, params, ids[:, count:])
    assert float(jnp.abs(without - rest).max()) > 1e-2 * scale


def test_a_first_token_is_a_key_turned_back_by_one_position():
    """T1 for the library's own extra key, in float64: k' = R_{-1} k_0 where the text begins at
    position 0. The conversion says the same with the text at position 1."""
    config = replace(BASE, layers=1)
    params = model(config)
    taps = forward(config, params, jnp.array([[5]]), {"key": None, "value": None})[1]
    key = np.asarray(taps["key"][0, 0, 0], np.float64)
    angle = -(config.rope.theta ** (-np.arange(0, 6, 2) / 6))
    a, b = key[:, :3], key[:, 3:]
    turned = np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=1
    )
    own = {"variant_bias_key": turned[None], "variant_bias_value": taps["value"][:, 0, 0]}
    ids = texts(config, [5])[:, 1:]
    expected, _ = forward(
        replace(config, variant="attention_bias"), with_own(params, "attn", own), ids
    )
    found, _ = forward(*with_prefix(config, params, [5]), ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_taps_see_the_text_and_the_mass_beside_it():
    config, params, count = replace(BASE, window=6), model(BASE), 3
    names = dict.fromkeys(("attn_weights", "attn_logits", "attn_extra", "key", "attn_mix"))
    ids = texts(config, PREFIX)
    _, whole = forward(config, params, ids, names)
    changed, more = with_prefix(config, params, PREFIX)
    _, found = forward(changed, more, ids[:, count:], names)
    for name, axes in (("attn_weights", 2), ("attn_logits", 2), ("key", 1), ("attn_mix", 1)):
        within = whole[name]
        if axes == 2:
            within = within[..., count:, count:]
            seen = np.tril(np.ones(within.shape[-2:], bool))
            within, found[name] = within[..., seen], found[name][..., seen]
        else:
            within = within[:, :, count:]
        np.testing.assert_allclose(found[name], within, rtol=0, atol=2e-5, err_msg=name)
    mass = whole["attn_weights"][..., count:, :count].sum(axis=-1)
    np.testing.assert_allclose(found["attn_extra"], mass, rtol=0, atol=1e-5)
    assert float(found["attn_extra"][..., 5:].max()) == 0.0  # beyond the window


def test_an_edit_of_the_mass_takes_the_keys_away():
    """At a mass of zero the output is what the text's own keys gave."""
    params = model(BASE)
    ids = texts(BASE, PREFIX)[:, 3:]
    changed, more = with_prefix(BASE, params, PREFIX)
    names = dict.fromkeys(("attn_weights", "value", "attn_mix"))
    none = so.Edit(lambda mass, layer: 0.0 * mass, layers=0)
    _, taps = forward(changed, more, ids, names, {"attn_extra": none})
    weights, v = (np.asarray(taps[name][0], np.float64) for name in ("attn_weights", "value"))
    expected = np.einsum("bnts,bsnh->btnh", weights, np.repeat(v, 2, axis=2))
    np.testing.assert_allclose(taps["attn_mix"][0], expected, rtol=0, atol=1e-5)


def test_a_text_of_other_lengths_and_layers_in_parts():
    """Long enough for attention in parts of the queries; streamed layer by layer; a pytree."""
    config = replace(BASE, context=400)
    params = model(config)
    ids = texts(config, PREFIX, rows=1, length=270)
    whole, _ = forward(config, params, ids)
    changed, more = with_prefix(config, params, PREFIX)
    scale = float(jnp.abs(whole).max())
    rest, _ = forward(changed, more, ids[:, 3:])
    np.testing.assert_allclose(rest, whole[:, 3:], rtol=0, atol=1e-4 * scale)
    one, _ = streamed(changed, more.__getitem__, ids[:, 3:40])
    np.testing.assert_allclose(one, whole[:, 3:40], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_it_is_saved_and_loaded(tmp_path, scan):
    config = BASE.with_execution(scan_layers=scan)
    changed, more = with_prefix(config, model(config), PREFIX)
    stacked = jax.tree.map(lambda x: x[None], more)
    checkpoint.save(tmp_path / "model", changed, stacked, [0])
    back = so.load(tmp_path / "model")
    assert back.config == changed
    ids = texts(config, [])
    np.testing.assert_array_equal(so.apply(back, ids)[0], so.apply(so.Model(changed, more), ids)[0])


def test_an_architecture_of_another_kind_in_a_saved_model_is_one_line(tmp_path):
    changed, more = with_prefix(BASE, model(BASE), PREFIX)
    checkpoint.save(tmp_path / "model", changed, jax.tree.map(lambda x: x[None], more), [0])
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"replaces_first"', '"displaces_first"'))
    with pytest.raises(InputError, match=r"config\.json: "):
        so.load(tmp_path / "model")


def test_families_cannot_say_it(tmp_path):
    config = replace(BASE, tied=False, mlp_width=12)
    changed, more = with_prefix(config, model(config), PREFIX)
    with pytest.raises(InputError, match=r"the llama family has no .*sink="):
        so.export(so.Model(changed, more), tmp_path / "out", "llama")


@pytest.mark.parametrize("variant", WITHOUT)
def test_variants_that_cannot_have_it(variant):
    config = replace(BASE, variant=variant)
    accepted = f"variant={variant}: .*; accepted: one without value_gate"
    with pytest.raises(InputError, match=accepted):
        with_prefix(config, model(config), PREFIX)


@pytest.mark.parametrize("variant", ["stick_breaking", "forgetting", "elastic_softmax", "entmax"])
def test_of_variants_that_look_back_the_first_token_is_parameters(variant):
    """One key before the text; of several a forget gate would have to fade each by the next."""
    config = replace(BASE, variant=variant)
    params, ids = model(config), texts(config, PREFIX[:1])
    whole, _ = forward(config, params, ids)
    rest, _ = forward(*with_prefix(config, params, PREFIX[:1]), ids[:, 1:])
    scale = float(jnp.abs(whole).max())
    np.testing.assert_allclose(rest, whole[:, 1:], rtol=0, atol=1e-4 * scale)
    if variant == "forgetting":
        with pytest.raises(InputError, match="do not forget one another; accepted: with one key"):
            with_prefix(config, params, PREFIX)


@pytest.mark.parametrize(
    ("config", "prefix", "line"),
    [
        (BASE, (), "prefix=: accepted: ids from 0 to 22, at least one"),
        (BASE, (3, 23), "prefix=3,23: accepted: ids from 0 to 22"),
        (BASE, (-1,), "prefix=-1: "),
        (
            replace(BASE, position="learned", context=3),
            (1, 2, 3),
            "prefix=3 tokens: .* fewer than 3",
        ),
    ],
)
def test_other_prefixes_are_refused(config, prefix, line):
    with pytest.raises(InputError, match=line):
        with_prefix(config, model(config), prefix)


def test_a_second_conversion_is_refused():
    with pytest.raises(InputError, match="model: its sink is explicit; accepted: one that was not"):
        with_prefix(*with_prefix(BASE, model(BASE), PREFIX), PREFIX)


@pytest.mark.parametrize(
    ("sink", "line"),
    [
        ({"keys": 0}, "sink=0 keys: accepted: at least 1"),
        (
            {"keys": 2, "replaces_first": True},
            "sink=2 keys: accepted: 1 in the first token's place",
        ),
        ({"replaces_first": True, "layers": (1, 3)}, "sink=layers 1,3: accepted: .* from 0 to 2"),
        ({"replaces_first": True, "silent": (1, 0)}, "sink=silent 1,0: "),
        ({"silent": (1,)}, "sink=.*accepted: replaces_first=True"),
        ({"layers": (1,)}, "sink=.*accepted: replaces_first=True"),
    ],
)
def test_sinks_that_contradict_themselves_are_refused(sink, line):
    with pytest.raises(InputError, match=line):
        replace(BASE, sink=ExplicitSink(**sink))


def test_the_config_is_plain_data():
    config = replace(BASE, sink=ExplicitSink(replaces_first=True, layers=(1, 2), silent=(0,)))
    assert asdict(config)["sink"]["layers"] == (1, 2)
    assert hash(config) != hash(BASE)


@pytest.mark.parametrize(
    "shape",
    [
        {"mlp": "gelu"}, {"experts": 3}, {"norm": "layer", "norm_placement": "out"},
        {"parallel_block": "shared"},
    ],
)  # fmt: skip
def test_a_silent_layer_adds_nothing_at_the_first_token(shape):
    """Not the bias of its MLP either, nor that of a norm of the output."""
    sink = ExplicitSink(replaces_first=True, layers=(1, 2), silent=(1,))
    config = replace(BASE, bias=True, sink=sink, **shape)
    params = jax.tree.map(lambda x: x + 0.5, init(config, jax.random.key(0)))
    added = forward(config, params, texts(config, [5]), {"down_out": None})[1]["down_out"]
    assert not added[1, :, 0].any()
    assert added[1, :, 1:].all()
    assert added[::2].all()


# ------------------------------------------------------------------- constants of running text


@pytest.mark.parametrize(
    ("shape", "scan"),
    [*((name, True) for name in SHAPES if name != "gates"), *((name, False) for name in SCANNED)],
)
def test_constants_stand_for_a_first_token_that_is_one(shape, scan):
    """Where all texts begin with one token its key and value are constants, and whatever that token
    becomes without its writes, the others are as they were."""
    config = replace(BASE, **SHAPES[shape]).with_execution(scan_layers=scan)
    params = model(config.with_execution(scan_layers=False))
    params = stack_blocks(params) if scan else params
    ids = texts(config, [5], length=14)
    whole, taps = forward(config, params, ids, {"key": lambda k: k[0], "value": lambda v: v[0]})
    constants = {
        "key": unrotated(config, np.asarray(taps["key"])[:, :1, None])[:, 0, 0],
        "value": taps["value"][:, 0],
    }  # fmt: skip
    changed, more = with_constants(config, params, constants, (1, 2), (0,))
    names = {"attn_weights": None, "attn_extra": None, "down_in": lambda x: x[0]}
    rest, found = forward(changed, more, ids, {} if config.execution.query_block else names)
    scale = float(jnp.abs(whole).max())
    np.testing.assert_allclose(rest[:, 1:], whole[:, 1:], rtol=0, atol=1e-4 * scale)
    if config.execution.query_block:
        return
    assert float(jnp.abs(rest[:, 0] - whole[:, 0]).max()) > 1e-3 * scale
    assert not found["attn_weights"][1:, ..., 0].any()
    assert not found["attn_extra"][0].any() or config.variant in ("sink_logit", "attention_bias")
    assert not found["down_in"][0].any()
    assert found["down_in"][1:].any()


def test_bounds_cut_the_inputs_of_the_down_projection():
    changed, more = with_bounds(
        *with_prefix(BASE, model(BASE), PREFIX), np.array([0.02, 9e9, 0.03])
    )
    ids = texts(BASE, [])
    _, found = forward(changed, more, ids, {"down_in": None})
    _, free = forward(*with_prefix(BASE, model(BASE), PREFIX), ids, {"down_in": None})
    np.testing.assert_allclose(found["down_in"][0], jnp.clip(free["down_in"][0], -0.02, 0.02))
    assert float(jnp.abs(found["down_in"][1]).max()) > 0.03
    assert float(jnp.abs(found["down_in"][2]).max()) == pytest.approx(0.03)
