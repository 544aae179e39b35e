"""What a notebook calls: text, chosen layers, edits that compile once, gradients, the lens."""

import copy
import dataclasses
import inspect
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import sysout_jax as so
from sysout_jax import running
from sysout_jax.core.norms import NORMS
from sysout_jax.data.tokenizer import ByteTokenizer, SubwordTokenizer
from sysout_jax.model.decoder import forward, init, stack_blocks, taps_of, unstack_blocks
from sysout_jax.model.stream import Layers, streamed
from sysout_jax.model.taps import check_asked
from tests.analysis import planted
from tests.refusing import refusal

B, T, D, L, V = 2, 5, 6, 3, 11
CONFIG = so.ModelConfig(vocab=V, context=7, layers=L, width=D, heads=2, mlp="swiglu")
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)), jnp.int32)
WAYS = ("unrolled", "scanned")
ROOT = Path(__file__).parent.parent


def model_of(config=CONFIG, seed=0, tokenizer=None):
    """Weights large enough to be seen."""
    drawn = init(config.with_execution(scan_layers=False), jax.random.key(seed))
    params = jax.tree.map(lambda x: x * 12.0 if x.ndim > 1 else x, drawn)
    return so.Model(
        config, stack_blocks(params) if config.execution.scan_layers else params, tokenizer
    )


def by(way, **given):
    return model_of(
        dataclasses.replace(CONFIG, **given).with_execution(scan_layers=way == "scanned")
    )


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------- text


def test_text_is_what_its_ids_are():
    model = so.Model(dataclasses.replace(CONFIG, vocab=258), {}, ByteTokenizer())
    np.testing.assert_array_equal(so.encode(model, "ab"), [[257, 97, 98]])
    np.testing.assert_array_equal(so.encode(model, ["ab", "cd"], "no"), [[97, 98], [99, 100]])
    assert model.tokenizer.pieces(so.encode(model, "ab")[0]) == ["<|bos|>", "a", "b"]
    model = model_of(model.config, tokenizer=ByteTokenizer())
    for text, ids, bos in (
        ("ab", [[257, 97, 98]], "auto"),
        (["ab", "cd"], [[97, 98], [99, 100]], "no"),
    ):
        found = so.apply(model, text, bos=bos)[0]
        np.testing.assert_array_equal(found, so.apply(model, np.array(ids))[0])


def test_text_that_cannot_be_read():
    model = so.Model(dataclasses.replace(CONFIG, vocab=258), {}, ByteTokenizer())
    said = refusal(so.apply, model, ["ab", "c"])
    assert said == "tokens: texts of 2, 3 tokens; accepted: texts of one length, or one at a time"
    assert refusal(so.apply, model, "", bos="no").endswith("some text, or bos=yes")
    assert refusal(so.apply, model, "a", bos="si").startswith("bos='si': unknown; accepted: auto")
    assert refusal(so.apply, model, []).startswith("tokens: ")
    said = refusal(so.apply, model_of(), "ab")
    assert said == "tokens: text, and the model has no tokenizer; accepted: token ids"
    assert "as ids are read as they are" in refusal(so.apply, model_of(), TOKENS, bos="yes")


def test_too_many_tokens_are_named_as_the_argument():
    learned = model_of(dataclasses.replace(CONFIG, position="learned"))
    said = refusal(so.apply, learned, np.zeros((1, 8), int))
    assert said == ("tokens: 8 in a sequence, and learned positions end at 7; accepted: at most 7")


@pytest.mark.parametrize("call", [so.encode, so.analyze, so.convert, so.gradient, so.logit_lens])
def test_what_is_no_model_is_refused(call):
    said = refusal(inspect.unwrap(call), "gpt2", "Summer.")
    assert said.startswith("model='gpt2': accepted: what load returns")
    assert refusal(inspect.unwrap(so.check), "gpt2").startswith("model='gpt2': accepted: what ")


def test_a_corpus_by_its_name_is_refused():
    said = refusal(inspect.unwrap(so.train), so.TrainConfig(), "stdlib")
    assert said.startswith("corpus='stdlib': accepted: what corpus_of returned")


