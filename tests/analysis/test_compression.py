"""A compressed model against a NumPy pass, and against what a scheme must leave as it is."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.compress import compression
from sysout_jax.analysis.compress.calibration import (
    PRODUCTS,
    disjoint_rows,
    inputs,
    limits,
    rotation,
)
from sysout_jax.analysis.compress.compressed import Compressed, losses, losses_by_token
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.compress.noise import agreement, noise
from sysout_jax.analysis.compress.rounding import Basis, RoundInputs, round_weights
from sysout_jax.analysis.compress.schemes import Rounding, scheme
from sysout_jax.analysis.locate.weights import layer_params
from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError
from sysout_jax.model.config import SHAPES, ModelConfig
from sysout_jax.model.decoder import forward, init, stack_blocks
from tests.refusing import refusal

CONFIG = replace(
    SHAPES["llama-tiny"], layers=2, width=12, heads=2, kv_heads=1, mlp_width=20, vocab=19
)
RANDOM = np.random.default_rng(3)
ROWS = RANDOM.integers(0, CONFIG.vocab, (5, 12)).astype(np.int32)
CALIBRATION = RANDOM.integers(0, CONFIG.vocab, (3, 12)).astype(np.int32)


@cache
def params(config: ModelConfig = CONFIG):
    """Weights large enough that rounding them is felt."""
    return jax.tree.map(lambda w: 5.0 * w, init(config, jax.random.key(0)))


@cache
def compressor() -> Compressor:
    return Compressor(CONFIG, params(), CALIBRATION)


@cache
def before() -> np.ndarray:
    return losses(CONFIG, Compressed(params()), ROWS)


def lost(method: str) -> float:
    found = compressor().compress(scheme(method))
    return float(np.mean(losses(CONFIG, found, ROWS) - before()))


def moved(method: str, rows: np.ndarray) -> float:
    """How far the logits go from those of the model as it was, squared."""
    found, tokens = compressor().compress(scheme(method)), jnp.asarray(rows[:, :-1])
    exact = forward(CONFIG, params(), tokens)[0]
    after = forward(CONFIG, found.params, tokens, edits=found.edits)[0]
    return float(jnp.sum(jnp.square(after - exact)))


# --------------------------------------------------------------------- one product


X = np.float32(RANDOM.normal(size=(2, 7, 8)) * np.geomspace(0.1, 30, 8))
W = np.float32(RANDOM.normal(size=(8, 5)))


def rounded(x, levels, axis=None):
    """AbsMax by hand."""
    step = np.max(np.abs(x), axis=axis, keepdims=True) / levels
    return np.round(x / step) * step


def test_inputs_are_rounded_by_token_or_by_sequence():
    def by(per):
        edit = so.Edit(RoundInputs("int5", per, zero_point=False), Basis(), None)
        return edit(jnp.asarray(X), jnp.asarray(0))

    np.testing.assert_allclose(by("vector"), rounded(X, 15, -1), rtol=1e-6)
    each = np.stack([rounded(x, 15) for x in X])
    np.testing.assert_allclose(by("tensor"), each, rtol=1e-6)


def test_static_ranges_are_those_of_the_layer():
    limits = jnp.asarray([[-1.0, 2.0], [-8.0, 4.0]])
    how = RoundInputs("int4", "tensor", zero_point=False)
    edit = so.Edit(how, Basis(), limits)
    expected = np.clip(np.round(X / (8 / 7)), -7, 7) * (8 / 7)
    np.testing.assert_allclose(edit(jnp.asarray(X), jnp.asarray(1)), expected, rtol=1e-6)
    edit = so.Edit(replace(how, zero_point=True), Basis(), limits)
    zero, step = np.round(8 / (12 / 15)), 12 / 15
    expected = (np.clip(np.round(X / step) + zero, 0, 15) - zero) * step
    np.testing.assert_allclose(edit(jnp.asarray(X), jnp.asarray(1)), expected, rtol=1e-5)


def test_heads_have_scales_of_their_own():
    value = jnp.asarray(X.reshape(2, 7, 2, 4))
    edit = so.Edit(RoundInputs("int4", "vector", zero_point=False, parts=2), Basis(), None)
    np.testing.assert_allclose(
        edit(value, jnp.asarray(0)), rounded(np.asarray(value), 7, -1), rtol=1e-6
    )


@pytest.mark.parametrize("per", ["vector", "tensor"])
def test_the_first_tokens_stay_and_count_for_no_range(per):
    how = RoundInputs("int5", per, zero_point=False, keep=2)
    found = np.asarray(so.Edit(how, Basis())(jnp.asarray(X), jnp.asarray(0)))
    np.testing.assert_array_equal(found[:, :2], X[:, :2])
    rest = np.stack([rounded(x, 15, -1 if per == "vector" else None) for x in X[:, 2:]])
    np.testing.assert_allclose(found[:, 2:], rest, rtol=1e-6)
    all_stay = so.Edit(replace(how, keep=7), Basis())(jnp.asarray(X), jnp.asarray(0))
    np.testing.assert_array_equal(all_stay, X)


@pytest.mark.parametrize("zero_point", [False, True])
def test_keys_share_a_scale_by_channel_over_runs_of_tokens(zero_point):
    """Of 40 tokens the last 8 are a run of their own, in which a zero point's range has 0."""
    keys = np.float32(RANDOM.normal(size=(40, 2, 3)) + 4.0) * np.geomspace(1.0, 99.0, 3)
    how = RoundInputs("int4", "vector", zero_point, parts=2, by_channel=True)
    found = how(jnp.asarray(keys, jnp.float32), jnp.asarray(0), Basis())
    expected = np.zeros(keys.shape)
    for run in (slice(0, 32), slice(32, 40)):
        for at in np.ndindex(2, 3):
            x = np.float64(keys[run, *at])
            if zero_point:
                low, high = min(x.min(), 0.0), max(x.max(), 0.0)
                step = (high - low) / 15
                offset = np.round(-low / step)
                expected[run, *at] = (np.clip(np.round(x / step) + offset, 0, 15) - offset) * step
            else:
                expected[run, *at] = rounded(x, 7)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_inputs_that_stay_leave_the_ranges_to_the_others():
    exact = jnp.asarray([[False] * 8, [False] * 6 + [True] * 2])
    how = RoundInputs("int8", "tensor", zero_point=False)
    found = np.asarray(so.Edit(how, Basis(), None, exact)(jnp.asarray(X), jnp.asarray(1)))
    np.testing.assert_array_equal(found[..., 6:], X[..., 6:])
    np.testing.assert_allclose(found[..., :6], [rounded(x, 127) for x in X[..., :6]], rtol=1e-6)
    w = np.asarray(round_weights(Rounding("int4"), jnp.asarray(W), Basis(), exact=exact[1]))
    np.testing.assert_array_equal(w[6:], W[6:])
    np.testing.assert_allclose(w[:6], rounded(W[:6], 7, 0), rtol=1e-6)


