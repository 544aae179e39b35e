"""Tokenizers in GGUF files: byte-level BPE with its splits, SentencePiece's two kinds, specials."""

import itertools

import gguf
import numpy as np
import pytest

from sysout_jax.errors import InputError
from sysout_jax.families.gguf_files.header import read_header
from sysout_jax.families.gguf_files.model import open_gguf
from sysout_jax.families.gguf_files.tokenizer import SPLITS, read_tokenizer

SPACE = "\u2581"
BYTES = [f"<0x{i:02X}>" for i in range(256)]
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def written(place, keys, architecture="llama"):
    """The header of a file with these keys of "tokenizer.ggml" and no tensors."""
    writer = gguf.GGUFWriter(place / "tokens.gguf", architecture)
    for key, value in keys.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_header(place / "tokens.gguf")


def sentencepiece(pieces, model="llama", **more):
    """Keys of a vocabulary of three specials, all bytes, and pieces with scores."""
    names, scores = zip(*pieces, strict=True)
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *names]
    return {
        "model": model, "tokens": tokens, "scores": [0.0] * 259 + [float(x) for x in scores],
        "token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(names),
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    } | more  # fmt: skip


PIECES = [(x, -100 - i) for i, x in enumerate(f"{SPACE}abcde")] + [
    ("ab", -1), ("bc", -2), ("abc", -3), ("de", -4), (f"{SPACE}a", -5), ("cd", -6),
    (f"{SPACE}ab", -7), ("abcde", -8), (f"{SPACE}{SPACE}", -9),
]  # fmt: skip


def merged(text, scores):
    """SentencePiece's rule: of all neighbours that make a piece, the leftmost with the best score
    are merged, until none are left."""
    parts = list(text)
    while True:
        made = [(-scores[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts))
                if a + b in scores]  # fmt: skip
        if not made:
            return parts
        _, at = min(made)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_the_best_score_first(prefix, tmp_path):
    keys = sentencepiece(PIECES, add_space_prefix=prefix)
    tokenizer = read_tokenizer(written(tmp_path, keys), 300)
    ids = {token: i for i, token in enumerate(keys["tokens"])}
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(rng.choice(list("abcde "), rng.integers(1, 12)))
        wanted = merged((SPACE if prefix else "") + text.replace(" ", SPACE), dict(PIECES))
        assert tokenizer.encode(text).tolist() == [ids[part] for part in wanted], text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos, tokenizer.eot, tokenizer.adds_bos) == (1, 2, True)
    found = tokenizer.encode("é").tolist()
    assert found[-2:] == [3 + 0xC3, 3 + 0xA9]
    assert 1 not in tokenizer.encode("<s>a").tolist()  # text that spells a special token is text


