"""Tokenizers: round trips, a slow reference BPE, and every file a user can get wrong."""

import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from sysout_jax.data.tokenizer import Tokenizer, bounded
from sysout_jax.data.tokenizer_files import load_saved, load_tokenizer
from tests.refusing import refusal

SHARED_GPT2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizer" / "gpt2"
TEXT = "def f(x):\n    return 'naïve' + x  # it's 42\n\n\nclass Café:\n\tpass  \n"
SAMPLES = [TEXT, "", "\n\n", "日本語 text 🙂", "a  b\n \nc", "don't we'll 12ab34 ... !?"]


def training_text():
    words = "the cat sat on a mat while another theatre was attacked by cats, it's what we'll see"
    return [TEXT * 3, f"{words}\n\n" * 5, "x = x + 1\n" * 20]


@pytest.fixture(scope="module")
def bpe():
    return load_tokenizer("bpe:330", training_text)


@pytest.fixture
def gpt2_files(bpe, tmp_path):
    """A directory in GPT-2's layout, holding the merges of the small BPE."""
    spec = json.loads(bpe.backend.to_str())["model"]
    (tmp_path / "encoder.json").write_text(json.dumps(spec["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in spec["merges"]]
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return tmp_path


def reference_bpe(text, directory):
    """GPT-2's encoder.py in its plainest form, for ASCII text."""
    vocab = json.loads((directory / "encoder.json").read_text())
    lines = (directory / "vocab.bpe").read_text().split("\n")[1:-1]
    rank = {tuple(line.split(" ")): n for n, line in enumerate(lines)}
    words = re.findall(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", text
    )
    ids = []
    for word in words:
        parts = [c if "!" <= c <= "~" else chr(256 + ord(c)) for c in word]
        while len(parts) > 1:
            scored = [
                (rank.get(pair, 10**9), i) for i, pair in enumerate(itertools.pairwise(parts))
            ]
            best, at = min(scored)
            if best == 10**9:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [vocab[part] for part in parts]
    return ids


def reject(spec, *wanted, train_on=None):
    message = refusal(load_tokenizer, spec, train_on)
    for part in ("tokenizer", *wanted):
        assert part in message


@pytest.mark.parametrize("text", SAMPLES)
def test_bytes_round_trip(text):
    tokenizer = load_tokenizer("bytes")
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text


def test_bytes_specials_and_labels():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab, tokenizer.eot, tokenizer.bos) == (258, 256, 257)
    ids = [257, 65, 32, 10, 0xE9, 256]
    assert tokenizer.pieces(ids) == ["<|bos|>", "A", "␣", "\\n", "\\xe9", "<|endoftext|>"]
    assert tokenizer.decode(ids) == "<|bos|>A \n\ufffd<|endoftext|>"


@pytest.mark.parametrize("text", SAMPLES)
def test_bpe_round_trip(bpe, text):
    ids = bpe.encode(text)
    assert ids.dtype == np.int32
    assert bpe.decode(ids) == text
    first, second = bpe.encode_many([text, "a b"])
    assert (first.tolist(), second.tolist()) == (ids.tolist(), bpe.encode("a b").tolist())
    labels = bpe.pieces(ids)
    assert len(labels) == len(ids)
    assert all(label.isprintable() and " " not in label for label in labels)


def test_bpe_has_its_size_and_specials(bpe):
    assert isinstance(bpe, Tokenizer)
    assert bpe.vocab == 330
    assert bpe.pieces([bpe.eot, bpe.bos]) == ["<|endoftext|>", "<|bos|>"]
    assert "␣the" in bpe.pieces(bpe.encode("at the mat"))
    with pytest.raises(IndexError, match="331"):
        bpe.pieces([331])


def test_bpe_training_is_deterministic(bpe):
    again = load_tokenizer("bpe:330", training_text)
    other = load_tokenizer("bpe:329", training_text)
    assert again.fingerprint == bpe.fingerprint != other.fingerprint


def test_text_never_encodes_to_a_special(bpe, gpt2_files):
    for tokenizer in (bpe, load_tokenizer(f"gpt2:{gpt2_files}"), load_tokenizer("bytes")):
        ids = tokenizer.encode("a<|endoftext|>b<|bos|>")
        assert not np.isin(ids, [tokenizer.eot, tokenizer.bos]).any()
        assert tokenizer.decode(ids) == "a<|endoftext|>b<|bos|>"


def test_gpt2_directory_agrees_with_a_slow_reference(gpt2_files):
    tokenizer = load_tokenizer(f"gpt2:{gpt2_files}")
    for text in (t for t in SAMPLES if t.isascii()):
        assert tokenizer.encode(text).tolist() == reference_bpe(text, gpt2_files)
    text = "".join(training_text()[1:]) + "   x\t\n\n  y 'tis it's\n"
    assert tokenizer.encode(text).tolist() == reference_bpe(text, gpt2_files)
    assert tokenizer.bos == tokenizer.eot


def test_gpt2_second_layout(gpt2_files):
    first = load_tokenizer(f"gpt2:{gpt2_files}")
    (gpt2_files / "encoder.json").rename(gpt2_files / "vocab.json")
    (gpt2_files / "vocab.bpe").rename(gpt2_files / "merges.txt")
    assert load_tokenizer(f"gpt2:{gpt2_files}").fingerprint == first.fingerprint


@pytest.mark.skipif(not SHARED_GPT2.is_dir(), reason="GPT-2's tokenizer files are not here")
def test_published_gpt2_files():
    tokenizer = load_tokenizer(f"gpt2:{SHARED_GPT2}")
    assert (tokenizer.vocab, tokenizer.eot, tokenizer.bos) == (50257, 50256, 50256)
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.encode("Hello, world!\n\n").tolist() == [15496, 11, 995, 0, 628]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "gpt2"])
def test_saved_file_reads_back(kind, bpe, gpt2_files, tmp_path):
    tokenizer = (
        bpe if kind == "bpe" else load_tokenizer({"gpt2": f"gpt2:{gpt2_files}"}.get(kind, kind))
    )
    path = tmp_path / "run" / "tokenizer.json"
    path.parent.mkdir()
    tokenizer.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    for loaded in (load_saved(path), load_tokenizer(str(path))):
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.vocab, loaded.eot, loaded.bos) == (
            tokenizer.vocab,
            tokenizer.eot,
            tokenizer.bos,
        )
        assert loaded.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def word_level(path, *specials, pre_tokenizer=None):
    names = [*specials, "cat", "mat", "[UNK]"]
    vocab = {name: n for n, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(specials))
    backend.enable_truncation(2)
    backend.save(str(path))
    return path