BASES = {
    "given": Basis(),
    "scales": Basis(scales=jnp.asarray(np.float32([np.geomspace(0.2, 9, 8)] * 2))),
    "rotation": Basis(rotation=rotation("attn_norm", 8)),
}


@pytest.mark.parametrize("name", BASES)
def test_both_sides_are_rounded_in_the_same_coordinates(name):
    """round(x B) B^-1 times B round(B^-1 W) is round(x B) round(B^-1 W), made by hand."""
    basis = BASES[name]
    b = np.eye(8)
    if name == "scales":
        b = np.diag(1 / np.asarray(basis.scales[1]))
    elif name == "rotation":
        b = np.asarray(basis.rotation)
    edit = so.Edit(RoundInputs("int8", "vector", zero_point=False), basis, None)
    x = np.asarray(edit(jnp.asarray(X), jnp.asarray(1)))
    w = np.asarray(round_weights(Rounding("int8"), jnp.asarray(W), basis.at(1)))
    by_hand = rounded(X @ b, 127, -1) @ rounded(np.linalg.inv(b) @ W, 127, 0)
    np.testing.assert_allclose(x @ w, by_hand, rtol=2e-4, atol=2e-4)
    gram = X[0].T @ X[0]
    np.testing.assert_allclose(
        basis.at(1).gram_into(jnp.asarray(gram)), b.T @ gram @ b, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("per", ["tensor", "vector", "group"])
@pytest.mark.parametrize("zero_point", [False, True])
def test_gptq_of_the_identity_is_rounding_to_nearest(per, zero_point):
    how = Rounding("int4", per=per, group=4, zero_point=zero_point)
    w = jnp.asarray(W)
    nearest = round_weights(how, w, Basis())
    assert np.max(np.abs(nearest - W)) > 0.01
    by = round_weights(replace(how, by="gptq"), w, Basis(), jnp.eye(8), jnp.ones(8))
    np.testing.assert_allclose(by, nearest, atol=1e-6)


def correlated(count):
    """The Gram matrix of inputs that tell of each other."""
    random = np.random.default_rng(4)
    x = random.standard_normal((40, count)) @ random.standard_normal((count, count))
    return x.T @ x


def test_gptq_in_a_basis_is_gptq_of_what_is_rounded_there():
    w, gram, basis = jnp.asarray(W), correlated(8), Basis(rotation=rotation("down_in", 8))
    turn = np.asarray(basis.rotation, np.float64)
    by = partial(round_weights, scheme("gptq-w3"), magnitude=jnp.ones(8))
    found = by(w=w, basis=basis, gram=jnp.asarray(gram))
    there = by(w=jnp.asarray(turn.T @ W), basis=Basis(), gram=jnp.asarray(turn.T @ gram @ turn))
    np.testing.assert_allclose(found, turn @ np.asarray(there), rtol=1e-3, atol=1e-3)


def test_ranges_of_gptqs_groups_are_of_weights_as_they_are_by_then():
    """The loop of Frantar et al. 2023, algorithm 1, which takes a group's scale at its turn."""
    gram = correlated(8)
    upper = np.linalg.cholesky(np.linalg.inv(gram + 0.01 * np.diag(gram).mean() * np.eye(8))).T
    rest, expected = np.array(W, np.float64), np.zeros(W.shape)
    for at in range(8):
        if at % 4 == 0:
            step = np.abs(rest[at : at + 4]).max(axis=0) / 3
        expected[at] = np.clip(np.round(rest[at] / step), -3, 3) * step
        rest[at + 1 :] -= np.outer(upper[at, at + 1 :], (rest[at] - expected[at]) / upper[at, at])
    how = Rounding("int3", per="group", group=4, by="gptq")
    found = round_weights(how, jnp.asarray(W), Basis(), jnp.asarray(gram), jnp.ones(8))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_without_a_format_weights_stay_as_they_are():
    scales = jnp.linspace(0.5, 3.0, len(W))
    same = round_weights(Rounding(activations="int8"), jnp.asarray(W), Basis(scales))
    np.testing.assert_array_equal(same, np.asarray(W, same.dtype))


def test_a_method_without_what_it_takes():
    with pytest.raises(ValueError, match="gptq: takes the Gram matrix"):
        round_weights(Rounding("int4", by="gptq"), jnp.asarray(W), Basis())


# ------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("ranges", ["", "-minmax"])
def test_what_stays_is_what_reaches_a_bound_in_calibration_text(ranges):
    seen = compressor().known()
    bound = round(float(np.median(seen["down_in"].peak)), 2)
    found = compressor().compress(scheme(f"w3a3-tensor-split{bound}{ranges}"))
    exact = {tap: of.peak >= bound for tap, of in seen.items()}
    assert 0 < exact["down_in"].sum() < exact["down_in"].size
    for tap, edit in found.edits.items():
        np.testing.assert_array_equal(edit.arrays[2], exact[tap])
        if ranges:
            low, high = (np.where(exact[tap], 0.0, x) for x in (seen[tap].low, seen[tap].high))
            np.testing.assert_allclose(
                edit.arrays[1], np.stack([low.min(-1), high.max(-1)], -1), rtol=1e-5
            )
    for layer, stays in enumerate(exact["down_in"]):
        before, after = (layer_params(p, layer)["mlp"]["down"] for p in (params(), found.params))
        np.testing.assert_array_equal(np.all(before == after, axis=1), stays)
    sizes = {"attn_norm": 288, "attn_mix": 144, "mlp_norm": 480, "down_in": 240}
    shares = [np.average([exact[tap][i].mean() for tap in sizes], weights=list(sizes.values()))
              for i in range(CONFIG.layers)]  # fmt: skip
    assert found.bits == pytest.approx(3 + 13 * np.mean(shares))


@pytest.mark.parametrize(
    ("method", "same"),
    [("split0-w4a4", "w16a16"), ("split9999-w4a4-tensor", "w4a4-tensor"), ("keep99-a4kv4", "w16")],
)
def test_nothing_or_everything_stays(method, same):
    found, alike = (losses(CONFIG, compressor().compress(scheme(m)), ROWS) for m in (method, same))
    np.testing.assert_allclose(found, alike, rtol=1e-6)


def test_what_is_learnt_of_ranges_is_of_tokens_that_are_rounded():
    tokens, tap = jnp.asarray(CALIBRATION[:, :-1]), "down_in"
    seen = np.asarray(forward(CONFIG, params(), tokens, {tap: None})[1][tap])
    rest = np.abs(seen[:, :, 5:])
    assert np.any(np.abs(seen).max(axis=(1, 2, 3)) > rest.max(axis=(1, 2, 3)))
    expected = {
        "a8-minmax-keep5": rest.max(axis=(1, 2, 3)),
        "a8-percentile-keep5": np.percentile(rest, 99.999, axis=(2, 3)).mean(axis=1),
    }
    for method, top in expected.items():
        ends = compressor().compress(scheme(method)).edits[tap].arrays[1]
        np.testing.assert_allclose(np.abs(ends).max(axis=-1), top, rtol=1e-4)
    smooth = compressor().compress(scheme("smoothall-w8a8-keep5")).edits[tap].arrays[0]
    down = [np.abs(layer_params(params(), i)["mlp"]["down"]).max(axis=1) for i in (0, 1)]
    scales = np.sqrt(rest.max(axis=(1, 2)) / np.stack(down))
    np.testing.assert_allclose(smooth.scales, scales, rtol=1e-4)


@pytest.mark.parametrize("method", ["a8-minmax", "a8-mse", "smooth-w8a8", "split6-w8a8"])
def test_tokens_that_all_stay_leave_nothing_to_learn(method):
    line = refusal(compressor().compress, scheme(f"{method}-keep11"))
    assert line == (
        "methods: keep11 leaves none of 11; accepted: calibration rows of more than 11 tokens"
    )


@pytest.mark.parametrize("keep", [0, 1, 3])
@pytest.mark.parametrize("variant", ["softmax", "softpick", "sink_logit"])
def test_keys_that_are_evicted_are_not_there(variant, keep):
    """Each query alone: of a sequence of the tokens that it sees, at their positions."""
    config = replace(CONFIG, layers=1, position="none", variant=variant)
    weights, window = params(config), 4
    of = Compressor(config, weights, CALIBRATION)
    method = f"window{window}-keep{keep}" if keep else f"window{window}"
    found = losses_by_token(config, of.compress(scheme(method)), ROWS)
    for end in range(1, ROWS.shape[1] - 1):
        seen = [*range(min(keep, end)), *range(max(keep, end - window), end)]
        alone = ROWS[:, [*seen, end]]
        expected = losses_by_token(config, Compressed(weights), alone)[:, -1]
        np.testing.assert_allclose(found[:, end - 1], expected, rtol=1e-4)


def test_a_window_is_that_of_the_architecture():
    found = losses(CONFIG, compressor().compress(scheme("window3")), ROWS)
    alike = losses(replace(CONFIG, window=3), Compressed(params()), ROWS)
    np.testing.assert_allclose(found, alike, rtol=1e-5)
    assert not np.allclose(found, before(), rtol=1e-3)


def test_keys_are_not_evicted_in_blocks():
    config = CONFIG.with_execution(query_block=4)
    edits = compressor().compress(scheme("window3")).edits
    line = refusal(forward, config, params(), jnp.asarray(ROWS), edits=edits)
    assert line == "query_block: accepted: attention at once, where keys are evicted"


def test_a_rotated_cache_is_rounded_in_rotated_channels():
    found = compressor().compress(scheme("rotate-kv4")).edits
    assert set(found) == {"key", "value"}
    value = jnp.asarray(RANDOM.normal(size=(3, 5, 1, 6)), jnp.float32)
    for tap, edit in found.items():
        b = np.asarray(rotation(tap, 6))
        expected = rounded(np.asarray(value) @ b, 7, -1) @ b.T
        np.testing.assert_allclose(edit(value, jnp.asarray(1)), expected, atol=1e-5)


def test_inputs_are_those_of_the_taps():
    tokens = CALIBRATION[:, :-1]
    found = inputs(CONFIG, params(), tokens)
    seen = forward(CONFIG, params(), jnp.asarray(tokens), dict.fromkeys(PRODUCTS))[1]
    for tap, of in found.items():
        x = np.asarray(seen[tap], np.float64).reshape(CONFIG.layers, -1, of.mean.shape[-1])
        np.testing.assert_allclose(of.gram, np.swapaxes(x, 1, 2) @ x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(of.square, np.square(x).sum(axis=1), rtol=1e-4)
        np.testing.assert_allclose(of.mean, np.abs(x).mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(of.peak, np.abs(x).max(axis=1), rtol=1e-5)
        np.testing.assert_allclose(of.low, x.min(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_static_ranges_by_hand(ranges):
    tokens, tap = CALIBRATION[:, :-1], "down_in"
    how = Rounding("int4", "int4", ranges=ranges)
    found = limits(CONFIG, params(), tokens, how, [tap])[tap]
    seen = forward(CONFIG, params(), jnp.asarray(tokens), {tap: None})[1][tap]
    x = np.asarray(seen, np.float64).reshape(CONFIG.layers, len(tokens), -1)
    if ranges == "minmax":
        expected = np.stack([x.min(axis=(1, 2)), x.max(axis=(1, 2))], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        return
    if ranges == "percentile":
        top = np.percentile(np.abs(x), 99.999, axis=2).mean(axis=1)
    else:
        top = np.zeros(CONFIG.layers)
        for layer, sequences in enumerate(x):
            for flat in sequences:
                tried = np.abs(flat).max() * np.linspace(1.0, 0.2, 81)
                errors = [
                    np.sum((np.clip(np.round(flat / (t / 7)), -7, 7) * (t / 7) - flat) ** 2)
                    for t in tried
                ]
                top[layer] += tried[int(np.argmin(errors))] / len(sequences)
    np.testing.assert_allclose(found, np.stack([-top, top], axis=1), rtol=1e-4)


def test_ranges_after_a_rotation_are_of_rotated_inputs():
    tokens, tap = CALIBRATION[:, :-1], "mlp_norm"
    basis = Basis(rotation=rotation(tap, CONFIG.width))
    how = Rounding("int8", "int8", basis="rotate", ranges="minmax")
    found = limits(CONFIG, params(), tokens, how, [tap])[tap]
    seen = forward(CONFIG, params(), jnp.asarray(tokens), {tap: None})[1][tap]
    x = np.asarray(seen) @ np.asarray(basis.rotation)
    expected = np.stack([x.min(axis=(1, 2, 3)), x.max(axis=(1, 2, 3))], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_calibration_has_no_text_of_the_evaluation():
    evaluation = np.arange(40).reshape(2, 20)
    clean = 100 + np.arange(40).reshape(2, 20)
    shifted = np.concatenate([evaluation[0, 5:], np.full(5, 77)])[None]  # 15 tokens in common
    few = np.concatenate([np.full(11, 78), evaluation[1, :9]])[None]  # 9 of 20
    found = disjoint_rows(np.concatenate([clean[:1], shifted, few, clean[1:]]), evaluation, 3)
    np.testing.assert_array_equal(found, np.concatenate([clean[:1], few, clean[1:]]))
    with pytest.raises(InputError, match="only 0 of 2 sequences of the training part"):
        disjoint_rows(evaluation, evaluation, 1)


# -------------------------------------------------------------------------- the model


def test_sixteen_bits_change_nothing():
    found = compressor().compress(scheme("w16a16kv16"))
    assert not found.edits
    np.testing.assert_array_equal(losses(CONFIG, found, ROWS), before())


@pytest.mark.parametrize("basis", ["rotate", "smoothall"])
def test_a_basis_alone_leaves_the_logits(basis):
    """Exact before rounding: nothing but float32 rounding is left, of weights of usual size."""
    usual = init(CONFIG, jax.random.key(0))
    k = Compressor(CONFIG, usual, CALIBRATION)
    how = Rounding("int16", "int16", basis=basis)
    blocks = k._blocks()
    bases = {tap: k._basis(how, tap, blocks) for tap in PRODUCTS}
    for tap, layer, module, name in k._places(blocks):
        b = bases[tap].at(layer)
        w = k._matrix(blocks, layer, module, name)
        k._put(blocks, layer, module, name, b.weights_back(b.weights_into(w)))
    edits = {
        tap: lambda value, layer, b=basis_: (
            b.at(layer)
            .back(b.at(layer).into(value.reshape(*value.shape[:2], -1)))
            .reshape(value.shape)
        )
        for tap, basis_ in bases.items()
    }
    tokens = jnp.asarray(ROWS[:, :-1])
    expected = forward(CONFIG, usual, tokens)[0]
    found = forward(CONFIG, k._joined(blocks), tokens, edits=edits)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fewer_bits_cost_more():
    """By the logits: the loss of a model that was never trained can fall by chance."""
    costs = [moved(method, ROWS) for method in ("w8a8", "w6a6", "w4a4", "w2a2")]
    assert costs == sorted(costs)
    assert costs[0] > 0


def test_a_product_of_the_model_is_made_of_rounded_sides():
    """The down projection of the last layer by NumPy, from the taps of the compressed model."""
    found = compressor().compress(scheme("w4a6"))
    tokens = jnp.asarray(ROWS[:, :-1])
    taps = dict.fromkeys(("down_in", "down_out"))
    seen = forward(CONFIG, found.params, tokens, taps, found.edits)[1]
    w = np.asarray(layer_params(params(), 1)["mlp"]["down"])
    given = np.asarray(seen["down_in"][1])  # rounded by the edit; rounding again changes nothing
    np.testing.assert_allclose(given, rounded(given, 31, -1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen["down_out"][1], given @ rounded(w, 7, 0), rtol=1e-3, atol=1e-5)


def test_the_cache_is_of_keys_and_values():
    found = compressor().compress(scheme("kv3"))
    assert set(found.edits) == {"key", "value"}
    assert lost("kv3") != 0.0


WIDE = replace(CONFIG, kv_heads=2)


def seen(tap, config=CONFIG, tokens=CALIBRATION[:, :-1]):
    """[L, B T, ...], of the model as it was."""
    x = np.asarray(forward(config, params(config), jnp.asarray(tokens), {tap: None})[1][tap])
    return np.float64(x.reshape(len(x), -1, *x.shape[3:]))


def test_every_head_of_the_cache_has_a_scale_of_its_own():
    found = Compressor(WIDE, params(WIDE), CALIBRATION).compress(scheme("kv4"))
    for tap in ("key", "value"):
        before = seen(tap, WIDE)[0].reshape(len(CALIBRATION), 11, 2, 6)
        after = found.edits[tap](jnp.asarray(before, jnp.float32), jnp.asarray(0))
        np.testing.assert_allclose(after, rounded(before, 7, -1), rtol=1e-4, atol=1e-6)


def test_inputs_may_share_a_scale_where_weights_do_not():
    found = compressor().compress(scheme("w8a4-atensor"))
    x = seen("down_in")[1].reshape(len(CALIBRATION), 11, -1)
    after = found.edits["down_in"](jnp.asarray(x, jnp.float32), jnp.asarray(1))
    for of, sequence in zip(after, x, strict=True):
        np.testing.assert_allclose(of, rounded(sequence, 7, None), rtol=1e-4, atol=1e-6)
    w = np.float64(layer_params(params(), 1)["mlp"]["down"])
    new = layer_params(found.params, 1)["mlp"]["down"]
    np.testing.assert_allclose(new, rounded(w, 127, 0), rtol=1e-4, atol=1e-6)


def test_smoothing_is_by_the_largest_of_inputs_and_of_all_matrices_that_read_them():
    k = Compressor(CONFIG, params(), CALIBRATION, alpha=0.7)
    found = k._basis(scheme("smooth-w8a8"), "mlp_norm", k._blocks()).scales
    for layer, x in enumerate(seen("mlp_norm")):
        mlp = layer_params(params(), layer)["mlp"]
        both = np.abs(np.concatenate([mlp["gate"], mlp["up"]], axis=1)).max(axis=1)
        expected = np.abs(x).max(axis=0) ** 0.7 / both**0.3
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4)


def test_smoothing_of_smoothquant_is_of_inputs_behind_norms():
    """Mixes of values and neurons are rounded as they are; `smoothall` rescales them too."""
    k = compressor()
    smooth, everywhere, plain = (
        k.compress(scheme(f"{basis}w8a8-minmax")) for basis in ("smooth-", "smoothall-", "")
    )
    for tap in PRODUCTS:
        scaled = tap in ("attn_norm", "mlp_norm")
        assert (smooth.edits[tap].arrays[0].scales is not None) == scaled
        assert everywhere.edits[tap].arrays[0].scales is not None
        scales = np.asarray(everywhere.edits[tap].arrays[0].scales)
        x = seen(tap).reshape(CONFIG.layers, -1, scales.shape[-1])
        ends = [f(x / scales[:, None], axis=(1, 2)) for f in (np.min, np.max)]
        np.testing.assert_allclose(everywhere.edits[tap].arrays[1], np.stack(ends, 1), rtol=1e-4)
        like = everywhere if scaled else plain
        np.testing.assert_array_equal(smooth.edits[tap].arrays[1], like.edits[tap].arrays[1])
    for module, name in (("mlp", "down"), ("attn", "out")):
        of = (layer_params(found.params, 1)[module][name] for found in (smooth, plain))
        np.testing.assert_array_equal(*of)


def test_gram_matrices_are_measured_for_what_compensates(monkeypatch):
    asked, real = [], compression.inputs
    monkeypatch.setattr(compression, "inputs", lambda *of: asked.append(of[4]) or real(*of))
    k = Compressor(CONFIG, params(), CALIBRATION)
    for method in ("smooth-w8a8", "w8a8-minmax", "wanda-0.5", "w8a8-mse"):
        k.compress(scheme(method))
    assert asked == [False]
    for method in ("gptq-w4", "sparsegpt-0.5", "awq-w4", "wanda-2:4"):
        k.compress(scheme(method))
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("method", "plain"),
    [
        ("gptq-order-sequential-w3-g4", "gptq-order-w3-g4"),
        ("awq-sequential-w3", "awq-w3"),
        ("rotate-gptq-sequential-w3a4", "rotate-gptq-w3a4"),
        ("wanda-0.5-sequential", "wanda-0.5"),
        ("sparsegpt-2:4-sequential", "sparsegpt-2:4"),
    ],
)
def test_a_layer_learns_behind_those_that_are_compressed(method, plain):
    """The second layer is that of a model whose first is compressed before anything is measured."""

    def blocks(of, how):
        found = Compressor(CONFIG, of, CALIBRATION).compress(scheme(how)).params
        return [layer_params(found, layer) for layer in range(CONFIG.layers)]

    found, once = blocks(stack_blocks(params()), method), blocks(params(), plain)
    twice = blocks(params() | {"block_0": once[0]}, plain)
    same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5))
    same(found, [once[0], twice[1]])
    assert not np.allclose(found[1]["mlp"]["down"], once[1]["mlp"]["down"], atol=1e-3)


def test_what_was_measured_for_gptq_prunes_nothing_for_wanda():
    alone = Compressor(CONFIG, params(), CALIBRATION).compress(scheme("wanda-0.5")).params
    k = Compressor(CONFIG, params(), CALIBRATION)
    k.compress(scheme("gptq-w4"))
    jax.tree.map(np.testing.assert_array_equal, k.compress(scheme("wanda-0.5")).params, alone)


@pytest.mark.parametrize("method", ["wanda-0.5-owl", "magnitude-0.5-owl", "sparsegpt-0.5-owl"])
def test_layers_lose_by_their_outliers(method):
    config = replace(CONFIG, layers=3)
    k = Compressor(config, params(config), CALIBRATION)
    found = k.compress(scheme(method))
    outliers = []
    for layer in range(3):
        scores = []
        for tap, places in PRODUCTS.items():
            norm = np.sqrt(k.known()[tap].square[layer])
            for module, name in places:
                w = np.asarray(layer_params(params(config), layer)[module][name])
                scores.append((np.abs(w.reshape(len(norm), -1)) * norm[:, None]).ravel())
        flat = np.concatenate(scores)
        outliers.append(np.mean(flat > 5 * flat.mean()))
    kept = 0.16 * (np.array(outliers) - min(outliers)) / np.ptp(outliers)
    expected = 0.5 + kept.mean() - kept
    assert np.ptp(outliers) > 0.0
    for name, zeros in found.zeros.items():
        size = {"down": 20, "out": 12}.get(name, 12)
        np.testing.assert_allclose(zeros, expected, atol=1.01 / size, err_msg=name)


def test_wanda_keeps_the_largest_of_weight_times_the_inputs_norm():
    found = compressor().compress(scheme("wanda-0.5"))
    for layer, x in enumerate(seen("down_in")):
        w = np.float64(layer_params(params(), layer)["mlp"]["down"])
        score = np.abs(w) * np.linalg.norm(x, axis=0)[:, None]
        kept = score > np.sort(score, axis=0)[len(w) // 2 - 1]
        new = np.asarray(layer_params(found.params, layer)["mlp"]["down"])
        np.testing.assert_array_equal(new != 0, kept)


def test_awq_goes_by_the_mean_of_inputs():
    found = compressor().compress(scheme("awq-w3"))
    x = seen("down_in")[1]
    w, gram = layer_params(params(), 1)["mlp"]["down"], jnp.asarray(x.T @ x)
    by = {
        name: round_weights(scheme("awq-w3"), w, Basis(), gram, jnp.asarray(of))
        for name, of in (("mean", np.abs(x).mean(axis=0)), ("peak", np.abs(x).max(axis=0)))
    }
    assert np.abs(by["mean"] - by["peak"]).max() > 1e-3
    new = layer_params(found.params, 1)["mlp"]["down"]
    np.testing.assert_allclose(new, by["mean"], rtol=1e-4, atol=1e-5)


def test_sites_choose_what_is_compressed():
    some = Compressor(CONFIG, params(), CALIBRATION, sites=("down_in",))
    found = some.compress(scheme("w4a4"))
    assert set(found.edits) == {"down_in"}
    changed = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (jax.tree_util.keystr(path), bool(jnp.any(a != b))),
        found.params, params(),
    )  # fmt: skip
    names = [n for n, d in jax.tree.leaves(changed, is_leaf=lambda x: isinstance(x, tuple)) if d]
    assert names
    assert all("down" in name for name in names), names


@pytest.mark.parametrize(
    "method", ["magnitude-0.5", "global-0.5", "wanda-0.5", "sparsegpt-0.5", "magnitude-2:4",
               "wanda-2:4", "sparsegpt-2:4"],
)  # fmt: skip
def test_the_share_that_is_pruned(method):
    found = compressor().compress(scheme(method))
    assert not found.edits
    shares = np.concatenate(list(found.zeros.values()))
    sizes = {"query": 144, "key": 72, "value": 72, "out": 144, "gate": 240, "up": 240, "down": 240}
    total = sum(np.sum(share) * sizes[name] for name, share in found.zeros.items())
    assert total == pytest.approx(0.5 * CONFIG.layers * sum(sizes.values()), rel=0.02)
    if method.startswith("global"):
        assert np.ptp(shares) > 0.05
    else:
        np.testing.assert_allclose(shares, 0.5, atol=0.03)
    if method.endswith("2:4"):
        down = np.asarray(layer_params(found.params, 0)["mlp"]["down"])
        assert np.all(np.sum(down.reshape(5, 4, -1) != 0, axis=1) == 2)


def test_calibration_helps_on_average():
    """GPTQ and SparseGPT against what they improve, on the text that they were calibrated on."""
    assert moved("gptq-w3", CALIBRATION) < moved("w3", CALIBRATION)
    assert moved("sparsegpt-0.5", CALIBRATION) < moved("magnitude-0.5", CALIBRATION)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_compressed(variant):
    config = replace(CONFIG, variant=variant)
    k = Compressor(config, params(config), CALIBRATION)
    found = k.compress(scheme("w4a4kv8"))
    assert np.all(np.isfinite(losses(config, found, ROWS)))


# ----------------------------------------------------------------------------- experts

MIXTURE = replace(CONFIG, experts=3, experts_per_token=2)


def alike():
    """Parameters of a mixture whose experts are the dense model's MLP, with a router of its own."""
    dense, mixture = params(), jax.tree.map(np.array, params(MIXTURE))
    for layer in range(CONFIG.layers):
        of, own = (layer_params(p, layer)["mlp"] for p in (dense, mixture))
        for name, w in of.items():
            own[name][:] = np.asarray(w)[None]
    return jax.tree.map(jnp.asarray, mixture | {
        name: of for name, of in dense.items() if not name.startswith("block")
    } | {
        block: {part: dense[block][part] if part != "mlp" else of[part] for part in of}
        for block, of in mixture.items() if block.startswith("block_")
    })  # fmt: skip


@pytest.mark.parametrize(
    "method",
    ["w4", "w4-g4", "hqq-w3-g4", "w6a4", "w8a8-tensor", "rotate-w4a4", "wnf4", "zero-w4", "kv4",
     "magnitude-0.5", "magnitude-2:4", "wnvfp4anvfp4"],
)  # fmt: skip
def test_a_mixture_of_equal_experts_is_the_dense_model(method):
    """Under every method that learns nothing from text; weights of the experts sum to one."""
    mixture, dense = Compressor(MIXTURE, alike(), CALIBRATION), compressor()
    found, expected = (k.compress(scheme(method)) for k in (mixture, dense))
    assert losses(MIXTURE, found, ROWS) == pytest.approx(losses(CONFIG, expected, ROWS), rel=1e-4)
    for layer in range(CONFIG.layers):
        of, one = (layer_params(each.params, layer)["mlp"] for each in (found, expected))
        for name, w in one.items():
            for expert in of[name]:
                np.testing.assert_allclose(expert, w, rtol=1e-5, atol=1e-6)


def test_every_expert_has_scales_of_its_own():
    """One expert's weights a hundred times another's: rounded by hand, output channel by channel;
    and the inputs of its down projection, position by position."""
    p = jax.tree.map(np.array, params(MIXTURE))
    for layer in range(2):
        mlp = layer_params(p, layer)["mlp"]
        mlp["up"][1] *= 100.0
        mlp["down"][1] /= 100.0
    p = jax.tree.map(jnp.asarray, p)
    found = Compressor(MIXTURE, p, CALIBRATION).compress(scheme("w4a4"))
    for layer in range(2):
        old, new = (layer_params(each, layer)["mlp"] for each in (p, found.params))
        np.testing.assert_array_equal(new["router"], old["router"])
        for name in ("gate", "up", "down"):
            for before, after in zip(old[name], new[name], strict=True):
                expected = rounded(np.asarray(before, np.float64), 7, axis=0)
                np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-7)
    tokens = jnp.asarray(ROWS[:, :-1])
    taps = {"down_in": None}
    edits = {"mlp_norm": found.edits["mlp_norm"]}
    before = forward(MIXTURE, p, tokens, taps, edits)[1]["down_in"][0]
    edits["down_in"] = found.edits["down_in"]
    after = forward(MIXTURE, p, tokens, taps, edits)[1]["down_in"][0]
    each = np.asarray(before, np.float64).reshape(*before.shape[:2], 2, -1)
    expected = rounded(each, 7, axis=-1).reshape(before.shape)
    assert np.mean(np.isclose(after, expected, rtol=1e-3, atol=1e-6)) > 0.999  # but for ties


@pytest.mark.parametrize("method", ["gptq-w4", "awq-w4", "smooth-w8a8", "w8a8-minmax", "wanda-2:4"])
def test_what_learns_from_the_inputs_of_experts_is_refused(method):
    k = Compressor(MIXTURE, params(MIXTURE), CALIBRATION)
    with pytest.raises(InputError, match="inputs of the 3 experts are not told apart"):
        k.compress(scheme(method))
    attention = ("attn_norm", "attn_mix")
    found = Compressor(MIXTURE, params(MIXTURE), CALIBRATION, attention).compress(scheme(method))
    assert np.all(np.isfinite(losses(MIXTURE, found, ROWS)))


def test_a_share_of_all_weights_counts_every_expert():
    found = Compressor(MIXTURE, params(MIXTURE), CALIBRATION).compress(scheme("global-0.5"))
    before, after = (
        [np.asarray(w) for name, w in jax.tree_util.tree_leaves_with_path(tree)
         if name[0].key.startswith("block") and w.ndim > 1 and name[-1].key != "router"]
        for tree in (params(MIXTURE), found.params)
    )  # fmt: skip
    assert np.mean(np.concatenate([w.ravel() for w in after]) == 0) == pytest.approx(0.5, abs=1e-3)
    kept = min(np.abs(w[w != 0]).min() for w in after)
    gone = max(np.abs(b[a == 0]).max() for a, b in zip(after, before, strict=True))
    assert gone <= kept


def test_noise_of_a_mixture():
    """Experts that a token goes to have rows of their own; so have their inputs, of which one
    neuron of one expert is an outlier."""
    p, tokens = jax.tree.map(np.array, params(MIXTURE)), ROWS[:2, :-1]
    for layer in range(CONFIG.layers):
        layer_params(p, layer)["mlp"]["up"][1, :, 5] *= 60.0
    p = jax.tree.map(jnp.asarray, p)
    found = noise(MIXTURE, p, tokens)
    assert all(np.isfinite(row.peak_over_rms).all() for row in found)
    (row,) = (each for each in found if each.name == "down_in")
    seen = forward(MIXTURE, p, jnp.asarray(tokens), dict.fromkeys(("experts", "down_in")))[1]
    rows, experts = (np.asarray(seen[name]) for name in ("down_in", "experts"))
    for layer in range(CONFIG.layers):
        wanted = [
            flushed_by_loop(np.float64(x).reshape(of.size, -1), of.ravel())
            for x, of in zip(rows[layer], experts[layer], strict=True)
        ]
        flushed_as(wanted, row, layer)


# ------------------------------------------------------------------------------ noise


def test_noise_is_that_of_each_tensor():
    tokens = ROWS[:, :-1]
    found = {(row.kind, row.name): row for row in noise(CONFIG, params(), tokens, bits=(6,))}
    assert {name for kind, name in found if kind == "activation"} == set(PRODUCTS)
    seen = forward(CONFIG, params(), jnp.asarray(tokens), {"mlp_norm": None})[1]["mlp_norm"]
    for layer, x in enumerate(np.asarray(seen, np.float64)):
        ratios = [np.abs(s).max() / np.sqrt(np.mean(s**2)) for s in x]
        errors = [10 * np.log10(np.sum(s**2) / np.sum((s - rounded(s, 31)) ** 2)) for s in x]
        row = found["activation", "mlp_norm"]
        np.testing.assert_allclose(row.peak_over_rms[layer], np.mean(ratios), rtol=1e-4)
        np.testing.assert_allclose(row.measured[6][layer], np.mean(errors), atol=0.02)
    w = np.asarray(layer_params(params(), 1)["mlp"]["up"], np.float64)
    sqnr = 10 * np.log10(np.sum(w**2) / np.sum((w - rounded(w, 31)) ** 2))
    np.testing.assert_allclose(found["weight", "up"].measured[6][1], sqnr, atol=0.02)


def flushed_by_loop(x, expert=None):
    """Shares of NVFP4's zeros by its definition, and the outlier inputs, of x [rows, inputs]; rows
    of one expert share inputs."""
    deviation = np.sqrt(np.mean((x - x.mean()) ** 2))
    expert = np.zeros(len(x), int) if expert is None else expert
    far = np.abs(x - x.mean()) > 6 * deviation
    found = {(expert[row], i) for row, i in np.argwhere(far)}
    outlier = np.array([[(e, i) in found for i in range(x.shape[1])] for e in expert])
    shares = {}
    for name, of in (("flushed", x), ("flushed_without", np.where(outlier, 0.0, x))):
        unit = np.abs(of).max() / (6 * 448)
        lost = np.zeros(of.shape, bool)
        for row, start in np.ndindex(len(of), -(-of.shape[1] // 16)):
            block = of[row, 16 * start : 16 * start + 16]
            step = float(np.float32(np.abs(block).max() / 6 / unit).astype("float8_e4m3fn")) * unit
            lost[row, 16 * start : 16 * start + 16] = (block != 0) & (np.abs(block) <= step / 4)
        shares[name] = lost.sum() / (of != 0).sum()
        if name == "flushed":
            shares["flushed_rest"] = lost[~outlier].sum() / (x[~outlier] != 0).sum()
    return shares | {"outlier_inputs": len(found)}


def flushed_as(wanted, row, layer):
    for name in ("flushed", "flushed_rest", "flushed_without"):
        mean = np.mean([each[name] for each in wanted])
        assert getattr(row, name)["nvfp4"][layer] == pytest.approx(mean, abs=2e-3), name
    assert row.outlier_inputs[layer] == np.mean([each["outlier_inputs"] for each in wanted]) > 0


def test_what_is_flushed_to_zero_is_counted_beside_outlier_inputs_and_without_them():
    """A large channel, and a last block that is not full; rows of a weight are its inputs, so that
    blocks run down the columns."""
    config = replace(CONFIG, width=60, heads=2)
    p = jax.tree.map(np.array, params(config))
    for layer in range(config.layers):
        block = layer_params(p, layer)
        block["mlp"]["up"][5] = 60.0 * block["mlp"]["up"].std()
        block["mlp_norm"]["scale"][3] = 40.0
    p, tokens = jax.tree.map(jnp.asarray, p), ROWS[:, :-1]
    found = {(row.kind, row.name): row for row in noise(config, p, tokens, sites=("mlp_norm",))}
    seen = forward(config, p, jnp.asarray(tokens), {"mlp_norm": None})[1]["mlp_norm"]
    for layer in range(config.layers):
        up = np.asarray(layer_params(p, layer)["mlp"]["up"], np.float64)
        texts = [flushed_by_loop(x) for x in np.asarray(seen[layer], np.float64)]
        for key, wanted in (
            (("weight", "up"), [flushed_by_loop(up.T)]), (("activation", "mlp_norm"), texts),
        ):  # fmt: skip
            row = found[key]
            flushed_as(wanted, row, layer)
            assert row.flushed_rest["nvfp4"][layer] > row.flushed_without["nvfp4"][layer]
            assert row.flushed_rest["mxfp4"][layer] > row.flushed_without["mxfp4"][layer]


def test_normal_weights_are_predicted():
    """The weights are normal, as theory E1 assumes: within 1 dB although the tensors are small."""
    for row in noise(CONFIG, params(), ROWS[:, :-1]):
        if row.kind == "weight":
            for bits in (8, 6):
                np.testing.assert_allclose(row.measured[bits], row.predicted[bits], atol=1.0)


def test_agreement_is_of_finite_pairs():
    found = agreement([1.0, 2.0, 4.0, np.nan, np.inf], [3.0, 4.0, 6.0, 1.0, 1.0])
    assert (found.n, found.difference) == (3, 2.0)
    assert found.pearson == pytest.approx(1.0)
    assert found.spearman == pytest.approx(1.0)
    assert np.isnan(agreement([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).pearson)
    assert agreement([], []).n == 0
