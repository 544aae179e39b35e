"""`load_corpus`: what a `corpus` and a `tokenizer` value give together."""

import json
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.data import Backcopy, TextCorpus, load_corpus, load_saved, load_tokenizer
from sysout_jax.errors import InputError


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(Path(json.__file__).read_text(), encoding="utf-8")
    return str(path)


def test_backcopy():
    assert load_corpus("backcopy") == Backcopy()
    assert load_corpus("backcopy", bos=False) == Backcopy(begins_with_bos=False)


@pytest.mark.parametrize(("tokenizer", "vocab"), [("bytes", 258), ("bpe:300", 300)])
@pytest.mark.parametrize("bos", [True, False])
def test_text(text, tmp_path, tokenizer, vocab, bos):
    corpus = load_corpus(text, tokenizer, bos, cache_dir=tmp_path / "cache")
    assert isinstance(corpus, TextCorpus)
    assert (corpus.name, corpus.vocab, corpus.documents) == (text, vocab, 1)
    assert corpus.tokenizer is not None
    assert corpus.bos == (corpus.tokenizer.bos if bos else None)
    corpus.tokenizer.save(tmp_path / "beside-a-model.json")
    assert load_saved(tmp_path / "beside-a-model.json").adds_bos is bos  # what auto is there
    row = corpus.batch("train", 0, 0, 1, 40)[0]
    shown = corpus.tokenizer.decode(row[1:] if bos else row)
    assert shown in Path(text).read_text()
    assert "1 document" in corpus.split


def test_stdlib_by_default_bytes(tmp_path):
    seen = []
    corpus = load_corpus("stdlib", cache_dir=tmp_path, progress=lambda *step: seen.append(step))
    assert corpus.tokens["train"] > 10 * corpus.tokens["val"] > 10_000
    assert seen[-1][0] == seen[-1][1] > 1_000_000
    assert corpus.batch("train", 0, 0, 4, 64).max() <= 257


def test_token_files(tmp_path, text):
    for part in ("train", "val"):
        np.arange(100, dtype="<u2").tofile(tmp_path / f"{part}.bin")
    corpus = load_corpus(f"tokens:{tmp_path}")
    assert (corpus.vocab, corpus.bos, corpus.tokenizer) == (100, None, None)
    assert corpus.batch("val", 0, 0, 3, 20).shape == (3, 21)
    saved = tmp_path / "tokenizer.json"
    load_tokenizer("bytes").save(saved)
    known = load_corpus(f"tokens:{tmp_path}", str(saved))
    assert (known.vocab, known.bos) == (258, 257)
    with pytest.raises(InputError, match="no text to train"):
        load_corpus(f"tokens:{tmp_path}", "bpe:300")


def test_a_part_of_the_text_to_train_on(text, tmp_path):
    whole = load_corpus(text, cache_dir=tmp_path)
    part = load_corpus(text, cache_dir=tmp_path, train_tokens=1009)
    np.testing.assert_array_equal(part.train, whole.train[:1009])
    np.testing.assert_array_equal(part.val, whole.val)
    most = whole.tokens["train"]
    assert load_corpus(text, cache_dir=tmp_path, train_tokens=most).tokens == whole.tokens
    for count in (0, most + 1):
        with pytest.raises(InputError, match=f"train_tokens={count}: .* accepted: 1 to {most}"):
            load_corpus(text, cache_dir=tmp_path, train_tokens=count)
    with pytest.raises(InputError, match="train_tokens=5: corpus backcopy draws its rows"):
        load_corpus("backcopy", train_tokens=5)


def test_unknown_specs(text, tmp_path):
    with pytest.raises(InputError, match="accepted: backcopy, stdlib, PATH, tokens:DIR"):
        load_corpus("bookcopy", cache_dir=tmp_path)
    with pytest.raises(InputError, match="accepted: bytes, gpt2:DIR"):
        load_corpus(text, "gtp2", cache_dir=tmp_path)