@pytest.mark.parametrize(
    ("specials", "eot", "bos"),
    [
        (("<s>", "</s>"), 1, 0),
        (("<bos>", "<eos>"), 1, 0),
        (("<|begin_of_text|>", "<|end_of_text|>"), 1, 0),
        (("<|endoftext|>",), 0, 0),
        (("<s>",), 0, 0),
    ],
)
def test_tokenizer_json(tmp_path, specials, eot, bos):
    tokenizer = load_tokenizer(str(word_level(tmp_path / "t.json", *specials)))
    assert (tokenizer.eot, tokenizer.bos) == (eot, bos)
    assert tokenizer.pieces(tokenizer.encode("cat mat cat dog")) == ["cat", "mat", "cat", "[UNK]"]


def test_only_gpt2_like_splitting_may_be_cut(tmp_path, bpe):
    assert bpe.cut is not None
    for name, pre_tokenizer in (
        ("space", pre_tokenizers.Metaspace()),
        ("prefix", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        ("whole", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    ):
        path = word_level(tmp_path / f"{name}.json", "<s>", pre_tokenizer=pre_tokenizer)
        assert load_tokenizer(str(path)).cut is None


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {
            "added_tokens": [
                {"id": 0, "content": "<|endoftext|>", "special": False, "lstrip": True}
                | dict.fromkeys(("single_word", "rstrip", "normalized"), False)
            ]
        },
    ],
)
def test_a_byte_level_bpe_with_more_to_it_may_not_be_cut(tmp_path, bpe, change):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(json.loads(bpe.backend.to_str()) | change))
    assert load_tokenizer(str(path)).cut is None


