"""Every row of the table of attention variants: against a float64 oracle, against theory, and
against one another. All tests run over `VARIANTS`; a new row only needs its oracle here."""

import dataclasses
import re
import zlib
from collections.abc import Callable
from functools import cache
from math import exp, log, sqrt
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.locate.scan import scan
from sysout_jax.core import attention
from sysout_jax.core.attention import PAPER, VARIANTS, variants
from sysout_jax.core.layers import causal_mask
from sysout_jax.core.measures import implicit_scale
from sysout_jax.core.primitives import Heads, mix, no_tap, scores, softmax_mix, softmax_weights
from sysout_jax.core.variants import Param, Table, variant
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.model.model import Model

B, T, N, K, H, D = 2, 7, 6, 3, 5, 11
CAUSAL = np.tri(T, dtype=bool)
WINDOWED = CAUSAL & ~np.tri(T, k=-3, dtype=bool)
UNSEEING = np.tri(T, k=-1, dtype=bool)  # the first query sees no key
PROBE = np.random.default_rng(5).standard_normal((B, N, H))
LEAKY = ("clipped_softmax", "softpick", "stick_breaking")  # normalised, but mass may be lost
SIGNED = ("differential",)  # weights below zero

every_variant = pytest.mark.parametrize("name", VARIANTS)
every_mask = pytest.mark.parametrize("mask", [CAUSAL, WINDOWED], ids=["causal", "windowed"])


def draw(seed=0, *, t=T, s=T, n=N, k=K, lead=(B,), scale=1.5):
    """Random inputs, in float64 so that the oracle and JAX round the same numbers."""
    rng = np.random.default_rng(seed)
    shapes = {"q": (t, n, H), "k": (s, k, H), "v": (s, k, H), "x": (s, D)}
    draws = {name: scale * rng.standard_normal((*lead, *shape)) for name, shape in shapes.items()}
    return cast(cast(draws, jnp.float32), np.float64)


def parameters(name, n=N, k=K):
    """Random parameters, the same in every variant that has a parameter of that name."""
    sizes = {"D": D, "N": n, "K": k, "H": H}

    def value(key, axes):
        seed = zlib.crc32(f"{key}: {axes}".encode())
        shape = [sizes[letter] for letter in axes.replace("->", " ").split()]
        return np.random.default_rng(seed).standard_normal(shape)

    draws = {key: value(key, param.axes) for key, param in VARIANTS[name].params.items()}
    return cast(cast(draws, jnp.float32), np.float64)


def cast(tree, dtype):
    convert = np.asarray if dtype is np.float64 else jnp.asarray
    return jax.tree.map(lambda a: convert(a, dtype), tree)


def attend(name, arrays, params, mask, tap=no_tap):
    q, k, v, x = (arrays[key] for key in "qkvx")
    return VARIANTS[name](Heads(q, k, v, x[..., -q.shape[-3] :, :], x, mask, tap), params)


def eager(name, arrays, params=None, mask=CAUSAL, tap=no_tap, dtype=jnp.float32):
    """`Mixed` of float64 arrays, computed in `dtype` one operation at a time."""
    params = parameters(name) if params is None else params
    mixed = attend(name, cast(arrays, dtype), cast(params, dtype), jnp.asarray(mask), tap)
    return jax.tree.map(lambda a: np.asarray(a, np.float64), mixed)


@cache
def compiled(name):
    """`Mixed`, and for every query t the gradients of sum(PROBE * out[t]) by inputs and params."""

    def run(arrays, params, mask):
        def out(arrays, params):
            mixed = attend(name, arrays, params, mask)
            return mixed.out, mixed

        _, back, mixed = jax.vjp(out, arrays, params, has_aux=True)
        cotangents = jnp.asarray(np.einsum("ut,bnh->ubtnh", np.eye(T), PROBE), mixed.out.dtype)
        return mixed, jax.vmap(back)(cotangents)

    return jax.jit(run)


def run(name, arrays, params=None, mask=CAUSAL, dtype=jnp.float32):
    params = parameters(name) if params is None else params
    result = compiled(name)(cast(arrays, dtype), cast(params, jnp.float32), mask)
    return jax.tree.map(lambda a: np.asarray(a, np.float64), result)


def assert_close(actual, expected, tolerance=1e-5):
    """Relative to the largest expected magnitude."""
    bound = tolerance * max(np.max(np.abs(expected)), 1e-3)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=bound)


# ------------------------------------------------------------------------- the oracle


class Row(NamedTuple):
    """One query of one head, and the keys that it sees; parameters are those of the head."""

    q: np.ndarray  # [H]
    keys: np.ndarray  # [visible, H]
    values: np.ndarray  # [visible, H]
    x: np.ndarray  # [D]
    xs: np.ndarray  # [visible, D]
    length: int  # keys of the sequence, visible or not
    p: dict[str, np.ndarray]


ORACLES: dict[str, Callable[[Row], tuple[list[float], float, np.ndarray]]] = {}


def oracle(fn):
    ORACLES[fn.__name__.removesuffix("_oracle")] = fn
    return fn


def dot(a, b):
    return float(a @ b)


def logit(r, key):
    return dot(r.q, key) / sqrt(H)


def logits(r):
    return [logit(r, key) for key in r.keys]


def logistic(z):
    return 1 / (1 + exp(-z))


def shares(terms, extra=0.0):
    total = sum(terms) + extra
    return [term / total for term in terms], extra / total


def weigh(weights, values):
    return sum((w * v for w, v in zip(weights, values, strict=True)), np.zeros(H))


