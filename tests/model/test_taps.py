"""Taps: what is recorded is what the text says, and an edit is an intervention."""

import dataclasses
import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, stack_blocks
from sysout_jax.model.taps import TAPS
from tests import quick
from tests.model.noise import noisy
from tests.refusing import refusal

B, T, D, N, K, H, F, L = 3, 7, 13, 4, 2, 6, 19, 2
E, J = 5, 3  # experts, and those of a token
GELU = ModelConfig(
    vocab=17, context=T, layers=L, width=D, heads=N, kv_heads=K, head_dim=H, mlp_width=F
)
GATED = dataclasses.replace(GELU, mlp="swiglu", position="rope", variant="context_scale")
MIXTURE = dataclasses.replace(GATED, experts=E, experts_per_token=J)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 17, (B, T)), jnp.int32)
# What one sequence's value measures, from the letters that a tap's text starts with.
SIZES = {"T": T, "S": T, "D": D, "N": N, "K": K, "H": H, "F": F}
GATES = {"context_scale": (T, N, 1), "element_gate": (T, N, H), "value_gate": (T, K, H)}


def present(config):
    """The names that this architecture records."""
    missing = set()
    if config.mlp in ("relu", "gelu"):
        missing.add("gate_out")
    if config.variant in ("softmax", "attention_bias"):
        missing.add("attn_gate")
    if not config.experts:
        missing |= {"experts", "routing", "expert_out"}
    return [name for name in TAPS if name not in missing]


@cache
def recorded(config, seed=0):
    """Logits, and everything that there is to record."""
    model = so.Model(config, noisy(config, seed))
    logits, taps = so.apply(model, TOKENS, dict.fromkeys(present(config)))
    return np.asarray(logits), jax.tree.map(np.asarray, taps)


def run(config, edits=None, taps=None):
    return so.apply(so.Model(config, noisy(config)), TOKENS, taps, edits)


def close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_a_measure_reduces_a_tap_of_a_narrow_model():
    config = GELU.with_execution(dtype="bfloat16")
    _, taps = run(config, taps={"block_out": so.measures.top1_over_median})
    _, whole = run(config, taps={"block_out": None})
    size = np.abs(np.float64(whole["block_out"]))
    expected = size.max((2, 3)) / np.median(size, (2, 3))
    assert taps["block_out"].dtype == jnp.float32
    # A compiler may keep more digits between the two than bfloat16 has: a few roundings of 2^-9.
    np.testing.assert_allclose(taps["block_out"], expected, rtol=0.02)


# ------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("variant", ["softmax", *GATES])
def test_shapes_are_those_of_the_text(variant):
    config = dataclasses.replace(GATED, variant=variant)
    taps = recorded(config)[1]
    assert set(taps) == set(present(config))
    for name, value in taps.items():
        if name == "attn_gate":
            shape = GATES[variant]
        else:
            letters = TAPS[name].partition(",")[0].split()
            shape = tuple(SIZES[letter] for letter in letters)
        assert value.shape == ((B, *shape) if name == "final_norm" else (L, B, *shape)), name


def test_every_tap_is_recorded_somewhere():
    names = {name for config in (GELU, MIXTURE) for name in recorded(config)[1]}
    assert names == set(TAPS)


