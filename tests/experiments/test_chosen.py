"""A model is measured on a mesh as on one device."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from rich.console import Console

from experiments.inputs.evaluation_text import Texts
from experiments.inputs.model_selection import Choice, Chosen, choose, every, origins
from sysout_jax.data.tokenizer import ByteTokenizer
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.model.execution import Execution
from sysout_jax.model.model import Model
from sysout_jax.training.checkpoint import save
from tests import quick

ROOT = Path(__file__).parents[2]


def test_measures_on_a_mesh_are_those_of_one_device():
    """Parameters are placed by the table; a KV head that tensor=4 does not divide is copied."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.on_mesh"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | quick.EIGHT_DEVICES,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["held"] == [1, 8]
    alone, spread = result["found"]
    assert alone.keys() == spread.keys()
    assert len(alone) > 10
    for name, value in alone.items():
        assert spread[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_attention_of_a_model_that_was_trained_in_blocks_of_queries_is_read_whole(tmp_path):
    config = ModelConfig(
        vocab=7,
        context=5,
        layers=1,
        width=4,
        heads=1,
        position="rope",
        execution=Execution(query_block=3),
    )
    params = jax.vmap(lambda key: init(config, key))(jax.random.split(jax.random.key(0), 1))
    save(tmp_path / "model", config, params, (2,), None)
    chosen = choose(Choice(model=str(tmp_path / "model")))
    assert chosen.model.config.execution.query_block is None
    assert (chosen.seed, chosen.model.config.context) == (2, 5)


def test_every_seed_is_held_as_the_model_is(trained):
    path = trained / "models" / "backcopy-softmax"
    chosen = choose(Choice(model=str(path), param_dtype="bfloat16"))
    for _, params in chosen.seeds():
        kinds = {leaf.dtype.name for leaf in jax.tree.leaves(params)}
        assert kinds == {leaf.dtype.name for leaf in jax.tree.leaves(chosen.model.params)}
        assert kinds == {"bfloat16"}


def test_a_record_says_where_published_weights_come_from(golden):
    directory, _, _ = golden("llama")
    chosen = choose(Choice(model=str(directory)))
    ((name, told),) = origins([chosen]).items()
    assert name == directory.name
    assert told["place"] == str(directory)
    assert told["weights"].startswith("safetensors (")


def test_a_mesh_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="2 devices, but there are 1"):
        Choice(mesh="data=2").shard()
    with pytest.raises(InputError, match="mesh=model=2"):
        Choice(mesh="model=2").shard()


@pytest.mark.parametrize("trained", [True, False])
def test_rows_of_a_task_begin_as_in_training(tmp_path, trained):
    """A model of a task has no tokenizer that would tell: the run's record does."""
    config = ModelConfig(vocab=7, context=5, layers=1, width=4, heads=1)
    params = jax.vmap(lambda key: init(config, key))(jax.random.split(jax.random.key(0), 1))
    save(tmp_path / "models" / "backcopy-softmax", config, params, (2,), None)
    study = {"name": "backcopy", "corpus": "backcopy", "config": {"bos": trained}}
    (tmp_path / "result.json").write_text(json.dumps({"studies": [study]}))
    found = {bos: choose(Choice(model=str(tmp_path), bos=bos)).bos for bos in ("auto", "yes", "no")}
    assert found == {"auto": trained, "yes": True, "no": False}


def test_models_that_read_otherwise_have_text_of_their_own(tmp_path):
    """By tokenizer, BOS and positions; the same text is read once."""
    (tmp_path / "text.txt").write_text("".join(f"Line {n} is not {n + 1}.\n" for n in range(400)))
    texts = Texts(str(tmp_path / "text.txt"), 2, 3, None, Console(quiet=True))

    def chosen(bos=True, context=64, vocab=258):
        config = ModelConfig(vocab=vocab, context=context, layers=1, width=4, heads=1)
        model = Model(config, {}, replace(ByteTokenizer(), adds_bos=bos))
        return Chosen(model, tmp_path, "a", None, None, bos)

    first = texts.of(chosen())
    assert texts.of(chosen()) is first
    assert (first.evaluation.shape, first.evaluation[0, 0]) == ((3, 65), 257)
    assert first.begun_by_bos(chosen())
    without = texts.of(chosen(bos=False))
    assert without.evaluation.max() < 256
    assert not without.begun_by_bos(chosen(bos=False))
    assert not without.begun_by_bos(chosen())
    assert texts.of(chosen(context=16)).evaluation.shape == (3, 17)
    with pytest.raises(InputError, match="token id 257, and the model's vocabulary has 99"):
        texts.of(chosen(vocab=99))


def test_all_of_a_run_or_what_is_asked_for(tmp_path):
    """A name that ends as another is the whole of is not taken for it."""
    config = ModelConfig(vocab=7, context=5, layers=1, width=4, heads=1)
    params = jax.vmap(lambda key: init(config, key))(jax.random.split(jax.random.key(0), 2))
    for name in ("a-softmax", "b", "softmax"):
        save(tmp_path / "models" / name, config, params, (2, 5), None)

    def found(**asked):
        return [(x.name, x.seed) for x in every(Choice(model=str(tmp_path), **asked))]

    assert found() == [(name, seed) for name in ("a-softmax", "b", "softmax") for seed in (2, 5)]
    assert found(seed=5) == [("a-softmax", 5), ("b", 5), ("softmax", 5)]
    assert found(variant="b") == [("b", 2), ("b", 5)]
    one = Choice(model=str(tmp_path / "models" / "b"))
    assert [x.seed for x in every(one)] == [2, 5]
    assert [(x.name, x.seed, x.run) for x in [choose(one)]] == [("b", 2, tmp_path)]
    for asked, told in (
        ({"variant": "c"}, "variant=c: fits 0 of the models"),
        ({"seed": 4}, "seed=4"),
        ({"revision": "main"}, "revision=main: .*on this machine"),
    ):
        with pytest.raises(InputError, match=told):
            found(**asked)