def test_the_argument_of_each_function_is_named():
    assert refusal(so.compress, model_of(), "w9").startswith("method=w9")


@pytest.mark.parametrize("scan", [True, False])
def test_stacking_the_layers_of_a_model_is_refused(scan):
    made = by("unrolled" if scan else "scanned")
    other = made.replace(config=made.config.with_execution(scan_layers=scan))
    stored = "one by one" if scan else "stacked"
    assert refusal(so.apply, other, TOKENS) == (
        f"scan_layers={scan}: the layers of its parameters are {stored};"
        f" accepted: {not scan} for this model"
    )


def test_analyze_reads_ids_as_they_are():
    said = refusal(so.analyze, model_of(), np.asarray(TOKENS[0]), bos="yes")
    assert said == "bos='yes': accepted: 'auto', as ids are read as they are"


# ------------------------------------------------------------------------- taps


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layers", [(1,), (2, 0), 1])
def test_a_tap_of_some_layers(way, layers):
    model, name = by(way), "attn_weights"
    sums = lambda w: {"first": jnp.sum(w[..., 0]), "all": w}  # noqa: E731
    taps = {name: so.Tap(sums, layers), "block_out": None, "mlp_norm": so.Tap(layers=layers)}
    found = so.apply(model, TOKENS, taps)[1]
    whole = so.apply(model, TOKENS, dict.fromkeys(("attn_weights", "block_out", "mlp_norm")))[1]
    chosen = np.atleast_1d(layers)
    close(found["mlp_norm"], whole["mlp_norm"][chosen])
    close(found["block_out"], whole["block_out"])
    close(found[name]["all"], whole[name][chosen])
    close(found[name]["first"], whole[name][chosen][..., 0].sum((-2, -1)), 1e-4)


def test_layers_of_a_streamed_model():
    model, edits = model_of(), {"down_out": so.Edit(lambda x, layer, by: x * by, 0.5, layers=1)}
    read = Layers(model.params.__getitem__, tuple(model.params))
    taps = {"block_out": so.Tap(jnp.sum, 2), "final_norm": None}
    logits, found = streamed(model.config, read.read, TOKENS, taps, edits)
    expected_logits, expected = so.apply(model, TOKENS, taps, edits)
    close(logits, expected_logits)
    assert found["block_out"].shape == (1, B)
    close(found["block_out"], expected["block_out"], 1e-4)
    close(found["final_norm"], expected["final_norm"])
    assert "edits: down_out: a function" in refusal(
        streamed, model.config, read.read, TOKENS, None, {"down_out": lambda x, layer: x}
    )


def test_scanned_layers_keep_the_records_of_theirs_alone():
    """The compiled program's memory: one layer's values instead of all of them."""
    config = dataclasses.replace(CONFIG, layers=24, context=64).with_execution(scan_layers=True)
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)

    def needs(tap):
        run = jax.jit(lambda params, tokens: forward(config, params, tokens, {"act_out": tap})[1])
        memory = run.lower(params, tokens).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    one = 64 * 4 * D * 4  # bytes of a layer's value
    assert needs(None) - needs(so.Tap(layers=3)) > 15 * one


def test_all_taps():
    found = so.apply(model_of(), TOKENS, "all")[1]
    assert {"gate_out", "attn_weights", "final_norm"} <= set(found)
    assert not {"experts", "attn_gate"} & set(found)
    assert set(found) == set(taps_of(CONFIG))
    expected = so.apply(model_of(), TOKENS, {"query": None})[1]
    np.testing.assert_array_equal(found["query"], expected["query"])
    blocks = CONFIG.with_execution(query_block=2)
    found = so.apply(model_of(blocks), TOKENS, "all")[1]
    assert "attn_weights" not in found
    assert "attn_out" in found
    mixture = dataclasses.replace(CONFIG, experts=3, experts_per_token=2)
    assert {"experts", "routing"} <= set(so.apply(model_of(mixture), TOKENS, "all")[1])
    said = refusal(so.apply, model_of(), TOKENS, "al")
    assert said == "taps='al': accepted: 'all', or a dict of names and reducers"