@pytest.mark.parametrize("config", [GELU, GATED], ids=["gelu", "gated"])
def test_taps_fit_together(config):
    logits, taps = recorded(config)
    params = noisy(config)
    np.testing.assert_array_equal(taps["block_in"][1:], taps["block_out"][:-1])
    close(taps["block_out"], taps["block_in"] + taps["attn_out"] + taps["down_out"])
    close(logits, np.einsum("btd,dv->btv", taps["final_norm"], params["head"]))
    for name, x in (("attn", taps["block_in"]), ("mlp", taps["block_in"] + taps["attn_out"])):
        scale = np.stack([params[f"block_{i}"][f"{name}_norm"]["scale"] for i in range(L)])
        rms = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        close(taps[f"{name}_norm"], x / rms * scale[:, None, None])
    kernel = np.stack([params[f"block_{i}"]["attn"]["value"] for i in range(L)])
    close(taps["value"], np.einsum("lbtd,ldkh->lbtkh", taps["attn_norm"], kernel))
    key, value = (np.repeat(taps[name], N // K, axis=-2) for name in ("key", "value"))
    scores = np.einsum("lbtnh,lbsnh->lbnts", taps["query"], key) / np.sqrt(H)
    close(taps["attn_logits"], scores)
    exp = np.tril(np.exp(scores))
    close(taps["attn_weights"], exp / exp.sum(-1, keepdims=True))
    np.testing.assert_array_equal(taps["attn_extra"], np.zeros((L, B, N, T)))
    mixed = np.einsum("lbnts,lbsnh->lbtnh", taps["attn_weights"], value)
    close(taps["attn_mix"], mixed * taps.get("attn_gate", 1))
    out = np.stack([params[f"block_{i}"]["attn"]["out"] for i in range(L)])
    close(taps["attn_out"], np.einsum("lbtnh,lnhd->lbtd", taps["attn_mix"], out))


@pytest.mark.parametrize("variant", ["softmax", "attention_bias", *GATES])
def test_the_first_key_is_told_apart(variant):
    """It is g p_0 v_0, whether the gate is on outputs or on values, and beside extra keys."""
    taps = recorded(dataclasses.replace(GATED, variant=variant))[1]
    value = taps["value"][:, :, 0] * (
        taps["attn_gate"][:, :, 0] if variant == "value_gate" else 1.0
    )
    added = np.einsum(
        "lbnt,lbnh->lbtnh", taps["attn_weights"][..., 0], np.repeat(value, N // K, axis=-2)
    )
    gate = taps["attn_gate"] if variant in ("context_scale", "element_gate") else 1.0
    close(taps["attn_first"], gate * added)


def test_the_first_key_can_be_taken_away():
    """As by an edit of the weights; recording it leaves the numbers as they are."""

    def silent(weights, layer):
        return weights.at[..., 0].set(0.0)

    cut = run(GELU, {"attn_weights": so.Edit(silent)})[0]
    close(run(GELU, {"attn_first": zero})[0], cut)
    both = run(GELU, {"attn_weights": so.Edit(silent)}, {"attn_first": None})
    np.testing.assert_array_equal(both[0], cut)
    assert not np.any(both[1]["attn_first"])


def test_taps_of_the_mlp():
    plain, gated = recorded(GELU)[1], recorded(GATED)[1]
    cube = plain["up_out"] + 0.044715 * plain["up_out"] ** 3
    close(plain["act_out"], plain["up_out"] / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * cube)))
    np.testing.assert_array_equal(plain["down_in"], plain["act_out"])
    close(gated["act_out"], gated["gate_out"] / (1 + np.exp(-gated["gate_out"])))
    close(gated["down_in"], gated["act_out"] * gated["up_out"])
    for config, taps in ((GELU, plain), (GATED, gated)):
        blocks = [noisy(config)[f"block_{i}"]["mlp"] for i in range(L)]
        x, hidden = taps["mlp_norm"], taps["down_in"]
        close(taps["up_out"], np.stack([x[i] @ p["up"] for i, p in enumerate(blocks)]))
        close(taps["down_out"], np.stack([hidden[i] @ p["down"] for i, p in enumerate(blocks)]))
    gates = [noisy(GATED)[f"block_{i}"]["mlp"]["gate"] for i in range(L)]
    close(gated["gate_out"], np.stack([gated["mlp_norm"][i] @ g for i, g in enumerate(gates)]))


def test_taps_of_a_mixture():
    """The chosen experts' neurons side by side, best first; down_out is their weighted sum."""
    taps = recorded(MIXTURE)[1]
    for layer in range(L):
        mlp = jax.tree.map(np.asarray, noisy(MIXTURE)[f"block_{layer}"]["mlp"])
        x = taps["mlp_norm"][layer].reshape(-1, D)
        router = x @ mlp["router"]
        chosen = np.argsort(-router, axis=1)[:, :J]
        np.testing.assert_array_equal(taps["experts"][layer].reshape(-1, J), chosen)
        share = np.exp(np.take_along_axis(router, chosen, 1))
        share /= share.sum(1, keepdims=True)
        close(taps["routing"][layer].reshape(-1, J), share)
        for name, weight in (("up_out", "up"), ("gate_out", "gate")):
            expected = np.einsum("td,tjdf->tjf", x, mlp[weight][chosen])
            close(taps[name][layer].reshape(-1, J, F), expected)
        hidden = taps["down_in"][layer].reshape(-1, J, F)
        out = np.einsum("tjf,tjfd->tjd", hidden, mlp["down"][chosen])
        close(taps["expert_out"][layer].reshape(-1, J, D), out)
        expected = np.einsum("tjd,tj->td", out, share)
        close(taps["down_out"][layer].reshape(-1, D), expected)


def test_routing_can_be_edited():
    """To send every token to expert 2 alone is to be a model whose only MLP is that one."""
    edits = {
        "experts": so.Edit(lambda chosen, layer: jnp.full_like(chosen, 2)),
        "routing": so.Edit(lambda weights, layer: jnp.full_like(weights, 1 / J)),
    }
    found = run(MIXTURE, edits)[0]
    alone = dict(noisy(MIXTURE))
    for layer in range(L):
        block = alone[f"block_{layer}"]
        mlp = {name: of[2] for name, of in block["mlp"].items() if name != "router"}
        alone[f"block_{layer}"] = {**block, "mlp": mlp}
    close(found, so.apply(so.Model(GATED, alone), TOKENS)[0])


def test_an_expert_can_be_silenced():
    """Its output set to zero is its column of the routing set to zero."""

    def silent(experts, out, layer):
        return jnp.where((experts == 1)[..., None], 0.0, out)

    def ignored(experts, weights, layer):
        return jnp.where(experts == 1, 0.0, weights)

    by_output = run(MIXTURE, {"experts+expert_out": so.Edit(silent)})[0]
    close(by_output, run(MIXTURE, {"experts+routing": so.Edit(ignored)})[0])
    assert np.abs(by_output - recorded(MIXTURE)[0]).max() > 0.01


def test_keys_are_recorded_after_their_rotation():
    taps, params = recorded(GATED)[1], noisy(GATED)
    raw = np.einsum("btd,dkh->btkh", taps["attn_norm"][0], params["block_0"]["attn"]["key"])
    close(taps["key"][0][:, 0], raw[:, 0])
    assert np.abs(taps["key"][0][:, 1:] - raw[:, 1:]).max() > 0.1


def test_mass_on_an_extra_key():
    taps = recorded(dataclasses.replace(GELU, variant="attention_bias"))[1]
    assert taps["attn_extra"].min() > 0
    close(taps["attn_weights"].sum(-1) + taps["attn_extra"], np.ones((L, B, N, T)))


@pytest.mark.parametrize("placement", ["post", "sandwich"])
def test_outputs_are_what_is_added_whatever_the_placement(placement):
    taps = recorded(dataclasses.replace(GATED, norm_placement=placement))[1]
    added = taps["block_in"] + taps["attn_out"]
    if placement == "post":
        rms = np.sqrt((added**2).mean(-1, keepdims=True) + 1e-5)
        params = noisy(dataclasses.replace(GATED, norm_placement="post"))
        scale = np.stack([params[f"block_{i}"]["attn_norm"]["scale"] for i in range(L)])
        close(taps["mlp_norm"], added / rms * scale[:, None, None])
    else:
        close(taps["block_out"], added + taps["down_out"])
        params = noisy(dataclasses.replace(GATED, norm_placement=placement))
        mlps = [params[f"block_{i}"]["mlp"]["down"] for i in range(L)]
        close(taps["mlp_out"], np.einsum("lbtf,lfd->lbtd", taps["down_in"], np.stack(mlps)))


@pytest.mark.parametrize("config", [GELU, GATED], ids=["gelu", "gated"])
def test_scanned_layers_record_the_same(config):
    scanned = config.with_execution(scan_layers=True)
    model = so.Model(scanned, stack_blocks(noisy(config)))
    logits, taps = so.apply(model, TOKENS, dict.fromkeys(present(config)))
    expected_logits, expected = recorded(config)
    close(logits, expected_logits, 1e-5)
    assert set(taps) == set(expected)
    for name in expected:
        close(taps[name], expected[name], 1e-5)


# ------------------------------------------------------------------------- reducers


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_a_reducer_sees_one_sequence(scan):
    seen = []

    def largest(h):
        seen.append(h.shape)
        return {"max": jnp.max(jnp.abs(h)), "per token": jnp.max(jnp.abs(h), axis=-1)}

    params = noisy(GELU)
    model = so.Model(
        GELU.with_execution(scan_layers=scan), stack_blocks(params) if scan else params
    )
    _, taps = so.apply(model, TOKENS, {"block_out": largest, "final_norm": largest})
    assert set(seen) == {(T, D)}
    for name in ("block_out", "final_norm"):
        raw = np.abs(recorded(GELU)[1][name])
        close(taps[name]["max"], raw.max((-2, -1)), 1e-5)
        close(taps[name]["per token"], raw.max(-1), 1e-5)


def test_measures_are_reducers():
    _, taps = run(GELU, taps={"block_out": so.measures.top1_over_median})
    raw = np.abs(recorded(GELU)[1]["block_out"]).reshape(L, B, -1)
    close(taps["block_out"], raw.max(-1) / np.median(raw, axis=-1))


def test_the_compiled_program_is_used_again():
    traced = []

    def reducer(h):
        traced.append("reducer")
        return jnp.sum(h)

    def edit(h, layer):
        traced.append("edit")
        return h

    def call(config, seed, tokens=TOKENS, scale=1.0):
        params = jax.tree.map(lambda x: x * scale, noisy(config, seed))
        model = so.Model(config, params)
        return so.apply(model, tokens, {"block_out": reducer}, {"attn_out": so.Edit(edit)})

    call(GELU, 0)
    once = list(traced)
    assert {"reducer", "edit"} == set(once)
    call(GELU, 1)
    call(dataclasses.replace(GELU), 0, TOKENS[::-1], 0.5)
    assert traced == once
    call(GELU, 0, TOKENS[:2])
    assert traced == once * 2


# ------------------------------------------------------------------------- edits


@cache
def erasing(config):
    """A compiled run in which the taps of a mask are set to zero: one program for all of them."""
    names = present(config)

    def run(params, erased):
        def edit(value, layer, index):
            return jnp.where(erased[index], jnp.zeros_like(value), value)

        edits = {name: partial(edit, index=i) for i, name in enumerate(names)}
        return forward(config, params, TOKENS, dict.fromkeys(names), edits)

    return jax.jit(run)


def test_an_edit_that_changes_nothing():
    params, names = noisy(GATED), present(GATED)
    plain = jax.jit(lambda params: forward(GATED, params, TOKENS, dict.fromkeys(names)))
    with quick.optimised():  # without XLA's passes the two programs differ by 2e-6 to 8e-6
        logits, taps = erasing.__wrapped__(GATED)(params, jnp.zeros(len(names), bool))
        expected, recorded_there = plain(params)
    close(logits, expected, 1e-6)
    assert set(taps) == set(recorded_there)
    for name, value in taps.items():
        close(value, recorded_there[name], 1e-6)


def test_every_tap_can_be_edited():
    """All but the mass on extra keys, of which this variant has none, lead to the logits."""
    for index, name in enumerate(present(GATED)):
        erased = jnp.arange(len(present(GATED))) == index
        logits, taps = erasing(GATED)(noisy(GATED), erased)
        assert not np.any(taps[name])
        moved = np.abs(logits - recorded(GATED)[0]).max()
        assert (moved > 1e-3) == (name != "attn_extra"), name


zero = so.Edit(lambda value, layer: jnp.zeros_like(value))


def test_blocks_without_their_outputs_pass_the_residual_on():
    logits, taps = run(
        GELU, {"attn_out": zero, "down_out": zero}, {"block_in": None, "block_out": None}
    )
    np.testing.assert_array_equal(taps["block_out"], taps["block_in"])
    np.testing.assert_array_equal(taps["block_in"][1], taps["block_in"][0])
    assert np.abs(logits - recorded(GELU)[0]).max() > 0.1


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_an_edit_of_one_layer(scan):
    config = dataclasses.replace(GELU, layers=3).with_execution(scan_layers=scan)
    params = noisy(config.with_execution(scan_layers=False))
    params = stack_blocks(params) if scan else params

    @jax.jit
    def doubled(at):
        def double(value, layer):
            assert value.shape == (B, T, D)
            return jnp.where(layer == at, 2 * value, value)

        wanted = {"block_out": None, "mlp_norm": None}
        return forward(config, params, TOKENS, wanted, {"down_out": double})[1]

    def moved(name, at):
        return (np.abs(doubled(at)[name] - doubled(9)[name]).max((1, 2, 3)) > 1e-3).tolist()

    for at in range(3):
        assert moved("block_out", at) == [layer >= at for layer in range(3)]
        assert moved("mlp_norm", at) == [layer > at for layer in range(3)]


def test_patching_the_residual_stream_moves_the_run():
    """The same weights on other tokens: from the patched layer on, the other run is reproduced."""
    params, other = noisy(GATED), TOKENS[::-1, ::-1]
    wanted, there = so.apply(so.Model(GATED, params), other, {"block_in": None})

    @jax.jit
    def patched(at):
        def patch(value, layer):
            return jnp.where(layer == at, there["block_in"][at], value)

        return forward(GATED, params, TOKENS, edits={"block_in": patch})[0]

    assert np.abs(wanted - recorded(GATED)[0]).max() > 0.1
    for at in range(L):
        close(patched(at), wanted)


def test_final_norm_is_edited_with_the_number_of_layers():
    def shift(value, layer):
        return jnp.where(layer == L, value + 1.0, value)

    logits, _ = run(GELU, {"final_norm": so.Edit(shift)})
    raw = recorded(GELU)[1]["final_norm"]
    close(logits, np.einsum("btd,dv->btv", raw + 1, noisy(GELU)["head"]))


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("how", ["taps", "edits"])
@pytest.mark.parametrize(
    ("config", "name", "wanted"),
    [
        (GELU, "block_ou", f"tap 'block_ou': unknown; accepted: {', '.join(TAPS)}"),
        (GELU, "gate_out", "tap gate_out: this architecture has none; accepted"),
        (GELU, "attn_gate", "tap attn_gate: this architecture has none; accepted"),
        (
            GELU.with_execution(scan_layers=True),
            "gate_out",
            "tap gate_out: this architecture has none; accepted",
        ),
    ],
    ids=["unknown", "gate_out", "attn_gate", "scanned"],
)
def test_a_tap_that_is_not_there(config, name, wanted, how):
    model = so.Model(config, noisy(config))
    assert refusal(so.apply, model, TOKENS, **{how: {name: zero}}).startswith(wanted)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"taps": ["block_out"]}, "taps: a list; accepted: a dict of taps by name"),
        ({"taps": {"block_out": "max"}}, "taps: block_out: a str; accepted: a reducer, None, or "),
        ({"edits": [zero]}, "edits: a list; accepted: a dict of edits by name"),
        (
            {"edits": {"block_out": abs}},
            "edits: block_out: a builtin_function_or_method; accepted: sysout_jax.Edit",
        ),
        ({"edits": {"block_out": None}}, "edits: block_out: a NoneType; accepted: sysout_jax.Edit"),
    ],
)
def test_what_is_asked_by_no_name(asked, told):
    unchecked = inspect.unwrap(so.apply)  # as it is without the tests' check of types
    model = so.Model(GELU, noisy(GELU))
    assert refusal(unchecked, model, TOKENS, **asked).startswith(told)