def test_gemma_spells_runs_of_spaces_as_they_are(tmp_path):
    """As llama.cpp's converter writes them; the ids are those of the reference for this file."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "  ", "   ", "\n\n", SPACE, "a", "b", f"{SPACE}a",
              "<0x0A>", "\n"]  # fmt: skip
    keys = {
        "model": "llama", "tokens": tokens, "scores": [0.0] * 13, "add_space_prefix": False,
        "token_type": [CONTROL] * 3 + [UNKNOWN] + [USER] * 3 + [NORMAL] * 4 + [BYTE, NORMAL],
    }  # fmt: skip
    tokenizer = read_tokenizer(written(tmp_path, keys, "gemma3"), 13)
    found = [tokenizer.encode(text).tolist() for text in ("a b", "a  b", "a   b", "\n\n")]
    assert found == [[8, 7, 9], [8, 4, 9], [8, 5, 9], [6]]
    assert tokenizer.vocab == 13


def test_unigram_takes_the_likeliest_cut(tmp_path):
    pieces = [(x, -3.0 - 0.1 * i) for i, x in enumerate(f"{SPACE}abcde")] + [
        ("ab", -4.0), ("bcd", -5.0), ("cde", -4.5), ("abc", -6.5), (f"{SPACE}a", -3.5),
    ]  # fmt: skip
    keys = sentencepiece(pieces, "t5", add_bos_token=False)
    tokenizer = read_tokenizer(written(tmp_path, keys), 300)
    scores, ids = dict(pieces), {token: i for i, token in enumerate(keys["tokens"])}
    assert not tokenizer.adds_bos

    def cuts(text):
        if not text:
            yield []
        for end in range(1, len(text) + 1):
            if text[:end] in scores:
                yield from ([text[:end], *rest] for rest in cuts(text[end:]))

    rng = np.random.default_rng(0)
    for _ in range(60):
        text = "".join(rng.choice(list("abcde "), rng.integers(1, 8)))
        best = max(cuts(SPACE + text.replace(" ", SPACE)), key=lambda c: sum(scores[x] for x in c))
        found = [keys["tokens"][i] for i in tokenizer.encode(text)]
        assert sum(scores[x] for x in found) == pytest.approx(sum(scores[x] for x in best))
        assert tokenizer.encode(text).tolist() == [ids[x] for x in found]


# What each kind makes of one text: pieces, a space as "Ġ".
TEXT = "It's 12345 X\n\n y"
CUTS = {
    "gpt-2": ["It", "'s", "Ġ12345", "ĠX", "ĊĊ", "Ġy"],
    "smollm": ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠX", "ĊĊ", "Ġy"],
    "llama-bpe": ["It", "'s", "Ġ", "123", "45", "ĠX", "ĊĊ", "Ġy"],
    "qwen2": ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠX", "ĊĊ", "Ġy"],
    "gpt-4o": ["It's", "Ġ", "123", "45", "ĠX", "ĊĊ", "Ġy"],
    "tekken": ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠX", "ĊĊ", "Ġy"],
    "bloom": ["It's", "Ġ12345", "ĠX", "ĊĊ", "Ġy"],
    "falcon": ["It", "'", "s", "Ġ", "123", "45", "ĠX", "ĊĊ", "Ġy"],
}
# By the table of transformers 5.24, integrations/gguf/gguf_tokenizer_mapping.py.
ALIKE = {
    "llama-bpe": ("falcon-h1", "midm-2.0", "lfm2", "jina-v5-nano"), "qwen2": ("kormo", "f2llmv2"),
    "gpt-4o": ("kanana2", "talkie", "minimax-m2"),
}  # fmt: skip


def byte_level(**more):
    alphabet = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ", "It"]
    return {
        "model": "gpt2", "pre": "gpt-2", "tokens": ["<|end|>", "<think>", *alphabet],
        "token_type": [CONTROL, USER] + [NORMAL] * len(alphabet), "merges": ["I t"],
        "eos_token_id": 0,
    } | more  # fmt: skip


def test_text_is_cut_as_each_kind_cuts_it(tmp_path):
    for pre, wanted in CUTS.items():
        backend = read_tokenizer(written(tmp_path, byte_level(pre=pre)), 200).backend
        assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(TEXT)] == wanted, pre
    assert {"default", "olmo", "stablelm2", "mpt"} <= set(SPLITS)
    assert all(SPLITS[other] == SPLITS[one] for one, others in ALIKE.items() for other in others)


@pytest.mark.parametrize(
    ("architecture", "count", "pre"),
    [("qwen2", 99, "qwen2"), ("falcon", 99, "falcon"), ("gptneox", 99, "gpt-2"),
     ("llama", 128_256, "llama-bpe"), ("llama", 99, None)],
)  # fmt: skip
def test_files_that_do_not_say_how_words_are_cut(architecture, count, pre, tmp_path, caplog):
    """Those of before May 2024: as the architecture's published models; LLaMA 3 has BOS first."""
    keys = byte_level(bos_token_id=0)
    del keys["pre"]
    more = [f"<{i}>" for i in range(count - len(keys["tokens"]))]
    keys |= {
        "tokens": [*keys["tokens"], *more],
        "token_type": [*keys["token_type"], *[1] * len(more)],
    }
    found = read_tokenizer(written(tmp_path, keys, architecture), count)
    said, unknown = (
        read_tokenizer(written(tmp_path, keys | {"pre": name}, architecture), count)
        for name in (pre or "gpt-2", "default")
    )
    assert unknown.fingerprint == found.fingerprint  # "default" of bytes says nothing either
    cut = [[x for x, _ in of.backend.pre_tokenizer.pre_tokenize_str(TEXT)] for of in (found, said)]
    assert cut[0] == cut[1]
    assert found.adds_bos == said.adds_bos == (pre == "llama-bpe")
    assert ("words are cut as GPT-2 does" in caplog.text) == (pre is None)


