"""The decoder against a float64 NumPy decoder written from the formulas, and its properties."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core.attention import VARIANTS
from sysout_jax.model import block as block_module
from sysout_jax.model.config import PLACEMENTS, ModelConfig
from sysout_jax.model.decoder import (
    forward,
    init,
    param_axes,
    stack_blocks,
    taps_of,
    unstack_blocks,
)
from sysout_jax.model.execution import DTYPES, Execution
from sysout_jax.model.rope import RULES, Dynamic, Linear, Llama3, LongRope, Rope, Yarn, by_rule
from sysout_jax.model.sink import ExplicitSink
from tests.model.noise import noisy, shapes
from tests.refusing import refusal

BASE = ModelConfig(
    vocab=17, context=7, layers=2, width=13, heads=4, kv_heads=2, head_dim=6, mlp_width=19
)
GPT2 = dataclasses.replace(
    BASE, kv_heads=None, norm="layer", position="learned", mlp="gelu", bias=True, tied=True
)
LLAMA = dataclasses.replace(BASE, norm="rms", position="rope", mlp="swiglu", tied=False)
TOKENS = np.random.default_rng(1).integers(0, 17, (3, 7)).astype(np.int32)


@cache
def compiled(config):
    return jax.jit(lambda params, tokens: forward(config, params, tokens)[0])


def logits(config, params, tokens=TOKENS):
    return np.asarray(compiled(config)(params, jnp.asarray(tokens)), np.float64)


# ------------------------------------------------------------------------- the oracle


def oracle(c, params, tokens):
    """Logits [B, T, V] in float64, one position, head and key at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    return np.stack([_sequence(c, params, row) for row in tokens])


def _sequence(c, p, row):
    x = np.stack([p["embed"][token] for token in row])
    if c.position == "learned":
        x = x + p["positions"][: len(row)]
    for layer in range(c.layers):
        block = p[f"block_{layer}"]
        for name, f in (("attn", _attention), ("mlp", _mlp)):
            norm = partial(_norm, c, block.get(f"{name}_norm"))
            if c.norm_placement == "pre":
                x = x + f(c, block[name], norm(x))
            elif c.norm_placement == "post":
                x = norm(x + f(c, block[name], x))
            else:
                x = x + _norm(c, block[f"{name}_out_norm"], f(c, block[name], norm(x)))
    if c.norm_placement != "post":
        x = _norm(c, p["final_norm"], x)
    return x @ (p["embed"].T if c.tied else p["head"])


def _norm(c, p, x, kind=None):
    kind = kind or c.norm
    if kind == "tanh":
        return p["scale"] * np.tanh(p["slope"] * x) + p.get("bias", 0)
    if kind == "single_scale":
        return _norm(c, {"scale": p["gain"]}, x, "rms")
    if kind == "pre_affine":
        return _norm(c, p, p["before"] * x, "rms")
    if kind == "gated":
        n = _norm(c, p, x, "rms")
        hidden = n @ p["gate_down"]
        return n / (1 + np.exp(-(hidden / (1 + np.exp(-hidden))) @ p["gate_up"]))
    if kind == "rms":
        return p["scale"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps)
    centred = x - x.mean(-1, keepdims=True)
    return p["scale"] * centred / np.sqrt(x.var(-1, keepdims=True) + c.norm_eps) + p.get("bias", 0)


def _attention(c, p, x):
    n, k, h = c.heads, c.kv_heads or c.heads, c.head_dim or c.width // c.heads
    q = np.einsum("td,dnh->tnh", x, p["query"]) + p.get("query_bias", 0)
    keys = np.einsum("td,dkh->tkh", x, p["key"]) + p.get("key_bias", 0)
    v = np.einsum("td,dkh->tkh", x, p["value"]) + p.get("value_bias", 0)
    out = np.zeros_like(q)
    for t in range(len(x)):
        for head in range(n):
            group = head // (n // k)
            first = 0 if c.window is None else max(0, t - c.window + 1)
            rotate = partial(_rotate, theta=c.rope.theta) if c.position == "rope" else _as_is
            query = rotate(q[t, head], t)
            s = [query @ rotate(keys[j, group], j) / np.sqrt(h) for j in range(first, t + 1)]
            values = list(v[first : t + 1, group])
            if c.variant == "attention_bias":
                s.append(query @ p["variant_bias_key"][group] / np.sqrt(h))
                values.append(p["variant_bias_value"][group])
            weights = np.exp(s) / np.exp(s).sum()
            out[t, head] = weights @ np.stack(values)
            if c.variant == "context_scale":
                z = x[t] @ p["variant_gate_kernel"][:, head] + p["variant_gate_bias"][head]
                out[t, head] *= 2 / (1 + np.exp(-z))
    return np.einsum("tnh,nhd->td", out, p["out"]) + p.get("out_bias", 0)