@pytest.mark.parametrize("layers", [1.5, [0, 1.0], True, "all"])
def test_layers_are_whole_numbers(layers):
    tap = object.__new__(so.Tap)  # as it is made without the tests' check of types
    object.__setattr__(tap, "layers", layers)
    with pytest.raises(InputError, match="accepted: a whole number, or several"):
        tap.__post_init__()


def test_a_model_is_a_pytree_of_its_parameters():
    model = so.Model(GELU, noisy(GELU))
    assert len(jax.tree.leaves(model)) == len(jax.tree.leaves(model.params))
    doubled = jax.tree.map(lambda x: 2 * x, model)
    assert (doubled.config, doubled.tokenizer) == (GELU, None)
    np.testing.assert_array_equal(doubled.params["head"], 2 * model.params["head"])


# ------------------------------------------------------------------------- several values at once


def test_names_joined_go_to_one_reducer():
    """Values of one sequence, in the order of the names."""

    def gram(queries, keys):
        return jnp.einsum("TNH,SKH->NKTS", queries, keys)

    found = run(GATED, taps={"query+key": gram})[1]["query+key"]
    raw = recorded(GATED)[1]
    expected = np.einsum("LBTNH,LBSKH->LBNKTS", raw["query"], raw["key"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_edit_of_joined_names_replaces_the_last():
    def edit(query, key, layer):
        return key + query[:, ::2]

    edit = so.Edit(edit)
    taps = run(GATED, {"query+key": edit}, {"query": None, "key": None})[1]
    raw = recorded(GATED)[1]
    close(taps["query"][0], raw["query"][0])
    close(taps["key"][0], raw["key"][0] + raw["query"][0][:, :, ::2])
    with pytest.raises(
        InputError, match="tap 'key\\+query': accepted: names in the decoder's order"
    ):
        run(GATED, {"key+query": edit})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("key+query", "in the decoder's order"),
        ("key+quary", "tap 'quary': unknown"),
        ("block_out+final_norm", "in the decoder's order"),
    ],
)
def test_joined_names_that_cannot_meet(name, told):
    with pytest.raises(InputError, match=told):
        run(GATED, taps={name: lambda a, b: a})