@pytest.mark.parametrize(
    ("name", "layers", "told"),
    [
        ("block_out", 3, "layers=[3]: accepted: some of 0 to 2 for block_out, none twice"),
        ("block_out", (-1,), "layers=[-1]: accepted: some of 0 to 2"),
        ("block_out", (1, 1), "layers=[1, 1]: accepted: some of 0 to 2"),
        ("block_out", (), "layers=[]: accepted: some of 0 to 2"),
        ("final_norm", 1, "layers=[1]: accepted: none for final_norm, which is there once"),
    ],
)
def test_layers_that_are_not_there(name, layers, told):
    keep = lambda x, layer: x  # noqa: E731
    assert refusal(so.apply, model_of(), TOKENS, {name: so.Tap(None, layers)}).startswith(told)
    edits = {name: so.Edit(keep, layers=np.array(layers, int))}
    assert refusal(so.apply, model_of(), TOKENS, None, edits).startswith(told)
    assert refusal(so.gradient, model_of(), TOKENS, at=name, layers=layers).startswith(told)


# ------------------------------------------------------------------------- edits


@pytest.mark.parametrize("way", WAYS)
def test_a_sweep_compiles_once(way):
    """Donors, layers and factors are arguments; each run is the one whose edit is written out."""
    model, traced = by(way), []
    donor = so.apply(model, TOKENS[::-1, ::-1], {"block_out": None})[1]["block_out"]

    def patch(state, layer, donor, factor):
        assert state.shape == donor.shape == (T, D)
        traced.append(layer)
        return state + factor * (donor - state)

    counts = []
    for layer, factor in ((0, 1.0), (2, 0.3), (1, -2.0)):
        edit = so.Edit(patch, donor[layer], factor, layers=layer, in_axes=(0, None))
        found = so.apply(model, TOKENS, None, {"block_out": edit})[0]

        def by_hand(states, at, layer=layer, factor=factor):
            moved = states + factor * (donor[layer] - states)
            return jnp.where(at == layer, moved, states)

        expected = forward(model.config, model.params, TOKENS, None, {"block_out": by_hand})[0]
        close(found, expected, 1e-4)
        assert np.abs(found - so.apply(model, TOKENS)[0]).max() > 1e-3
        counts.append(len(traced))
    assert counts == [counts[0]] * 3


def test_an_edit_of_several_layers_and_of_some_sequences():
    model = model_of()

    def shift(state, layer, by, mask):
        return state + by[layer] * mask

    by, mask = jnp.arange(L, dtype=jnp.float32), jnp.array([1.0, 3.0])
    edit = so.Edit(shift, by, mask, layers=(1, 2), in_axes=(None, 0))
    found = so.apply(model, TOKENS, {"down_out": None}, {"down_out": edit})

    def by_hand(states, at):
        return states + jnp.where(at == 0, 0.0, by[at] * jnp.array([1.0, 3.0]).reshape(2, 1, 1))

    expected = forward(CONFIG, model.params, TOKENS, {"down_out": None}, {"down_out": by_hand})
    jax.tree.map(close, found, expected)
    second = so.apply(model, TOKENS[1:], None, {"down_out": edit.of(jnp.array([1]))})[0]
    close(second, found[0][1:])


def test_an_edit_is_a_pytree_of_its_arrays():
    edit = so.Edit(max, 1.0, {"a": jnp.ones(3)}, None, layers=2, in_axes=0)
    assert len(jax.tree.leaves(edit)) == 3
    doubled = jax.tree.map(lambda x: 2 * x, edit)
    assert (doubled.function, doubled.in_axes) == (max, (0, 0, 0))
    np.testing.assert_array_equal(doubled.arrays[1]["a"], 2 * np.ones(3))
    np.testing.assert_array_equal(doubled.layers, [4])


