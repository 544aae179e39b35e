"""Published coordinates: the file is well formed, and a planted outlier is found where it lies."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.errors import InputError
from sysout_jax.families import known as k
from sysout_jax.families import tensor_map
from sysout_jax.model.config import ModelConfig

TINY = ModelConfig(
    vocab=19, layers=3, width=22, heads=2, head_dim=6, mlp_width=29, norm="rms", position="rope",
    mlp="swiglu",
)  # fmt: skip


def test_the_issue_of_each_model_is_there():
    table = {name: known for name, (_, known) in k.known_outliers().items()}
    found = {(name, one.kind, one.layer, one.channels, one.neuron)
             for name, known in table.items() for one in known}  # fmt: skip
    assert found == {
        ("Llama-2-7b", "channels", 2, (1415, 2533), None),
        ("Llama-2-7b", "neuron", 2, (), 7890),
        ("Llama-2-13b", "channels", 4, (2100, 4743), None),
        ("Llama-2-13b", "neuron", 4, (), 8811),
        ("Mistral-7B", "weights", 2, (2070,), 7310),
        ("Llama-3-8B", "weights", 2, (788, 1384, 4062), 2427),
        ("OLMo-1B", "weights", 2, (1764,), 1710),
        ("OLMo-1B", "weights", 3, (1764,), 8041),
        ("gpt2", "channels", None, (138, 378, 447), None),
        ("opt-6.7b", "channels", 1, (2394,), None),
        ("opt-6.7b", "neuron", 1, (), 16351),
        ("mpt-7b", "neuron", 4, (), 903),
        ("falcon-7b", "neuron", 4, (), 1135),
        ("phi-2", "neuron", 2, (), 617),
    }
    assert all("20" in one.source for ks in table.values() for one in ks)


@pytest.mark.parametrize(
    ("name", "layers", "width", "model"),
    [
        ("meta-llama/Llama-2-7b-hf", 32, 4096, "Llama-2-7b"),
        ("meta-llama/Llama-2-7b-chat-hf", 32, 4096, "Llama-2-7b"),
        ("meta-llama/Meta-Llama-3-8B", 32, 4096, "Llama-3-8B"),
        ("models/Mistral-7B-v0.1/", 32, 4096, "Mistral-7B"),
        ("gpt2", 12, 768, "gpt2"),
        ("allenai/OLMo-1B-0724-hf", 16, 2048, "OLMo-1B"),
        ("facebook/opt-6.7b", 32, 4096, "opt-6.7b"),
        ("microsoft/phi-2", 32, 2560, "phi-2"),
    ],
)
def test_models_are_known_by_the_end_of_their_name(name, layers, width, model):
    config = dataclasses.replace(TINY, layers=layers, width=width)
    assert {one.model for one in k.known_of(name, config)} == {model}


@pytest.mark.parametrize(("name", "layers"), [("gpt2-medium", 24), ("bert", 12), ("gpt2", 24)])
def test_models_that_are_not_known(name, layers):
    config = dataclasses.replace(TINY, layers=layers, width=1024)
    with pytest.raises(InputError, match=r"nothing is published here of .*; accepted: Llama-2-7b"):
        k.known_of(name, config)


@pytest.fixture(scope="module")
def planted():
    """A model whose second block has one neuron, 17, that writes hugely to channels 5 and 11."""
    rng = np.random.default_rng(0)
    tree = {}
    for path, shape in tensor_map.shapes(TINY).items():
        at = tree
        for name in path[:-1]:
            at = at.setdefault(name, {})
        value = 0.1 * rng.standard_normal(shape) + (path[-1] == "scale")
        if path[:2] == ("block_1", "mlp") and path[2] in ("gate", "up"):
            value[:, 17] *= 40
        if path == ("block_1", "mlp", "down"):
            value[17, [5, 11]] = 60.0, -50.0
        at[path[-1]] = jnp.asarray(value, jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 19, (2, 7)), jnp.int32)
    return so.apply(so.Model(TINY, tree), tokens, k.TAPS)[1]


def known(kind, layer, channels=(), neuron=None):
    return k.Known("planted", kind, layer, channels, neuron, "here")


@pytest.mark.parametrize(
    ("one", "agrees"),
    [
        (known("channels", 2, (5, 11)), True),
        (known("channels", 3, (5, 11)), True),
        (known("channels", 1, (5, 11)), False),
        (known("channels", None, (5, 11)), True),
        (known("neuron", 2, (), 17), True),
        (known("neuron", 1, (), 17), False),
        (known("neuron", 2, (), 16), False),
        (known("weights", 2, (5,), 17), True),
        (known("weights", 2, (5, 11, 3), 17), True),
        (known("weights", 2, (5,), 16), False),
    ],
)
def test_a_planted_outlier_is_found_where_it_lies(planted, one, agrees):
    (check,) = k.check_known((one,), planted)
    assert check.agrees is agrees
    if agrees:
        assert check.over_median > 50
        assert check.layer >= 2
        expected = {17} if one.kind != "channels" else {5, 11}
        assert expected <= {*check.found}


def test_extremes_are_sorted_by_magnitude():
    h = jnp.asarray(np.random.default_rng(1).standard_normal((5, 13)), jnp.float32)
    found = k.extremes(h)
    best = np.abs(h).max(0)
    np.testing.assert_array_equal(found["index"], np.argsort(-best)[: k.TOP])
    np.testing.assert_allclose(found["value"], np.sort(best)[::-1][: k.TOP], rtol=1e-6)
    np.testing.assert_allclose(found["median"], np.median(np.abs(h)), rtol=1e-6)