def test_a_rule_of_words_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(InputError, match="pre is 'gpt-9'; accepted: default, gpt-2"):
        read_tokenizer(written(tmp_path, byte_level(pre="gpt-9")), 200)


def test_added_tokens_and_bos(tmp_path):
    keys = byte_level()
    tokenizer = read_tokenizer(written(tmp_path, keys), 200)
    assert tokenizer.encode("<think>It").tolist() == [1, len(keys["tokens"]) - 1]
    assert 0 not in tokenizer.encode("<|end|>").tolist()
    assert (tokenizer.eot, tokenizer.bos, tokenizer.adds_bos) == (0, 0, False)
    assert read_tokenizer(written(tmp_path, keys | {"add_bos_token": True}), 200).adds_bos
    llama3 = keys | {"pre": "llama-bpe", "bos_token_id": 0}
    assert read_tokenizer(written(tmp_path, llama3), 200).adds_bos
    assert not read_tokenizer(written(tmp_path, llama3 | {"add_bos_token": False}), 200).adds_bos
    assert read_tokenizer(written(tmp_path, {"model": "no_vocab"}), 200) is None


def test_empty_tokens_and_those_without_a_row(tmp_path):
    """Empty ones have the names that llama.cpp gives them; the others are left out, as Ollama's
    reader does."""
    pieces = [*PIECES, ("", -1e9), ("", -1e9)]
    keys = sentencepiece(pieces)
    rows = len(keys["tokens"])
    whole = read_tokenizer(written(tmp_path, keys), rows)
    assert whole.backend.id_to_token(rows - 1) == f"[EMPTY_{rows - 1}]"
    plain = read_tokenizer(written(tmp_path, sentencepiece(PIECES)), 300)
    assert whole.encode("abcde ab").tolist() == plain.encode("abcde ab").tolist()
    more = sentencepiece([*PIECES, ("<image>", -1e9), ("<video>", -1e9)])
    cut = read_tokenizer(written(tmp_path, more), rows - 2)
    assert cut.vocab == rows - 2 == plain.vocab
    assert cut.encode("abcde ab").tolist() == plain.encode("abcde ab").tolist()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": "bert"}, r"model is 'bert'; accepted: gpt2, llama, t5, none"),
        ({"model": ["gpt2", "llama"]}, r"model is \"\['gpt2', 'llama'\]\"; accepted: gpt2"),
        ({"model": "t5"}, r"tokens is refused \("),  # no token for what is unknown
        ({"model": "t5", "unknown_token_id": "0"}, r"unknown_token_id is '0'; accepted: 0 to"),
        ({"model": "t5", "unknown_token_id": 5000}, r"unknown_token_id is 5000; accepted: 0 to"),
        ({"model": "llama", "tokens": ["x" * 20_000], "token_type": [1]}, r"of 20000 characters"),
        ({"merges": ["a zz"]}, r"merges is 'a zz'"),
        ({"eos_token_id": 5000}, r"eos_token_id is 5000; accepted: 0 to"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, r"\['a'\], each more than once"),
        ({"token_type": [1, 1]}, r"2 types and"),
        ({"tokens": []}, r"an array of str"),
    ],
)
def test_what_is_no_tokenizer_is_refused(change, match, tmp_path):
    with pytest.raises(InputError, match=match):
        read_tokenizer(written(tmp_path, byte_level() | change), 200)


@pytest.mark.slow
def test_ids_of_smollm2_equal_the_reference(smollm2):
    transformers = pytest.importorskip("transformers", reason="needs requirements-reference.txt")
    named = {"gguf_file": smollm2.name}
    reference = transformers.AutoTokenizer.from_pretrained(smollm2.parent, **named)
    tokenizer = open_gguf(smollm2).tokenizer()
    for text in (
        "Summer is warm. Winter is cold.\n", "  two  spaces\t\ttab\n\n\nthree", "don't WE'LL it's",
        "12345 3.14 1,000", "na\u00efve caf\u00e9 \u2014 \u65e5\u672c\u8a9e \U0001f642", "a\r\nb",
        "def f(x):\n    return x**2\n",
    ):  # fmt: skip
        assert tokenizer.encode(text).tolist() == reference.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("Summer is warm.").tolist() == [34386, 314, 3091, 30]
    assert (tokenizer.bos, tokenizer.eot, tokenizer.adds_bos) == (1, 2, False)