def softmax_row(r, extra_logit=None):
    weights, extra = shares(
        [exp(s) for s in logits(r)], 0.0 if extra_logit is None else exp(extra_logit)
    )
    return weights, extra, weigh(weights, r.values)


def gated_row(r, gate):
    weights, extra, out = softmax_row(r)
    return weights, extra, gate * out


def weighted_row(r, weight):
    weights = [weight(s) for s in logits(r)]
    return weights, 0.0, weigh(weights, r.values)


@oracle
def softmax_oracle(r):
    return softmax_row(r)


@oracle
def value_bias_oracle(r):
    weights, extra, out = softmax_row(r)
    return weights, extra, out + r.p["bias_value"]


@oracle
def context_bias_oracle(r):
    weights, _, out = softmax_row(r)
    extra = softmax_row(r, logit(r, r.p["bias_key"]))[1]
    return weights, 0.0, out + extra * r.p["bias_value"]


@oracle
def attention_bias_oracle(r):
    weights, extra, out = softmax_row(r, logit(r, r.p["bias_key"]))
    return weights, extra, out + extra * r.p["bias_value"]


@oracle
def context_scale_oracle(r):
    return gated_row(r, 2 * logistic(dot(r.x, r.p["gate_kernel"]) + float(r.p["gate_bias"])))


@oracle
def sigmoid_oracle(r):
    return weighted_row(r, lambda s: logistic(s - log(r.length)))


@oracle
def softmax_off_by_one_oracle(r):
    terms = [exp(s) for s in logits(r)]
    weights = [term / (1 + sum(terms)) for term in terms]
    return weights, 1 - sum(weights), weigh(weights, r.values)


@oracle
def sink_logit_oracle(r):
    return softmax_row(r, float(r.p["sink_logit"]))


@oracle
def key_bias_oracle(r):
    return softmax_row(r, logit(r, r.p["bias_key"]))


@oracle
def head_gate_oracle(r):
    return gated_row(r, logistic(dot(r.x, r.p["gate_kernel"]) + float(r.p["gate_bias"])))


@oracle
def element_gate_oracle(r):
    gate = [2 * logistic(dot(r.x, r.p["gate_kernel"][:, h])) for h in range(H)]
    return gated_row(r, np.array(gate))


@oracle
def plain_head_gate_oracle(r):
    return gated_row(r, logistic(dot(r.x, r.p["gate_kernel"])))


@oracle
def plain_element_gate_oracle(r):
    gate = [logistic(dot(r.x, r.p["gate_kernel"][:, h])) for h in range(H)]
    return gated_row(r, np.array(gate))


@oracle
def value_gate_oracle(r):
    gates = [[2 * logistic(dot(x, r.p["gate_kernel"][:, h])) for h in range(H)] for x in r.xs]
    return softmax_row(r._replace(values=np.array(gates) * r.values))


@oracle
def static_gate_oracle(r):
    return gated_row(r, 2 * logistic(float(r.p["gate_bias"])))


@oracle
def clipped_softmax_oracle(r):
    gamma, zeta = -12 / r.length, 1.0
    weights = [min(1.0, max(0.0, (zeta - gamma) * w + gamma)) for w in softmax_row(r)[0]]
    return weights, 0.0, weigh(weights, r.values)


@oracle
def softpick_oracle(r):
    shifted = [exp(s) - 1 for s in logits(r)]
    eps = 1e-6 * exp(max(0.0, *logits(r)))
    total = sum(abs(term) for term in shifted) + eps
    weights = [max(term, 0.0) / total for term in shifted]
    return weights, 0.0, weigh(weights, r.values)


@oracle
def relu_oracle(r):
    return weighted_row(r, lambda s: max(s, 0.0) / len(r.keys))


@oracle
def elu_plus_one_oracle(r):
    return weighted_row(r, lambda s: s + 1 if s > 0 else exp(s))


@oracle
def plain_sigmoid_oracle(r):
    return weighted_row(r, logistic)


def shares_row(r, function):
    weights = [function(s) for s in logits(r)]
    weights = [w / sum(weights) for w in weights]
    return weights, 0.0, weigh(weights, r.values)


@oracle
def normalised_sigmoid_oracle(r):
    return shares_row(r, logistic)


@oracle
def normalised_elu_plus_one_oracle(r):
    return shares_row(r, lambda s: s + 1 if s > 0 else exp(s))


@oracle
def qk_norm_oracle(r):
    length = np.linalg.norm(r.keys, axis=1, keepdims=True) * np.linalg.norm(r.q)
    gain = (1 + float(r.p["qk_gain"])) * H  # logit() divides by sqrt(H)
    return softmax_row(r._replace(keys=r.keys * gain / length))


@oracle
def head_norm_oracle(r):
    weights, extra, out = softmax_row(r)
    return weights, extra, out / sqrt(dot(out, out) / H + 1e-6) * (1 + r.p["norm_gain"])


@oracle
def sink_value_oracle(r):
    weights, extra, out = softmax_row(r, float(r.p["sink_logit"]))
    return weights, extra, out + extra * r.p["bias_value"]


@oracle
def exclusive_oracle(r):
    weights, extra, out = softmax_row(r)
    own = r.values[-1]  # of the last visible key, under both masks the query's own
    return weights, extra, out - dot(out, own) / dot(own, own) * own


@oracle
def value_state_gate_oracle(r):
    gates = [2 * logistic(dot(v, r.p["gate_kernel"]) + float(r.p["gate_bias"])) for v in r.values]
    return softmax_row(r._replace(values=np.array(gates)[:, None] * r.values))