def test_edits_keep_the_dtype_and_the_shape():
    half = model_of(CONFIG.with_execution(dtype="bfloat16"))
    wide = so.Edit(lambda x, layer, by: x.astype(jnp.float32) * by, 0.5)
    taps = so.apply(half, TOKENS, {"attn_out": None}, {"attn_out": wide})[1]
    assert taps["attn_out"].dtype == jnp.bfloat16
    cut = so.Edit(lambda x, layer: x[:2])
    said = refusal(so.apply, half, TOKENS, None, {"attn_out": cut})
    assert said == "edits: a value of shape [2, 6] in place of one of shape [5, 6]; accepted: " \
        "the same shape"  # fmt: skip
    said = refusal(check_asked, {}, {"attn_out": lambda x, layer: x})
    assert said == "edits: attn_out: a function; accepted: sysout_jax.Edit(function, *arrays, " \
        "layers=...)"  # fmt: skip


# ------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", ["block_out", "attn_weights", "value", "final_norm"])
def test_the_gradient_against_finite_differences(way, at):
    """(f(value + step) - f(value - step)) / (2 step), the value moved by an edit."""
    model = by(way)
    direction = jnp.asarray(np.random.default_rng(3).normal(size=V), jnp.float32)

    def metric(logits, tokens):
        return jnp.tanh(logits[-1] @ direction / 10.0) + logits[1, tokens[1]]

    def moved(value, layer, change, at, which):
        return value + jnp.where(which == layer, change, jnp.zeros(()))

    metrics, grads = so.gradient(model, TOKENS, metric, at)
    plain = so.apply(model, TOKENS)[0]
    close(metrics, [metric(*pair) for pair in zip(plain, TOKENS, strict=True)], 1e-4)
    rng = np.random.default_rng(4)
    for layer in (L,) if at == "final_norm" else range(L):
        grad = grads if at == "final_norm" else grads[layer]
        change = jnp.asarray(rng.normal(size=grad.shape), jnp.float32)

        def f(step, change=change, layer=layer):
            edit = so.Edit(
                moved, step * change, jnp.zeros(()), jnp.asarray(layer), in_axes=(0, None, None)
            )
            logits = so.apply(model, TOKENS, None, {at: edit})[0]
            return np.array([metric(*pair) for pair in zip(logits, TOKENS, strict=True)])

        step = 1e-2
        slope = (np.float64(f(step)) - f(-step)) / (2 * step)
        expected = np.sum(np.float64(grad) * np.float64(change), axis=tuple(range(1, grad.ndim)))
        np.testing.assert_allclose(slope, expected, rtol=3e-2, atol=3e-2)
        assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_of_some_layers(way):
    model = by(way)
    losses, whole = so.gradient(model, TOKENS)
    np.testing.assert_array_equal(so.gradient(model, TOKENS, layers=(2, 0))[0], losses)
    close(so.gradient(model, TOKENS, layers=(2, 0))[1], whole[jnp.array([2, 0])])
    close(so.gradient(model, TOKENS, layers=1)[1], whole[1:2])
    logits = np.float64(so.apply(model, TOKENS)[0])
    picked = np.take_along_axis(logits[:, :-1], np.asarray(TOKENS)[:, 1:, None], -1)[..., 0]
    close(losses, (np.log(np.exp(logits[:, :-1]).sum(-1)) - picked).mean(1), 1e-4)


def test_a_gradient_at_no_numbers():
    mixture = model_of(dataclasses.replace(CONFIG, experts=3, experts_per_token=2))
    said = refusal(so.gradient, mixture, TOKENS, at="experts")
    assert said == "at=experts: its values are int32; accepted: a tap of real numbers"
    assert "unknown" in refusal(so.gradient, mixture, TOKENS, at="block_ou")


def test_a_gradient_of_no_number():
    said = refusal(so.gradient, model_of(), TOKENS[:, :1])
    assert said == "tokens: 1 in a sequence; accepted: 2 or more"
    said = refusal(so.gradient, model_of(), TOKENS, lambda logits, tokens: logits[-1])
    accepted = "accepted: a function that returns one real number"
    assert said == f"metric: float32 of shape (11,) of a sequence; {accepted}"
    for metric in (lambda logits, tokens: (logits[0, 0], 1.0), lambda logits, tokens: tokens[0]):
        assert accepted in refusal(so.gradient, model_of(), TOKENS, metric)