def _as_is(x, position):
    return x


def _rotate(x, position, theta):
    """Each channel pair (i, i + H/2) as a complex number, turned by position * theta^(-2i/H)."""
    half = len(x) // 2
    angle = position * theta ** (-2 * np.arange(half) / len(x))
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag])


def _mlp(c, p, x):
    gelu = lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))  # noqa: E731
    up = x @ p["up"] + p.get("up_bias", 0)
    if c.mlp == "relu":
        hidden = np.maximum(up, 0)
    elif c.mlp == "gelu":
        hidden = gelu(up)
    else:
        gate = x @ p["gate"] + p.get("gate_bias", 0)
        hidden = up * (gelu(gate) if c.mlp == "geglu" else gate / (1 + np.exp(-gate)))
    return hidden @ p["down"] + p.get("down_bias", 0)


CASES = {
    "gpt2": GPT2,
    "gpt2 window 3": dataclasses.replace(GPT2, window=3),
    "gpt2 tanh": dataclasses.replace(GPT2, norm="tanh", norm_eps=1e-5),
    "llama gated": dataclasses.replace(LLAMA, norm="gated", norm_rank=3),
    "llama pre-affine": dataclasses.replace(LLAMA, norm="pre_affine", norm_placement="sandwich"),
    "llama single scale": dataclasses.replace(LLAMA, norm="single_scale"),
    "gpt2 post": dataclasses.replace(GPT2, norm_placement="post", mlp="relu"),
    "gpt2 sandwich": dataclasses.replace(GPT2, norm_placement="sandwich", tied=False),
    "gpt2 geglu": dataclasses.replace(GPT2, mlp="geglu", norm_eps=0.3),
    "gpt2 no bias": dataclasses.replace(GPT2, bias=False),
    "gpt2 one KV head": dataclasses.replace(GPT2, kv_heads=1, variant="attention_bias"),
    "llama": LLAMA,
    "llama tied": dataclasses.replace(LLAMA, tied=True, rope=Rope(theta=50.0)),
    "llama window 1": dataclasses.replace(LLAMA, window=1),
    "llama sandwich, bias": dataclasses.replace(LLAMA, norm_placement="sandwich", bias=True),
    "llama post, window": dataclasses.replace(LLAMA, norm_placement="post", window=4),
    "llama no positions": dataclasses.replace(LLAMA, position="none", variant="context_scale"),
    "llama three layers": dataclasses.replace(LLAMA, layers=3, variant="attention_bias"),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_formulas(name):
    config = CASES[name]
    params = noisy(config)
    expected = oracle(config, params, TOKENS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits(config, params), expected, rtol=2e-5, atol=2e-5)


# ------------------------------------------------------------------------- scanned layers


def test_scanned_layers_equal_unrolled_ones():
    config = dataclasses.replace(LLAMA, bias=True, norm_placement="sandwich", variant="head_gate")
    scanned = config.with_execution(scan_layers=True)
    params = noisy(config)
    target = jnp.asarray(np.random.default_rng(2).standard_normal((3, 7, 17)), jnp.float32)

    def loss(config, params):
        out = forward(config, params, jnp.asarray(TOKENS))[0]
        return jnp.mean(out * target), out

    run = [jax.jit(jax.value_and_grad(partial(loss, c), has_aux=True)) for c in (config, scanned)]
    (_, out), grads = run[0](params)
    (_, out_scanned), grads_scanned = run[1](stack_blocks(params))
    np.testing.assert_allclose(out_scanned, out, rtol=1e-6, atol=1e-6 * np.abs(out).max())
    largest = max(jnp.abs(g).max() for g in jax.tree.leaves(grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * largest),
        unstack_blocks(grads_scanned),
        grads,
    )


def test_stacking_and_back():
    params = noisy(dataclasses.replace(GPT2, layers=11))  # block_10 sorts before block_2
    stacked = stack_blocks(params)
    there = shapes(dataclasses.replace(GPT2, layers=11).with_execution(scan_layers=True))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, there)
    np.testing.assert_array_equal(
        stacked["blocks"]["mlp"]["up"][10], params["block_10"]["mlp"]["up"]
    )
    back = unstack_blocks(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


# ------------------------------------------------------------------------- fields of the config

ROPE = {"position": "rope"}
LLAMA3 = Llama3(factor=8.0, context=16, theta=4.0)
YARN = Yarn(factor=8.0, context=32, theta=90.0)
LONG = LongRope(short=(1.0, 2.0, 3.0), long=(2.0, 1.0, 3.0))
# field -> (what it changes, another value, what the base must be for it to matter)
FIELDS = {
    "vocab": ("shapes", 19, {}),
    "context": ("shapes", 11, {}),
    "layers": ("shapes", 3, {}),
    "width": ("shapes", 11, {}),
    "heads": ("shapes", 2, {}),
    "kv_heads": ("shapes", 4, {}),
    "head_dim": ("shapes", 4, {}),
    "mlp_width": ("shapes", 23, {}),
    "variant": ("logits", "sigmoid", {}),
    "norm": ("logits", "layer", {}),
    "norm_placement": ("shapes", "sandwich", {}),
    "norm_eps": ("logits", 1e-2, {}),
    "norm_rank": ("shapes", 3, {"norm": "gated"}),
    "norm_scale": ("shapes", False, {}),
    "norm_plus_one": ("logits", True, {}),
    "parallel_block": ("shapes", "shared", {}),
    "position": ("shapes", "rope", {}),
    "position_offset": ("logits", 2, {"context": 9}),
    "rope": ("logits", Rope(theta=100.0), ROPE),
    "alibi_falcon": ("logits", True, {"position": "alibi"}),
    "mlp": ("logits", "relu", {}),
    "mlp_limit": ("logits", 0.3, {"mlp": "swiglu"}),
    "experts": ("shapes", 3, {}),
    "experts_per_token": ("logits", 1, {"experts": 3}),
    "experts_sum_to_one": ("logits", False, {"experts": 3}),
    "bias": ("shapes", True, {}),
    "norm_bias": ("shapes", True, {"norm": "layer"}),
    "qkv_bias": ("shapes", True, {}),
    "out_bias": ("shapes", True, {}),
    "mlp_bias": ("shapes", True, {}),
    "head_bias": ("shapes", True, {}),
    "query_key_norm": ("shapes", "head", {}),
    "query_scale": ("logits", 0.1, {}),
    "query_scale_by_layer": ("logits", True, {}),
    "clip_qkv": ("logits", 0.5, {}),
    "attn_softcap": ("logits", 0.5, {}),
    "final_softcap": ("logits", 0.5, {}),
    "logit_scale": ("logits", 0.5, {}),
    "residual_scale": ("logits", 0.5, {}),
    "embed_scale": ("logits", 3.0, {}),
    "embed_norm": ("shapes", True, {}),
    "embed_width": ("shapes", 5, {}),
    "tied": ("shapes", True, {}),
    "window": ("logits", 3, {}),
    "sink": ("shapes", ExplicitSink(), {}),
    "window_layers": ("logits", (1,), {"window": 3}),
    "rope_layers": ("logits", (1,), {"position": "rope"}),
    "init_std": ("init", 0.03, {}),
    "scaled_residual_init": ("init", True, {}),
    "execution": ("nothing", Execution(remat="block", query_block=3), {}),  # how, not what
}
# (rule, field) -> (another value, the base)
TURNED = {
    (Rope, "theta"): (100.0, Rope()),
    (Rope, "fraction"): (0.34, Rope()),
    (Rope, "interleaved"): (True, Rope()),
    (Rope, "local_theta"): (3.0, Rope()),
    (Linear, "factor"): (3.0, Linear()),
    (Dynamic, "factor"): (3.0, Dynamic(context=3)),
    (Dynamic, "context"): (3, Dynamic(factor=4.0)),
    (Llama3, "factor"): (3.0, LLAMA3),
    (Llama3, "context"): (5, LLAMA3),
    (Llama3, "low"): (0.1, LLAMA3),
    (Llama3, "high"): (9.0, LLAMA3),
    (Yarn, "factor"): (3.0, YARN),
    (Yarn, "context"): (9, YARN),
    (Yarn, "fast"): (0.9, YARN),
    (Yarn, "slow"): (0.05, YARN),
    (Yarn, "truncate"): (False, YARN),
    (Yarn, "scale"): (2.0, YARN),
    (LongRope, "factor"): (3.0, LONG),
    (LongRope, "context"): (5, LONG),
    (LongRope, "short"): ((1.0, 1.0, 3.0), LONG),
    (LongRope, "long"): ((5.0, 1.0, 3.0), dataclasses.replace(LONG, context=5)),
    (LongRope, "scale"): (2.0, LONG),
}  # fmt: skip
DEFAULTED = {  # what None stands for, and a value that must equal it
    "kv_heads": 4, "head_dim": 3, "mlp_width": 48, "window": 7, "qkv_bias": False,
    "out_bias": False, "mlp_bias": False, "norm_bias": False, "query_scale": 3**-0.5,
}  # fmt: skip


def test_every_config_field_has_a_row():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("name", FIELDS)
def test_every_config_field_matters(name):
    what, value, needs = FIELDS[name]
    base = dataclasses.replace(BASE, **needs)
    other = dataclasses.replace(base, **{name: value})
    assert getattr(base, name) != value
    same_shapes = shapes(base) == shapes(other)
    assert same_shapes == (what != "shapes")
    if what in ("logits", "nothing"):
        params = noisy(base)
        moved = np.abs(logits(base, params) - logits(other, params)).max()
        assert moved > 1e-3 if what == "logits" else moved < 1e-5
    if what == "init":
        a, b = (init(config, jax.random.key(3)) for config in (base, other))
        assert any(
            not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )


def test_every_field_of_a_rotary_rule_has_a_row():
    base = {field.name for field in dataclasses.fields(Rope)}
    named = {(Rope, name) for name in base} | {
        (kind, field.name)
        for kind in RULES.values()
        for field in dataclasses.fields(kind)
        if field.name not in base
    }
    assert set(TURNED) == {(kind, name) for kind, name in named if name != "rule"}


@pytest.mark.parametrize(("kind", "name"), TURNED)
def test_every_field_of_a_rotary_rule_matters(kind, name):
    value, rope = TURNED[kind, name]
    assert type(rope) is kind
    assert getattr(rope, name) != value
    base = dataclasses.replace(BASE, position="rope", window=7, rope=rope)
    other = dataclasses.replace(base, rope=dataclasses.replace(rope, **{name: value}))
    params = noisy(base)
    assert np.abs(logits(base, params) - logits(other, params)).max() > 1e-3


def test_another_rule_keeps_the_numbers_that_it_has():
    yarn = Yarn(theta=7.0, factor=3.0, context=5, fast=9.0, fraction=0.5)
    assert by_rule(yarn, "llama3") == Llama3(theta=7.0, factor=3.0, context=5, fraction=0.5)
    assert by_rule(yarn, "plain") == Rope(theta=7.0, fraction=0.5)
    assert by_rule(yarn, "yarn") == yarn


@pytest.mark.parametrize("name", DEFAULTED)
def test_what_none_stands_for(name):
    base = ModelConfig(vocab=17, context=7, width=12, heads=4)
    spelled = dataclasses.replace(base, **{name: DEFAULTED[name]})
    assert shapes(base) == shapes(spelled)
    params = noisy(base)
    same = {"rtol": 0, "atol": 1e-5 if name == "query_scale" else 0}
    np.testing.assert_allclose(logits(base, params), logits(spelled, params), **same)


# ------------------------------------------------------------------------- causality


def influence(config):
    """[T, S]: whether anything of position s of the embeddings moves the logits of position t."""
    params = noisy(config)
    cotangent = jnp.asarray(np.random.default_rng(3).standard_normal((7, 1, 17)), jnp.float32)

    def at(shift, t, direction):
        add = lambda x, layer: x + jnp.where(layer == 0, shift, 0.0)  # noqa: E731
        out = forward(config, params, jnp.asarray(TOKENS[:1]), edits={"block_in": add})[0]
        return jnp.sum(out[0, t] * direction[0])

    grads = jax.jit(jax.vmap(jax.grad(at), (None, 0, 0)))(
        jnp.zeros((1, 7, config.width)), jnp.arange(7), cotangent
    )
    assert np.isfinite(grads).all()
    return np.abs(grads[:, 0]).max(-1)


WINDOWED = dataclasses.replace(LLAMA, window=2)


@pytest.mark.parametrize(
    ("config", "reach"),
    [
        (GPT2, 7),
        (LLAMA, 7),
        (dataclasses.replace(GPT2, norm_placement="post").with_execution(scan_layers=True), 7),
        (dataclasses.replace(LLAMA, norm_placement="sandwich"), 7),
        (WINDOWED, 3),  # two layers of two keys
        (dataclasses.replace(WINDOWED, layers=1), 2),
        (dataclasses.replace(WINDOWED, layers=3).with_execution(scan_layers=True), 4),
    ],
    ids=["gpt2", "llama", "post", "sandwich", "window", "window, 1 layer", "window, 3 layers"],
)
def test_causality(config, reach):
    """The gradient of position t's logits vanishes exactly at later positions, and at those
    beyond the reach of all windows; everywhere else it does not."""
    distance = np.arange(7)[:, None] - np.arange(7)[None, :]
    np.testing.assert_array_equal(influence(config) > 0, (distance >= 0) & (distance < reach))


# One for each way in which an input enters; of the others core's tests show it.
@pytest.mark.parametrize("variant", [
    "context_scale", "value_gate", "value_state_gate", "attention_bias", "differential",
    "exclusive", "scalable_softmax",
])  # fmt: skip
def test_causality_of_variants(variant):
    found = influence(dataclasses.replace(LLAMA, variant=variant, layers=1))
    np.testing.assert_array_equal(np.triu(found, 1), np.zeros((7, 7)))
    assert (np.diag(found) > 0).all()
    assert (np.tril(found, -1) > 0).any()


# ------------------------------------------------------------------------- axes


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_axes_are_those_of_the_parameters(variant, scan):
    for style in (GPT2, dataclasses.replace(LLAMA, bias=True, norm_placement="sandwich")):
        config = dataclasses.replace(style, variant=variant).with_execution(scan_layers=scan)
        axes = param_axes(config)
        assert jax.tree.structure(axes) == jax.tree.structure(shapes(config))
        resolved = jax.tree.map(
            lambda text, config=config: tuple(config.sizes[x] for x in text if x.isalpha()), axes
        )
        found = jax.tree.map(lambda x: x.shape, shapes(config))
        assert resolved == found
        stacked = ["blocks" in jax.tree_util.keystr(p) for p, _ in _leaves(axes)]
        assert stacked == [text.startswith("L ") for _, text in _leaves(axes)]
        own = (axes["blocks"] if scan else axes["block_1"])["attn"]
        for name, param in VARIANTS[variant].params.items():
            assert own[f"variant_{name}"] == ("L " if scan else "") + param.axes


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


# ------------------------------------------------------------------------- initial values


@cache
def initial(config, seed=0):
    return init(config, jax.random.key(seed))


WIDE = ModelConfig(  # large enough to estimate a standard deviation; few shapes to compile
    vocab=64, context=64, layers=3, width=64, heads=1, mlp_width=64, variant="attention_bias",
    bias=True, norm="layer", init_std=0.05,
)  # fmt: skip


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("scaled", [False, True], ids=["flat", "scaled residual"])
def test_initial_values_are_as_declared(scan, scaled):
    config = dataclasses.replace(WIDE, scaled_residual_init=scaled).with_execution(scan_layers=scan)
    counted = 0
    for path, value in _leaves(initial(config)):
        name = path[-1].key
        assert value.dtype == jnp.float32
        if name == "scale":
            np.testing.assert_array_equal(value, np.ones(value.shape))
        elif name == "bias" or name in (
            "query_bias",
            "key_bias",
            "value_bias",
            "out_bias",
            "up_bias",
            "down_bias",
        ):
            np.testing.assert_array_equal(value, np.zeros(value.shape))
        else:
            residual = scaled and name in ("out", "down")
            std = 0.05 / np.sqrt(2 * 3) if residual else 0.05
            spread = 5 / np.sqrt(value.size)  # five standard errors
            assert abs(np.mean(value)) < spread * std
            assert np.std(value) == pytest.approx(std, rel=spread)
            if path[0].key == "blocks":
                assert len({np.asarray(layer).tobytes() for layer in value}) == 3
            counted += 1
    per_layer = 6 + 2  # four projections of attention, two of the MLP, two of the variant
    assert counted == 3 + per_layer * (1 if scan else 3)


def test_constants_of_variants():
    config = dataclasses.replace(BASE, variant="head_gate", layers=1)
    own = initial(config)["block_0"]["attn"]
    np.testing.assert_array_equal(own["variant_gate_bias"], np.full(4, 5.0))
    np.testing.assert_array_equal(own["variant_gate_kernel"], np.zeros((13, 4)))


def test_same_key_same_bits():
    again = init(BASE, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, initial(BASE))
    for one, other in zip(
        jax.tree.leaves(initial(BASE)), jax.tree.leaves(initial(BASE, 1)), strict=True
    ):
        assert (one == 1).all() or not np.any(one == other)


def test_every_parameter_has_its_own_values():
    seen = [
        np.asarray(value).ravel()[:12].tobytes()
        for path, value in _leaves(initial(BASE))
        if path[-1].key != "scale"
    ]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "context_scale"},
        {"variant": "attention_bias"},
        {"bias": True},
        {"tied": True},
        {"layers": 1},
        {"position": "none"},
        {"norm_placement": "sandwich"},
    ],
    ids=str,
)
def test_values_do_not_depend_on_other_parameters(change):
    here = dict(_leaves(initial(BASE)))
    there = dict(_leaves(initial(dataclasses.replace(BASE, **change))))
    common = here.keys() & there.keys()
    assert len(common) >= len(here) // 2
    for path in common:
        np.testing.assert_array_equal(here[path], there[path])


