"""What `check` says of models that are as they should be, and of such that are not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax import checking
from sysout_jax.core.attention import VARIANTS
from sysout_jax.data.tokenizer import ByteTokenizer
from sysout_jax.model.decoder import init
from sysout_jax.model.execution import Execution

CONFIG = so.ModelConfig(vocab=258, context=64, layers=2, width=12, heads=2, kv_heads=1)


def model(**changes):
    config = replace(CONFIG, **changes)
    return so.Model(config, init(config, jax.random.key(0)))


def items(checked):
    return {item.name: item for item in checked.items}


NARROW = ("softmax", "attention_bias", "differential", "clipped_softmax", "sigmoid")


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [*((name, "float32") for name in VARIANTS), *((name, "bfloat16") for name in NARROW)],
)
def test_every_variant_passes(variant, dtype):
    found = so.check(model(variant=variant, execution=Execution(dtype=dtype, scan_layers=True)))
    assert found.passed, str(found)
    assert ("attention" in items(found)) == VARIANTS[variant].normalised


def test_parameters_of_another_shape():
    """Of as many heads, but others: nothing else would notice."""
    good = model(kv_heads=2)
    wrong = jax.tree.map(lambda x: x, good.params)
    wrong["block_0"]["mlp"]["up"] = jnp.concatenate([wrong["block_0"]["mlp"]["up"]] * 2, axis=1)
    wrong["block_0"]["mlp"]["down"] = jnp.concatenate([wrong["block_0"]["mlp"]["down"]] * 2)
    found = items(so.check(so.Model(good.config, wrong)))
    assert not found["shapes"].passed


def test_logits_that_are_not_finite():
    broken = model()
    params = {**broken.params, "embed": broken.params["embed"].at[3].set(jnp.nan)}
    found = so.check(so.Model(broken.config, params))
    assert not items(found)["logits"].passed
    assert str(found).startswith("NOT AS IT SHOULD BE: ")


def test_attention_that_sums_to_something_else(monkeypatch):
    monkeypatch.setattr(checking, "row_sums", lambda weights: 1.01 * jnp.sum(weights, axis=-1))
    assert not items(so.check(model()))["attention"].passed


def test_an_edit_without_effect():
    silent = model()
    params = jax.tree.map(lambda x: x, silent.params)
    params["block_0"]["attn"]["out"] = jnp.zeros_like(params["block_0"]["attn"]["out"])
    found = so.check(so.Model(silent.config, params))
    assert items(found)["edits"].found == "an edit moves logits by 0"
    assert not found.passed


def test_what_has_learned_nothing_and_a_tokenizer_that_loses_text():
    untrained = replace(model(), tokenizer=ByteTokenizer())
    found = items(so.check(untrained))
    assert not found["loss"].passed
    assert f"{np.log(258):.2f} by chance" in found["loss"].found
    assert found["tokenizer"].passed

    class Loses(ByteTokenizer):
        def decode(self, ids):
            return super().decode(ids).lower()

    assert not items(so.check(replace(untrained, tokenizer=Loses())))["tokenizer"].passed