@pytest.mark.parametrize("layers", [0.9, [0.0, 1.0], True, "0"])
def test_layers_of_an_edit_are_whole_numbers(layers):
    unchecked = inspect.unwrap(so.Edit.__init__)  # as it is without the tests' check of types
    edit = object.__new__(so.Edit)
    said = refusal(unchecked, edit, lambda x, layer: x, layers=layers)
    assert said == f"layers={layers}: accepted: a whole number, or several"


def test_states_that_are_no_numbers_are_told():
    """And not that no dimension of them is massive."""
    model = model_of()
    broken = model.params["block_1"]["mlp"]["down"].at[0].set(jnp.nan)
    block = model.params["block_1"]
    params = {**model.params, "block_1": {**block, "mlp": {**block["mlp"], "down": broken}}}
    said = refusal(so.massive_dimensions, so.Model(CONFIG, params), TOKENS)
    assert said == "model: its states are no numbers (NaN)"


def test_a_name_is_no_model():
    said = refusal(inspect.unwrap(running.ids_of), "smollm2-135m", TOKENS, "auto")
    assert said == "model='smollm2-135m': accepted: what load returns, or the model of a run"


@pytest.mark.parametrize("text", [[], (), None, b"abc", ["a", None]])
def test_what_is_no_text(text):
    model = so.Model(dataclasses.replace(CONFIG, vocab=258), {}, ByteTokenizer())
    said = refusal(inspect.unwrap(so.encode), model, text)
    assert said == f"text: {type(text).__name__}; accepted: a text, or several"


@pytest.mark.parametrize("texts", [np.array(["ab", "cd"]), iter(["ab", "cd"]), ("ab", "cd")])
def test_several_texts_may_be_any_that_can_be_gone_through(texts):
    model = so.Model(dataclasses.replace(CONFIG, vocab=258), {}, ByteTokenizer())
    found = inspect.unwrap(so.encode)(model, texts)
    np.testing.assert_array_equal(found, so.encode(model, ["ab", "cd"]))


# ------------------------------------------------------------------------- the lens


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "out"])
def test_the_lens(placement, way):
    model = by(way, norm_placement=placement, tied=placement == "out")
    logits, taps = so.apply(model, TOKENS, {"block_out": None})
    lens = so.logit_lens(model, TOKENS)
    assert lens.shape == (L, B, T, V)
    close(lens[-1], logits)
    state = taps["block_out"][0]
    if placement != "post":
        scale = model.params["final_norm"]["scale"]
        state = NORMS[CONFIG.norm](state, scale, None, eps=CONFIG.norm_eps)
    head = model.params["embed"].T if placement == "out" else model.params["head"]
    close(lens[0], np.asarray(state) @ np.asarray(head), 1e-4)
    close(so.logit_lens(model, TOKENS, (2, 0)), lens[jnp.array([2, 0])])
    best = so.logit_lens(model, TOKENS, 1, lambda logits: jnp.argmax(logits, axis=-1))
    np.testing.assert_array_equal(best, np.argmax(lens[1:2], axis=-1))


# ------------------------------------------------------------------------- models


def subword(words):
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, words[0])
    )
    return SubwordTokenizer(backend, 0, 0)


def test_two_loads_are_one_structure():
    """A function compiled for one runs the other; trees of both go through `tree.map`."""
    one, again = (model_of(seed=seed, tokenizer=subword(["a", "b"])) for seed in (0, 1))
    traced = []

    @jax.jit
    def f(model):
        traced.append(model)
        return jnp.sum(model.params["head"])

    f(one), f(again)
    assert len(traced) == 1
    mean = jax.tree.map(lambda x, y: (x + y) / 2, one, again)
    close(mean.params["head"], (one.params["head"] + again.params["head"]) / 2)
    for other in (subword(["a", "c"]), dataclasses.replace(one.tokenizer, adds_bos=True)):
        assert other != one.tokenizer
        with pytest.raises(ValueError, match="different pytree metadata"):
            jax.tree.map(jnp.add, one, dataclasses.replace(one, tokenizer=other))
    assert copy.copy(one.tokenizer) == one.tokenizer != "a tokenizer"