# ------------------------------------------------------------------------- dtype, length, jit


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_bfloat16_is_close(placement):
    """Eight bits of mantissa: 0.4% per operation, some twenty operations deep."""
    config = dataclasses.replace(LLAMA, norm_placement=placement)
    half = config.with_execution(dtype="bfloat16")
    params = noisy(config)
    out = compiled(half)(params, jnp.asarray(TOKENS))
    assert out.dtype == jnp.bfloat16
    exact = logits(config, params)
    error = np.abs(np.asarray(out, np.float64) - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
    ("changes", "taps", "fused"),
    [
        ({}, (), True),
        ({"kv_heads": 2, "query_scale": 0.1}, (), True),
        ({"variant": "attention_bias"}, ("attn_mix",), True),
        ({"window": 2}, (), True),
        ({"window": 2, "window_layers": (1,), "variant": "sink_logit"}, (), True),
        ({"window": 2, "window_layers": (1,), "execution": Execution(scan_layers=True)}, (), True),
        ({}, ("attn_weights",), False),
        ({}, ("query+attn_logits",), False),
        ({"variant": "sink_logit", "head_dim": 128}, (), False),
    ],
    ids=str,
)
def test_a_fused_kernel_mixes_where_it_can(changes, taps, fused, monkeypatch):
    """With the same logits; not where something asks for what it does not make, or where an extra
    key makes heads too large."""
    plain = dataclasses.replace(LLAMA, **({"head_dim": 8} | changes))
    plain = plain.with_execution(dtype="bfloat16")
    config = plain.with_execution(flash=True)
    called = []
    real = jax.nn.dot_product_attention

    def counted(*arguments, **options):
        called.append(options)
        return real(*arguments, **options)

    params = noisy(config)
    taps_of(config)  # traces the model without taps, once
    monkeypatch.setattr(jax.nn, "dot_product_attention", counted)
    out, _ = forward(config, params, jnp.asarray(TOKENS), dict.fromkeys(taps))
    assert bool(called) == fused
    exact = logits(plain.with_execution(dtype="float32"), params)
    assert np.abs(np.asarray(out, np.float64) - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_of_logits(dtype):
    config = GPT2.with_execution(dtype=dtype, scan_layers=True)
    out, _ = jax.eval_shape(partial(forward, config), shapes(config), jnp.asarray(TOKENS))
    assert out.dtype == jnp.dtype(dtype)
    assert out.shape == (3, 7, 17)


def test_learned_positions_end():
    tokens = jnp.zeros((2, 8), jnp.int32)
    message = refusal(forward, GPT2, noisy(GPT2), tokens)
    assert message == "seq_len=8: learned positions end at 7; accepted: at most 7"
    assert logits(GPT2, noisy(GPT2), TOKENS[:, :7]).shape == (3, 7, 17)
    longer = jax.eval_shape(partial(forward, LLAMA), shapes(LLAMA), tokens)
    assert longer[0].shape == (2, 8, 17)


def test_shorter_sequences_are_prefixes():
    params = noisy(GPT2)
    whole, part = (logits(GPT2, params, TOKENS[:, :n]) for n in (7, 4))
    np.testing.assert_allclose(whole[:, :4], part, rtol=1e-5, atol=1e-5)


def test_jit_equals_eager():
    params = noisy(LLAMA)
    eager = forward(LLAMA, params, jnp.asarray(TOKENS))[0]
    np.testing.assert_allclose(logits(LLAMA, params), eager, rtol=1e-5, atol=1e-5)


PAST = [
    *({"variant": name} for name in VARIANTS),
    {"position": "alibi"}, {"position": "alibi", "alibi_falcon": True}, {"attn_softcap": 3.0},
    {"window": 3}, {"window": 3, "window_layers": (1,), "layers": 2},
    {"execution": Execution(scan_layers=True)},
    {"variant": "value_gate", "execution": Execution(dtype="bfloat16")},
]  # fmt: skip


@pytest.mark.parametrize("changes", PAST, ids=str)
def test_attention_to_the_past_alone(monkeypatch, changes):
    """In parts that see no key after them: the same loss, and in one of each kind the same
    gradients, to rounding."""
    config = dataclasses.replace(LLAMA, **({"layers": 1} | changes))
    params = noisy(config)
    of_all = changes.keys() != {"variant"} or config.variant in ("softmax", "differential")

    def gradients():
        def loss(params):
            out = forward(config, params, jnp.asarray(TOKENS))[0]
            return jnp.mean(jnp.square(out.astype(jnp.float32)))

        return jax.jit(jax.value_and_grad(loss) if of_all else loss)(params)

    whole = gradients()
    monkeypatch.setattr(block_module, "LONG", TOKENS.shape[1])
    made = []
    original = block_module._to_the_past
    monkeypatch.setattr(
        block_module, "_to_the_past", lambda *args: made.append(1) or original(*args)
    )
    parts = gradients()
    assert made
    rtol = 2e-5 if config.execution.dtype == "float32" else 3e-2
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(a))))


@pytest.mark.parametrize("tap", ["attn_weights", "attn_logits", "attn_gate"])
def test_maps_that_are_asked_for_stay_whole(monkeypatch, tap):
    config = dataclasses.replace(LLAMA, variant="context_scale")
    params = noisy(config)
    run = partial(forward, config, params, jnp.asarray(TOKENS), {tap: None})
    expected = run()[1][tap]
    monkeypatch.setattr(block_module, "LONG", 1)
    np.testing.assert_array_equal(run()[1][tap], expected)