@pytest.mark.parametrize("spec", ["gtp2", "", "gpt2", "gpt2:", "byte", "tokenizer.jsn"])
def test_unknown_spec_lists_what_is_accepted(spec):
    reject(spec, repr(spec), "bytes, gpt2:DIR, PATH.json, bpe:SIZE")


@pytest.mark.parametrize("size", ["257", "0", "-300", "x", "", "1e3", "300.0", "1000001", "9" * 30])
def test_bad_bpe_size(size):
    reject(f"bpe:{size}", "258 to 1000000", train_on=training_text)


def test_bpe_needs_enough_text():
    reject("bpe:5000", "yields only", "ask for at most", train_on=training_text)
    reject("bpe:300", "no text to train")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 200_000,
        "[]",
        "{}",
        '{"model": 3}',
        '{"model": {"type": "Nope"}}',
        '{"model": {}}',
    ],
)
def test_malformed_tokenizer_json(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    reject(str(path), str(path))


def test_truncated_or_missing_tokenizer_json(tmp_path, bpe):
    path = tmp_path / "t.json"
    reject(str(path), str(path), "No such file")
    bpe.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    reject(str(path), str(path), "cut short")
    path.write_bytes(b"\xff" + whole)
    reject(str(path), "not UTF-8 at byte 0")
    path.write_text(json.dumps(json.loads(whole) | {"eot": 99999}))
    reject(str(path), "eot=99999")
    reject(str(word_level(path)), "none of the special tokens")


def test_gpt2_directory_missing_or_incomplete(gpt2_files):
    reject(f"gpt2:{gpt2_files / 'absent'}", "absent", "encoder.json and vocab.bpe")
    (gpt2_files / "vocab.bpe").unlink()
    reject(f"gpt2:{gpt2_files}", "has no", "vocab.json and merges.txt")


def without_last(text, count):
    return text[: len(text) - count]


@pytest.mark.parametrize(
    ("name", "damage", "wanted"),
    [
        ("encoder.json", lambda t: without_last(t, 50), "cut short"),
        ("encoder.json", lambda t: "[1, 2]", "no JSON object"),
        ("encoder.json", lambda t: t.replace("<|endoftext|>", "eot"), "no <|endoftext|>"),
        ("encoder.json", lambda t: t.replace('"A"', '"AAAA"'), "e.g. 'A'"),
        ("encoder.json", lambda t: t.replace(": 7,", ": 70000,"), "does not number"),
        ("encoder.json", lambda t: t.replace(": 7,", ': "7",'), "does not number"),
        ("vocab.bpe", lambda t: without_last(t, 3), "line"),
        ("vocab.bpe", lambda t: t[: t.rindex("\n", 0, -1)], "cut short"),
        ("vocab.bpe", lambda t: t + "one two three\n", "'one two three'"),
        ("vocab.bpe", lambda t: t + "qzx zzz\n", "'qzx zzz'"),
    ],
)
def test_damaged_gpt2_files(gpt2_files, name, damage, wanted):
    path = gpt2_files / name
    path.write_text(damage(path.read_text()))
    reject(f"gpt2:{gpt2_files}", str(path), wanted)


@pytest.mark.parametrize("letters", ["ACGT", "0123456789", "+/=-", " \t", "_", "愛"])
def test_one_very_long_word(letters):
    """Training takes a time that grows with it, and its text comes back; a second each."""
    word = "".join(np.random.default_rng(0).choice(list(letters), 300_000))
    begun = time.process_time()
    made = load_tokenizer("bpe:270", lambda: [word, "and some words\n" * 9])
    assert time.process_time() - begun < 10  # 20 to 60 s without bounds
    ids = made.encode(word)
    assert made.decode(ids) == word
    assert ids.size < len(word.encode())


def test_words_that_texts_have_are_whole():
    """Text of words below the bound is learned from as it is, however long it is without spaces."""
    text = ("abc" * 341 + "1") * 3 + " " * 1023 + "x_y" * 1000 + "\u0301" * 1023
    assert list(bounded(text)) == [text]
    parts = list(bounded(f"{text} {'y' * 3000} z"))
    assert [len(part) for part in parts[1:]] == [1024, 3000 - 2048 + 2]
    assert "".join(parts) == f"{text} {'y' * 3000} z"