def test_a_model_is_shown_in_a_line():
    model = model_of(tokenizer=subword(["a", "b"]))
    assert repr(model) == (
        "Model(attention softmax; shape 3 layers, width 6, 2 heads; parameters "
        f"{sum(x.size for x in jax.tree.leaves(model.params)):,} (float32); vocabulary 11; "
        "tokenizer SubwordTokenizer of 2)"
    )
    page = model._repr_html_()
    assert '<td class="words">softmax</td>' in page
    repr(jax.tree.map(lambda x: None, model))  # of any leaves
    shapes = jax.eval_shape(lambda: model.params)
    assert "(float32)" in repr(so.Model(model.config, shapes))


@pytest.mark.usefixtures("own_variants")
def test_a_variant_of_ones_own():
    @so.variant(formula="p", cite="none", strength=so.Param("N", 0.0))
    def test_running_variant(heads, params):
        return so.variants()[0].fn(heads, {})

    config = dataclasses.replace(CONFIG, variant="test_running_variant")
    model = model_of(config)
    assert model.params["block_0"]["attn"]["variant_strength"].shape == (2,)
    plain = so.Model(CONFIG, model.params)
    close(so.apply(model, TOKENS)[0], so.apply(plain, TOKENS)[0])
    with pytest.raises(ValueError, match="variant softmax: there is one; accepted: a name of its"):

        @so.variant(formula="p", cite="none")
        def softmax(heads, params):
            return None