@oracle
def v_scale_oracle(r):
    c = len(r.x) * H * 0.0004 * exp(float(r.p["gate_log_scale"]))
    gates = [dot(v, v) / (dot(v, v) + c) for v in r.values]
    return softmax_row(r._replace(values=np.array(gates)[:, None] * r.values))


@oracle
def scalable_softmax_oracle(r):
    gain = (1 + float(r.p["log_gain"])) * log(len(r.keys)) / log(32)
    return softmax_row(r._replace(keys=gain * r.keys))


@oracle
def differential_oracle(r):
    halves = [np.array([(h // 2) % 2 == which for h in range(H)]) for which in (0, 1)]
    maps = [
        shares([exp(dot(r.q[half], key[half]) / sqrt(H / 2)) for key in r.keys])[0]
        for half in halves
    ]
    less = logistic(dot(r.x, r.p["lambda_kernel"]) + float(r.p["lambda_bias"]))
    weights = [one - less * other for one, other in zip(*maps, strict=True)]
    return weights, 0.0, weigh(weights, r.values)


@oracle
def stick_breaking_oracle(r):
    weights, left = [], 1.0
    for s in reversed(logits(r)):
        weights.insert(0, left * logistic(s))
        left *= 1 - logistic(s)
    return weights, 0.0, weigh(weights, r.values)


@oracle
def forgetting_oracle(r):
    kept = [logistic(dot(x, r.p["forget_kernel"]) + float(r.p["forget_bias"])) for x in r.xs]
    faded = [exp(s) * np.prod(kept[j + 1 :]) for j, s in enumerate(logits(r))]
    weights = shares(faded)[0]
    return weights, 0.0, weigh(weights, r.values)


@oracle
def elastic_softmax_oracle(r):
    offset = float(r.p["threshold"]) / len(r.keys)
    weights = [max(w + offset, 0.0) for w in softmax_row(r)[0]]
    return weights, 0.0, weigh(weights, r.values)


@oracle
def entmax_oracle(r):
    """Of all sets of the largest logits the one whose threshold keeps it and no other."""
    halves = sorted((s / 2 for s in logits(r)), reverse=True)
    for count in range(1, len(halves) + 1):
        mean = sum(halves[:count]) / count
        spread = sum((x - mean) ** 2 for x in halves[:count])
        if spread <= 1:
            t = mean - sqrt((1 - spread) / count)
            if t <= halves[count - 1] and (count == len(halves) or halves[count] <= t):
                weights = [max(s / 2 - t, 0.0) ** 2 for s in logits(r)]
                return weights, 0.0, weigh(weights, r.values)
    raise AssertionError("no such set")


def expected(name, arrays, params, mask):
    """(out, weights, extra) in float64, one batch entry, head, query and key at a time."""
    if name not in ORACLES:
        pytest.fail(without_oracle([name]))
    q, k, v, x = (arrays[key] for key in "qkvx")
    (b, t, n, _), (_, s, kv, _) = q.shape, k.shape
    out, weights, extra = np.zeros_like(q), np.zeros((b, n, t, s)), np.zeros((b, n, t))
    for i, head, query in np.ndindex(b, n, t):
        group = head // (n // kv)
        seen = [key for key in range(s) if mask[query, key]]
        row = Row(
            q[i, query, head],
            k[i, seen, group],
            v[i, seen, group],
            x[i, s - t + query],
            x[i, seen],
            s,
            {key: of_head(name, key, value, head, group) for key, value in params.items()},
        )
        found, extra[i, head, query], out[i, query, head] = ORACLES[name](row)
        weights[i, head, query, seen] = found
    return out, weights, extra


def without_oracle(names):
    return f"no oracle: write @oracle {', '.join(f'{n}_oracle' for n in names)} in {__file__}"


def of_head(name, key, value, head, group):
    letters = VARIANTS[name].params[key].axes.replace("->", " ").split()
    chosen = {"N": head, "K": group}
    return value[tuple(chosen.get(letter, slice(None)) for letter in letters)]


LAST_THREE = np.asarray(causal_mask(jnp.arange(4, 7), jnp.arange(7)))
SHAPES = {
    "grouped, causal": ({}, CAUSAL),
    "grouped, windowed": ({}, WINDOWED),
    "one KV head": ({"k": 1}, CAUSAL),
    "last three queries, a KV head per head": ({"t": 3, "k": N}, LAST_THREE),
}


@every_variant
@pytest.mark.parametrize("case", SHAPES)
def test_equals_a_loop_over_queries_and_keys(name, case):
    shape, mask = SHAPES[case]
    arrays, params = draw(**shape), parameters(name, k=shape.get("k", K))
    for actual, wanted in zip(
        eager(name, arrays, params, mask), expected(name, arrays, params, mask), strict=True
    ):
        assert_close(actual, wanted)


def test_the_oracles_are_of_this_table():
    missing = [name for name in VARIANTS if name not in ORACLES]
    assert not missing, without_oracle(missing)
    assert set(ORACLES) == set(VARIANTS)


# ---------------------------------------------------------------------------- gradients


@every_variant
@every_mask
def test_causality(name, mask):
    """An output depends on no input that its query does not see.

    Let f be out[t] as a function of the inputs at a hidden position. Each variant is analytic
    between finitely many kinks, so df = 0 at a point drawn from a density means f is constant on
    the piece around that point. We take the gradient of a random projection of out[t], which is
    zero for a nonzero Jacobian with probability zero, and ask for zeros that are exact: a masked
    term is not small but absent. For the other pieces the hidden inputs are replaced by others,
    and no bit of the output changes. That the gradients by visible inputs are not zero shows that
    the projection sees something.
    """
    arrays = draw()
    mixed, (by_inputs, _) = run(name, arrays, mask=mask)
    for key in "kvx":
        assert not np.any(by_inputs[key].swapaxes(1, 2)[~mask])
    assert not np.any(by_inputs["q"].swapaxes(1, 2)[~np.eye(T, dtype=bool)])
    for key in "kv":
        assert np.any(by_inputs[key].swapaxes(1, 2)[mask & ~np.eye(T, dtype=bool)])
    assert np.any(by_inputs["q"])

    for query in range(T):
        hidden = ~mask[query]
        replaced = {key: a.copy() for key, a in arrays.items()}
        for key, other in draw(1, scale=10.0).items():
            replaced[key][:, hidden] = other[:, hidden]
        again, _ = run(name, replaced, mask=mask)
        np.testing.assert_array_equal(again.out[:, query], mixed.out[:, query])
        np.testing.assert_array_equal(again.weights[:, :, query], mixed.weights[:, :, query])


@every_variant
def test_gradient_equals_a_finite_difference_of_the_oracle(name):
    point = (draw(), parameters(name))
    rng = np.random.default_rng(3)
    along = jax.tree.map(lambda a: rng.standard_normal(a.shape), point)

    def oracle_at(step):
        arrays, params = jax.tree.map(lambda a, u: a + step * u, point, along)
        return np.einsum("btnh,bnh->", expected(name, arrays, params, CAUSAL)[0], PROBE)

    with jax.enable_x64(True):

        def projected(arrays, params):
            out = attend(name, arrays, params, jnp.asarray(CAUSAL)).out
            assert out.dtype == jnp.float64
            return jnp.einsum("btnh,bnh->", out, jnp.asarray(PROBE))

        value, gradient = jax.value_and_grad(projected, (0, 1))(*cast(point, jnp.float64))
    slope = sum(
        jax.tree.leaves(jax.tree.map(lambda g, u: np.sum(np.asarray(g) * u), gradient, along))
    )
    np.testing.assert_allclose(value, oracle_at(0.0), rtol=1e-5)
    np.testing.assert_allclose(slope, (oracle_at(1e-5) - oracle_at(-1e-5)) / 2e-5, rtol=1e-5)


@every_variant
def test_every_parameter_matters_in_every_head(name):
    """The gradient by a parameter is nonzero in each of its entries along N, K and D."""
    _, (_, by_params) = run(name, draw())
    for key, gradient in by_params.items():
        letters = ["query", *VARIANTS[name].params[key].axes.replace("->", " ").split()]
        for axis in range(1, len(letters)):
            rest = tuple(a for a in range(len(letters)) if a != axis)
            assert np.all(np.max(np.abs(gradient), axis=rest) > 0), (key, letters[axis])


# ------------------------------------------------------------- identities between variants


@every_variant
def test_softmax_exactly_at_the_identity_and_nowhere_else(name):
    arrays, identity = draw(), VARIANTS[name].identity
    plain = eager("softmax", arrays)
    if identity is None:
        for fill in (0.0, 1.0):
            params = {key: np.full_like(a, fill) for key, a in parameters(name).items()}
            assert np.max(np.abs(eager(name, arrays, params).out - plain.out)) > 0.01
        return
    assert set(identity) <= set(VARIANTS[name].params)
    params = parameters(name)
    params |= {key: np.full_like(params[key], value) for key, value in identity.items()}
    for actual, wanted in zip(eager(name, arrays, params), plain, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-6)


def test_no_two_rows_are_the_same_function():
    arrays = draw()
    outs = {name: run(name, arrays)[0].out for name in VARIANTS}
    for name in VARIANTS:
        for other in list(VARIANTS)[: list(VARIANTS).index(name)]:
            assert np.max(np.abs(outs[name] - outs[other])) > 0.01, (name, other)


def test_an_extra_key_that_nobody_matches_leaves_softmax():
    arrays = draw()
    arrays["q"][..., 0] = 1 + np.abs(arrays["q"][..., 0])
    unmatched = np.zeros((K, H))
    unmatched[:, 0] = -1e4
    plain = eager("softmax", arrays)
    for name in ("attention_bias", "key_bias", "context_bias"):
        params = parameters(name) | {"bias_key": unmatched}
        for actual, wanted in zip(eager(name, arrays, params), plain, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-6)


EQUAL = {
    "a sink logit with a value of zero has none": (
        ("sink_value", parameters("sink_logit") | {"bias_value": np.zeros((K, H))}),
        ("sink_logit", parameters("sink_logit")),
    ),
    "an extra key of zero with a value is a sink logit of zero with that value": (
        ("attention_bias", parameters("attention_bias") | {"bias_key": np.zeros((K, H))}),
        (
            "sink_value",
            {"sink_logit": np.zeros(N), "bias_value": parameters("attention_bias")["bias_value"]},
        ),
    ),
    "a zero key with a zero value is softmax off by one": (
        ("attention_bias", {"bias_key": np.zeros((K, H)), "bias_value": np.zeros((K, H))}),
        ("softmax_off_by_one", {}),
    ),
    "an extra key with a zero value is a key bias": (
        ("attention_bias", parameters("attention_bias") | {"bias_value": np.zeros((K, H))}),
        ("key_bias", parameters("key_bias")),
    ),
    "a sink logit of zero is softmax off by one": (
        ("sink_logit", {"sink_logit": np.zeros(N)}),
        ("softmax_off_by_one", {}),
    ),
    "a gate that sees no context is static": (
        (
            "context_scale",
            {"gate_kernel": np.zeros((D, N)), "gate_bias": parameters("static_gate")["gate_bias"]},
        ),
        ("static_gate", parameters("static_gate")),
    ),
}


@pytest.mark.parametrize("case", EQUAL)
def test_equal_variants(case):
    arrays = draw()
    (one, its_params), (other, other_params) = EQUAL[case]
    for actual, wanted in zip(
        eager(one, arrays, its_params), eager(other, arrays, other_params), strict=True
    ):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["attention_bias", "key_bias", "softmax_off_by_one", "sink_logit", "context_bias"]
)
def test_an_extra_key_is_a_scale_of_softmax(name):
    """Theory A2: out = S o + (1 - S) v' with S = sigmoid(LSE(s) - s'); variant c has no S at o."""
    arrays, p = draw(), parameters(name)
    q, group = arrays["q"], np.arange(N) // (N // K)
    s = np.einsum("btnh,bsnh->btns", q, arrays["k"][:, :, group]) / np.sqrt(H)
    lse = np.log(np.sum(np.exp(s) * CAUSAL[None, :, None, :], axis=-1))
    logit_of = {
        "softmax_off_by_one": lambda: np.zeros_like(lse),
        "sink_logit": lambda: np.broadcast_to(p["sink_logit"], lse.shape),
    }.get(name, lambda: np.einsum("btnh,nh->btn", q, p["bias_key"][group]) / np.sqrt(H))
    factor = (1 / (1 + np.exp(logit_of() - lse)))[..., None]
    o = eager("softmax", arrays).out
    value = p["bias_value"][group] if "bias_value" in p else np.zeros((N, H))
    kept = o if name == "context_bias" else factor * o
    assert_close(eager(name, arrays).out, kept + (1 - factor) * value)


AROUND = [name for name, row in VARIANTS.items() if row.wraps]


@pytest.mark.parametrize("outer", AROUND)
@pytest.mark.parametrize("inner", ["attention_bias", "sigmoid", "value_state_gate"])
def test_a_variant_around_another_is_either_where_the_other_is_softmax(outer, inner):
    if outer == inner:
        return
    name, arrays = f"{outer}+{inner}", draw()
    mine = {f"{part}_{key}": v for part in (outer, inner) for key, v in parameters(part).items()}
    assert set(mine) == set(VARIANTS[name].params)
    whole = eager(name, arrays, mine).out
    for part, other in ((outer, inner), (inner, outer)):
        assert np.max(np.abs(whole - eager(part, arrays).out)) > 0.01
        identity = VARIANTS[part].identity
        if identity is not None:
            at = {key: np.full_like(mine[key], identity[key.removeprefix(f"{part}_")])
                  for key in mine if key.removeprefix(f"{part}_") in identity
                  and key.startswith(part)}  # fmt: skip
            assert_close(eager(name, arrays, mine | at).out, eager(other, arrays).out)


def of_parts(*names):
    return {f"{part}_{key}": v for part in names for key, v in parameters(part).items()}


def test_of_gated_values_nothing_along_the_own_one_is_left():
    """In either order of the name."""
    arrays, mine = draw(), of_parts("exclusive", "value_gate")
    one, other = (
        eager(name, arrays, mine).out for name in ("exclusive+value_gate", "value_gate+exclusive")
    )
    assert_close(one, other)
    kernel = mine["value_gate_gate_kernel"]
    gate = 2.0 / (1.0 + np.exp(-np.einsum("bsd,dkh->bskh", arrays["x"], kernel)))
    own = np.repeat(arrays["v"] * gate, N // K, axis=-2)
    assert np.abs(np.sum(one * own, axis=-1)).max() < 1e-4
    assert np.abs(np.sum(one * np.repeat(arrays["v"], N // K, axis=-2), axis=-1)).max() > 0.1


def test_of_two_gates_no_tap_sees_one():
    for name, seen in (("value_bias+head_gate", 1), ("context_scale+head_gate", 0)):
        calls = []

        def tap(tapped, value, calls=calls):
            calls.append(tapped)
            return value

        eager(name, draw(), of_parts(*name.split("+")), tap=tap)
        assert calls.count("attn_gate") == seen


def test_a_factor_and_a_bias():
    """Theory T4: g(x) o + v', the two mechanisms of the paper in one."""
    arrays, gate, bias = draw(), parameters("context_scale"), parameters("value_bias")
    mine = {f"context_scale_{k}": v for k, v in gate.items()}
    mine |= {f"value_bias_{k}": v for k, v in bias.items()}
    out = eager("value_bias+context_scale", arrays, mine).out
    assert_close(out, eager("context_scale", arrays, gate).out + bias["bias_value"])
    both = VARIANTS["value_bias+context_scale"]
    assert both.normalised
    assert not both.extra_key
    assert set(both.identity) == {
        "value_bias_bias_value", "context_scale_gate_kernel", "context_scale_gate_bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["sigmoid+key_bias", "softmax+key_bias", "value_bias+", "+", "value_bias+nothing",
             "value_bias+value_bias", "key_bias+value_bias"],
)  # fmt: skip
def test_what_cannot_be_composed_is_in_no_table(name):
    assert name not in VARIANTS
    with pytest.raises(InputError, match="variant"):
        ModelConfig(variant=name)


def test_what_a_composition_is_follows_from_its_parts():
    assert not VARIANTS["value_bias+sigmoid"].normalised
    assert VARIANTS["value_bias+key_bias"].normalised
    assert VARIANTS["value_bias+key_bias"].extra_key
    assert not VARIANTS["value_bias+context_scale"].extra_key
    assert VARIANTS["value_bias+context_scale"].gated
    assert VARIANTS["head_gate"].gated
    assert not VARIANTS["value_bias+key_bias"].gated
    assert not VARIANTS["context_scale+head_gate"].gated  # no tap is of both
    assert VARIANTS["value_gate"].gates_values
    assert not VARIANTS["element_gate"].gates_values
    with pytest.raises(ValueError, match="variant softmax: there is one"):
        VARIANTS.enter(dataclasses.replace(VARIANTS["sigmoid"], name="softmax"))


def _defined(scale):
    @variant(formula="c softmax(s) v", cite="a test", gain=Param("N", np.float32(1)))
    def again(heads, p):
        mixed = softmax_mix(heads)
        return mixed._replace(out=scale * p["gain"].reshape(1, 1, -1, 1) * mixed.out)

    return again


@pytest.mark.usefixtures("own_variants")
def test_a_function_that_is_defined_anew_takes_its_own_place():
    """As a cell of a notebook that runs again; no program of before is used."""
    config = ModelConfig(layers=1, width=16, heads=2)
    found = []
    for scale in (1.0, 3.0):
        _defined(scale)
        mine = dataclasses.replace(config, variant="again")
        params = init(mine, jax.random.key(0))
        np.testing.assert_array_equal(params["block_0"]["attn"]["variant_gain"], np.ones(2))
        model = Model(mine, jax.tree.map(lambda x: 20 * x if x.ndim > 1 else x, params), None)
        found.append(so.apply(model, np.arange(5)[None], {"attn_mix": None})[1]["attn_mix"])
    np.testing.assert_allclose(found[1], 3 * found[0], rtol=1e-6)


def _mass(normalised, name, begin):
    @variant(formula="c", cite="a test", normalised=normalised, **{name: Param("N", begin)})
    def other(heads, p):
        weights, _ = softmax_weights(scores(heads), heads.mask, None)
        return mix(heads, 3.0 * weights)

    return other


@pytest.mark.usefixtures("own_variants")
def test_nothing_of_a_variant_outlives_its_definition():
    """Neither its parameters nor whether its rows are shares, which reducers keep by config."""
    config, tokens = ModelConfig(layers=1, width=16, heads=2), np.arange(7)[None]
    found = []
    for normalised, name, begin in ((True, "one", 1.0), (False, "two", 2.0)):
        _mass(normalised, name, begin)
        mine = dataclasses.replace(config, variant="other")
        params = init(mine, jax.random.key(0))
        np.testing.assert_array_equal(params["block_0"]["attn"][f"variant_{name}"], [begin] * 2)
        found.append(scan(mine, params, tokens).received.sum(axis=-1))
    np.testing.assert_allclose(found[0], 3.0, rtol=1e-5)
    np.testing.assert_allclose(found[1], 1.0, rtol=1e-5)


@pytest.mark.parametrize("value", ["zeros", "norml", "", "nan", "1e3", float("nan")])
def test_a_parameter_begins_as_a_number_or_normal(value):
    with pytest.raises(ValueError, match=r"init=.*; accepted: a number, or 'normal'"):
        Param("N", value)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int64(1), jnp.float32(1), True])
def test_any_number_is_a_constant(value):
    assert Param("D -> N", value) == Param("D -> N", 1.0)


@pytest.mark.parametrize("axes", ["Z", "D -> Z", "d", "N,H"])
def test_an_unknown_axis_is_refused(axes):
    with pytest.raises(ValueError, match="unknown; accepted: letters of D N K H F V R"):
        Param(axes, 0.0)


@pytest.mark.usefixtures("own_variants")
def test_a_variant_that_returns_the_output_alone_is_told_so():
    @variant(formula="softmax(s) v", cite="a test")
    def bare(heads, p):
        return softmax_mix(heads).out

    with pytest.raises(ValueError, match=r"variant bare: returns a .*; accepted: a Mixed, as"):
        attend("bare", cast(draw(), jnp.float32), {}, jnp.asarray(CAUSAL))


def test_the_order_of_variants():
    names = ["softmax", "key_bias", "exclusive", "value_bias+softmax", "value_bias+key_bias"]
    places = [VARIANTS.order(name) for name in names]
    assert places == sorted(places)
    assert max(places[:3]) < len(VARIANTS) <= min(places[3:])


@pytest.mark.parametrize("outliers", [(0,), (0, 3), (2, 5, 6)])
def test_attention_to_outliers_scales_attention_to_the_rest(outliers):
    """Theory A1: o = S o^R + sum_O p v, and S = 1 - alpha = sigmoid(LSE_R - LSE_O)."""
    arrays = draw()
    inside = np.isin(np.arange(T), outliers)
    everything, rest = eager("softmax", arrays), eager("softmax", arrays, mask=CAUSAL & ~inside)
    s = np.asarray(
        [
            implicit_scale(jnp.asarray(weights, jnp.float32), jnp.asarray(inside))
            for weights in everything.weights
        ]
    ).transpose(0, 2, 1)[..., None]
    only_outliers = everything.weights * inside
    values = arrays["v"][:, :, np.arange(N) // (N // K)]
    added = np.einsum("bnts,bsnh->btnh", only_outliers, values)
    assert_close(everything.out, s * rest.out + added)
    assert np.max(np.abs(added)) > 0.1  # without it the identity would fail
    drained = arrays | {"v": arrays["v"] * ~inside[:, None, None]}
    assert_close(eager("softmax", drained).out, s * rest.out)


# ------------------------------------------------------------------------ numerical safety

EXTREME = {
    "both signs": lambda a: a | {"q": 100 * a["q"], "k": 100 * a["k"]},
    "all positive": lambda a: a | {"q": 100 * np.abs(a["q"]), "k": 100 * np.abs(a["k"])},
    "all negative": lambda a: a | {"q": 100 * np.abs(a["q"]), "k": -100 * np.abs(a["k"])},
    "all equal": lambda a: a | {"q": 0 * a["q"], "k": 0 * a["k"], "v": 0 * a["v"]},
}


@every_variant
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", EXTREME)
def test_finite_with_logits_of_ten_thousand(name, dtype, scale):
    """Values and gradients, also where a query sees no key; mass is at most 1 if normalised."""
    for mask in (CAUSAL, UNSEEING):
        mixed, gradients = run(name, EXTREME[scale](draw()), mask=mask, dtype=dtype)
        for leaf in jax.tree.leaves((mixed, gradients)):
            assert np.all(np.isfinite(leaf))
        mass = np.sum(mixed.weights, axis=-1) + mixed.extra
        assert name in SIGNED or np.all(mixed.weights >= 0)
        assert np.all(mixed.extra >= 0)
        if VARIANTS[name].normalised or name in SIGNED:
            assert np.all(mass <= 1 + 1e-5)
        elif scale == "all positive":
            assert np.max(mass) > 1.5


@every_variant
def test_mass_of_normalised_rows(name):
    mixed, _ = run(name, draw())
    mass = np.sum(mixed.weights, axis=-1) + mixed.extra
    if VARIANTS[name].normalised and name not in LEAKY:
        np.testing.assert_allclose(mass, 1.0, atol=1e-5)
    else:
        assert np.max(np.abs(mass - 1)) > 0.1
    assert not np.any(mixed.weights * ~CAUSAL)


@every_variant
def test_a_query_that_sees_no_key(name):
    """No weight, and no output but that of the biases; its gradients by the values are zero."""
    mixed, (by_inputs, _) = run(name, draw(), mask=UNSEEING)
    assert not np.any(mixed.weights[:, :, 0])
    bias = parameters(name).get("bias_value", np.zeros((N, H)))
    bias = np.broadcast_to(np.repeat(bias, N // len(bias), axis=0), (B, N, H))
    np.testing.assert_allclose(mixed.out[:, 0], bias, atol=1e-6)
    assert not np.any(by_inputs["v"][0])


@every_variant
def test_bfloat16_is_close_to_float32(name):
    """Within 4 roundings of 2^-9 each of the largest output: q and k, weights, mix, gate."""
    arrays = cast(cast(draw(scale=1.0), jnp.bfloat16), np.float64)
    narrow, wide = run(name, arrays, dtype=jnp.bfloat16)[0], run(name, arrays)[0]
    assert np.max(np.abs(narrow.out - wide.out)) < 4 * 2.0**-9 * np.max(np.abs(wide.out))
    # Logits are float32 for bfloat16 inputs, but normalised q and k and extra keys are rounded.
    # So is the factor of a second map.
    rounded = (
        name in ("qk_norm", "scalable_softmax", "differential", "forgetting")
        or "bias_key" in VARIANTS[name].params
    )
    tolerance = 2.0**-6 if rounded else 1e-5
    np.testing.assert_allclose(narrow.weights, wide.weights, atol=tolerance)
    out = compiled(name)(cast(arrays, jnp.bfloat16), cast(parameters(name), jnp.float32), CAUSAL)[0]
    assert (out.out.dtype, out.weights.dtype) == (jnp.bfloat16, jnp.float32)


# ------------------------------------------------------------------------- batching, tracing


@every_variant
def test_compiled_equals_eager(name):
    for actual, wanted in zip(run(name, draw())[0], eager(name, draw()), strict=True):
        assert_close(actual, wanted)


@every_variant
def test_any_number_of_leading_axes(name):
    """Two, one and none, looped and under vmap."""
    arrays = draw(lead=(2, B))
    whole = eager(name, arrays)
    first = {key: a[0] for key, a in arrays.items()}
    for i in range(2):
        for actual, wanted in zip(
            eager(name, {key: a[i] for key, a in arrays.items()}), whole, strict=True
        ):
            assert_close(actual, wanted[i])
        single = eager(name, {key: a[i] for key, a in first.items()})
        for actual, wanted in zip(single, whole, strict=True):
            assert_close(actual, wanted[0, i])
    params, mask = cast(parameters(name), jnp.float32), jnp.asarray(CAUSAL)
    mapped = jax.vmap(lambda a: attend(name, a, params, mask))(cast(first, jnp.float32))
    for actual, wanted in zip(mapped, whole, strict=True):
        assert_close(np.asarray(actual), wanted[0])


# ------------------------------------------------------------------------------------ taps


def has_gate(name):
    return any(key.startswith("gate") for key in VARIANTS[name].params)


def replacing(edits):
    return lambda tap, value: edits[tap](value) if tap in edits else value


@every_variant
def test_taps_are_called_once_with_the_documented_shapes(name):
    calls = []
    t, s = 3, T

    def tap(tapped, value):
        calls.append((tapped, value.shape))
        return value

    eager(name, draw(t=t, k=N), parameters(name, k=N), LAST_THREE, tap)
    shapes = {"attn_logits": (B, N, t, s), "attn_weights": (B, N, t, s), "attn_extra": (B, N, t)}
    if has_gate(name):
        shapes["attn_gate"] = {
            "element_gate": (B, t, N, H),
            "plain_element_gate": (B, t, N, H),
            "value_gate": (B, s, N, H),
            "value_state_gate": (B, s, N, 1),
            "v_scale": (B, s, N, 1),
        }.get(name, (B, t, N, 1))
    assert sorted(calls) == sorted(shapes.items())


def test_tapped_logits_are_scaled():
    arrays, seen = draw(), {}
    eager("softmax", arrays, tap=lambda tap, value: seen.setdefault(tap, value))
    keys = arrays["k"][:, :, np.arange(N) // (N // K)]
    wanted = np.einsum("btnh,bsnh->bnts", arrays["q"], keys) / sqrt(H)
    assert_close(np.asarray(seen["attn_logits"]), wanted)


@every_variant
def test_edits_replace_what_they_tap(name):
    arrays = draw()
    plain = eager(name, arrays)
    # Zero weight on a key is the same as a zero value.
    edited = eager(name, arrays, tap=replacing({"attn_weights": lambda w: w.at[..., 0].set(0.0)}))
    without = arrays | {"v": arrays["v"] * (np.arange(T) > 0)[:, None, None]}
    assert_close(edited.out, eager(name, without).out)
    assert not np.any(edited.weights[..., 0])
    assert np.max(np.abs(edited.out - plain.out)) > 0.1
    # A key whose logits are -inf has no weight, not even where it is the only one.
    edited = eager(
        name, arrays, tap=replacing({"attn_logits": lambda s: s.at[..., 0].set(-jnp.inf)})
    )
    assert not np.any(edited.weights[..., 0])
    assert np.all(np.isfinite(edited.out))
    # Without its mass, the extra key adds nothing: what is left are the weights times the values.
    edited = eager(name, arrays, tap=replacing({"attn_extra": jnp.zeros_like}))
    assert not np.any(edited.extra)
    if np.any(plain.extra):
        values = arrays["v"][:, :, np.arange(N) // (N // K)]
        assert_close(edited.out, np.einsum("bnts,bsnh->btnh", plain.weights, values))
    if has_gate(name):
        edited = eager(name, arrays, tap=replacing({"attn_gate": jnp.ones_like}))
        assert_close(edited.out, eager("softmax", arrays).out)


# ----------------------------------------------------------------------------- the table


@every_variant
def test_rows_are_complete(name):
    row = VARIANTS[name]
    assert row.name == name
    assert row.formula
    assert row.cite
    for key, param in row.params.items():
        letters = param.axes.replace("->", " ").split()
        assert letters, key
        assert set(letters) <= set("DNKH"), key
        assert param.init == "normal" or isinstance(param.init, float), key


def test_the_formula_of_a_gate_that_begins_open_has_its_bias():
    row = VARIANTS["head_gate"]
    assert f"b = {row.params['gate_bias'].init:g} at first" in row.formula
    assert jax.nn.sigmoid(row.params["gate_bias"].init) > 0.99


def test_the_paper_has_six_variants():
    assert [VARIANTS[name].letter for name in PAPER] == list("abcdef")
    assert VARIANTS["context_scale"].label == "(e) context_scale"
    assert VARIANTS["softpick"].label == "softpick"
    assert variants() == tuple(VARIANTS.values())


# ------------------------------------------------------------------------- docs/mitigations.md


PROPERTIES = (
    test_gradient_equals_a_finite_difference_of_the_oracle,
    test_every_parameter_matters_in_every_head,
    test_softmax_exactly_at_the_identity_and_nowhere_else,
    test_mass_of_normalised_rows,
    test_a_query_that_sees_no_key,
    test_bfloat16_is_close_to_float32,
    test_any_number_of_leading_axes,
    test_taps_are_called_once_with_the_documented_shapes,
    test_edits_replace_what_they_tap,
    test_rows_are_complete,
)


def test_the_guides_example_has_every_property(monkeypatch):
    """Entered as the guide says, with the guide's oracle: the guide promises these tests."""
    guide = (Path(__file__).parents[2] / "docs" / "mitigations.md").read_text()
    example, its_oracle = re.findall(r"```python\n(.*?)```", guide, re.S)
    entered, name = Table(), "learned_temperature"
    with monkeypatch.context() as patch:
        patch.setattr("sysout_jax.core.variants.VARIANTS", entered)
        exec(example, vars(attention.weights).copy())
    assert list(entered) == [name]
    monkeypatch.setitem(VARIANTS._rows, name, entered[name])
    with pytest.raises(pytest.fail.Exception, match=f"{name}_oracle in .*test_attention.py"):
        test_equals_a_loop_over_queries_and_keys(name, "grouped, causal")
    monkeypatch.setitem(ORACLES, name, None)
    exec(its_oracle, globals().copy())
    for case in SHAPES:
        test_equals_a_loop_over_queries_and_keys(name, case)
    test_causality(name, WINDOWED)
    for scale in EXTREME:
        test_finite_with_logits_of_ten_thousand(name, jnp.bfloat16, scale)
    for has_property in PROPERTIES:
        has_property(name)
