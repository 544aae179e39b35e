"""The peer finds what we find in a published model's files; totals and goals by hand."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tokenizers

from benchmarks import against_hooks, first_reading, first_result
from benchmarks.goals import Row
from sysout_jax.families.export import export
from sysout_jax.model.decoder import init
from sysout_jax.model.model import Model

WORDS = {"a": 0, "b": 1, "c": 2, "[UNK]": 3}


@pytest.fixture
def place(tmp_path):
    """A tiny model whose third word has an outlier, its tokenizer, and sequences: odd numbers of
    tokens and channels, since PyTorch's median of an even number is not the mean of two."""
    c = replace(
        against_hooks.llama(2, 64, 1, 5, 32),
        width=9, heads=3, kv_heads=3, head_dim=4, mlp_width=17,
    )  # fmt: skip
    params = jax.tree.map(np.array, init(c, jax.random.key(0)))
    params["embed"][2, 7] = 1e4
    export(Model(c, params, None), tmp_path / "model", "llama")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "model" / "tokenizer.json"))
    np.save(tmp_path / "rows.npy", np.array([[0, 1, 0, 3, 4], [4, 2, 2, 1, 0], [1, 1, 3, 0, 2]]))
    return tmp_path


def test_the_peer_finds_the_same(place):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from benchmarks import hooks

    given = (str(place / "model"), "a b c a b", str(place / "rows.npy"))
    ours, theirs = first_reading.prepare(*given)(), hooks.first_result(*given, "cpu")()
    torch.set_num_threads(1)
    assert ours["seconds"].keys() == theirs["seconds"].keys() == {*first_result.TIMED}
    against_hooks.check(ours["found"], theirs["found"])
    assert np.shape(theirs["found"]["sequences"]) == (2, 3)
    assert (np.array(theirs["found"]["sequences"]) > 1e4).tolist() == [[False, True, True]] * 2


def reading(load, prompt, again, whole, found=2.0):
    seconds = {"load": load, "prompt": prompt, "sequences": prompt}
    seconds |= {"prompt again": again, "sequences again": again}
    return {"found": {"seconds": seconds, "found": {"prompt": [found]}}, "whole": whole}


def test_what_is_read_again_counts_in_no_total():
    passes = {
        "ours": [reading(2.0, 3.0, 1.0, 12.0), reading(2.0, 3.0, 2.5, 15.0)],
        "peer": [reading(1.0, 4.0, 3.0, 26.0), reading(1.0, 4.0, 3.0, 16.0)],
    }
    record = first_result.compared(passes)
    rows = {row.what: row for row in record["rows"]}
    assert rows["the whole process, ours"] == Row("the whole process, ours", [10.0] * 3, " s")
    assert rows["start and imports, peer"].found == [6.0, 3.5, 8.5]
    assert rows["the whole, ours of the peer's"].found == [0.75, 0.625, 0.875]
    assert rows["the whole, ours of the peer's"].met
    assert rows["the prompt, ours, more than again"].found == [1.25, 0.875, 1.625]
    passes["ours"][1]["found"]["found"]["prompt"] = [2.1]
    with pytest.raises(against_hooks.Differs):
        first_result.compared(passes)