@pytest.mark.usefixtures("own_variants")
def test_the_page_runs_as_it_stands(monkeypatch, tmp_path):
    """docs/python.md, from top to bottom, as a user without this suite's strictness has it."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    assert len(blocks) >= 7
    scope: dict[str, object] = {"__name__": "page"}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(block, scope)
    assert scope["taps"]["block_out"].shape == (1, 1)
    assert scope["lens"].shape == (2, 1, 33, 258)
    np.testing.assert_allclose(scope["lens"][-1], scope["logits"], atol=1e-5)
    assert scope["slopes"].shape == (3, 1, 33, 32)
    clean = so.apply(scope["model"], scope["clean"])[0]
    np.testing.assert_allclose(scope["patched"], clean, atol=1e-5)  # the last layer, whole
    assert scope["swept"].shape == (12, *clean.shape[1:])
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    assert repr(scope["run"]).startswith("Run(variant softmax; corpus stdlib; steps 20; validation")
    assert "<td>stdlib</td>" in scope["run"]._repr_html_()


def test_there_is_one_version():
    root = Path(so.__file__).parent
    project = tomllib.loads((root.parent / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", so.__version__)
    assert (root / "py.typed").exists()


# ------------------------------------------------------------------- massive dimensions


def by_definition(model, tokens, layers):
    """index -> (its layers, its largest value there, over the median), entry by entry."""
    states = np.asarray(so.apply(model, tokens, {"block_out": None})[1]["block_out"], np.float64)
    found = {}
    for layer, of_layer in enumerate(states):
        for h in of_layer:
            middle, deviation = np.median(np.abs(h)), np.median(np.abs(h - np.median(h)))
            for x, index in zip(h.ravel(), np.indices(h.shape)[1].ravel(), strict=True):
                far = abs(x - np.median(h)) > 1000 * deviation
                if abs(x) > 100 and abs(x) > 1000 * middle and far:
                    found.setdefault(int(index), []).append((layer, x, abs(x) / middle))
    kept = {i: e for i, e in found.items() if len({at for at, *_ in e}) >= layers * len(states)}
    return {
        i: ({at for at, *_ in e}, max((x for _, x, _ in e), key=abs), max(r for *_, r in e))
        for i, e in kept.items()
    }


@pytest.mark.parametrize("layers", [0.25, 0.5, 0.75, 1.0])
def test_massive_dimensions_of_the_planted_model(layers):
    """Channel 5 is massive from the layer that makes it to the one before it is removed."""
    model, tokens = so.Model(planted.CONFIG, planted.params()), planted.rows()[:3, :-1]
    expected = by_definition(model, tokens, layers)
    assert set(expected) == ({planted.CHANNEL} if layers <= 0.5 else set())
    found = so.massive_dimensions(model, tokens, layers=layers)
    assert [each.index for each in found] == list(expected)
    for each in found:
        where, largest, ratio = expected[each.index]
        assert set(each.layers) == where == {planted.MADE, planted.HEARD}
        assert each.largest == pytest.approx(largest, rel=1e-4)
        assert each.over_median == pytest.approx(ratio, rel=1e-4)


def test_massive_dimensions_of_unrolled_and_of_read_layers():
    scanned = so.Model(planted.CONFIG, planted.params())
    tokens, loose = planted.rows()[:2, :-1], unstack_blocks(scanned.params)
    config = planted.CONFIG.with_execution(scan_layers=False)
    (expected,) = so.massive_dimensions(scanned, tokens)
    lazy = Layers(loose.__getitem__, tuple(loose))
    for given, params in ((config, loose), (config, lazy), (planted.CONFIG, lazy)):
        (found,) = so.massive_dimensions(so.Model(given, params), tokens)
        assert (found.index, found.layers) == (expected.index, expected.layers)
        assert found.largest == pytest.approx(expected.largest, rel=1e-4)


def test_massive_dimensions_of_a_text_and_of_none():
    model = model_of(dataclasses.replace(CONFIG, vocab=258), tokenizer=ByteTokenizer())
    assert so.massive_dimensions(model, "abc") == ()
    for layers in (0.0, 1.5, float("nan")):
        said = refusal(so.massive_dimensions, model, "abc", layers=layers)
        assert said == f"layers={layers}: accepted: a share above 0, at most 1"


# ------------------------------------------------- functions that close over what is differentiated


def test_gradients_go_through_what_functions_close_over():
    model, w = model_of(), jnp.arange(1.0, D + 1.0)

    def read(w):
        return so.apply(model, TOKENS, {"block_out": lambda h: jnp.sum(h @ w)})[1]["block_out"]

    states = so.apply(model, TOKENS, {"block_out": None})[1]["block_out"]
    close(jax.grad(lambda w: read(w).sum())(w), states.sum((0, 1, 2)), 1e-4)

    def losses(factor, edit):
        return so.losses(model, TOKENS, {"block_out": edit(factor)}).sum()

    closed, given = (
        jax.grad(losses)(1.5, edit)
        for edit in (
            lambda s: so.Edit(lambda v, layer: v * s),
            lambda s: so.Edit(lambda v, layer, s: v * s, s),
        )
    )
    close(closed, given)
    assert abs(float(closed)) > 0.0


@pytest.mark.parametrize(
    ("arrays", "axes", "said"),
    [
        ((np.ones(3),), 0, f"edits: an array of shape (3,); accepted: {B} along axis 0, as there"),
        (
            (np.ones(B),),
            1,
            f"edits: an array of shape ({B},); accepted: {B} along axis 1, as there",
        ),
        ((np.ones(B),), (0, 0), "in_axes=(0, 0): accepted: 1 whole numbers or None, of an"),
    ],
)
def test_arrays_of_an_edit_fit_the_sequences(arrays, axes, said):
    def run():
        edit = so.Edit(lambda v, layer, by: v * by, *arrays, in_axes=axes)
        return so.apply(model_of(), TOKENS, edits={"block_out": edit})

    assert refusal(run).startswith(said)


def test_joined_taps_have_no_gradient():
    assert refusal(so.gradient, model_of(), TOKENS, at="value+attn_weights") == (
        "at=value+attn_weights: of joined taps there is no one value; accepted: one tap"
    )
