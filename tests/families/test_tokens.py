"""Tokenizers of published checkpoints, and BOS as an explicit choice."""

import json
from dataclasses import replace

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from sysout_jax.data import load_saved, load_tokenizer
from sysout_jax.data.prompt import encode_prompt
from sysout_jax.errors import InputError
from sysout_jax.families.tokens import NO_BOS, published_tokenizer, write_tokenizer

WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "summer": 3, "is": 4, "warm": 5, "<pad>": 6}


def write(place, template=None, **named):
    backend = tokenizers.Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    backend.save(str(place / "tokenizer.json"))
    for name, content in named.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return place


def prompt(place, bos="auto"):
    return encode_prompt(published_tokenizer(place), "summer is warm", bos).tolist()


@pytest.mark.parametrize(
    ("template", "named", "auto"),
    [
        ("<s> $A", {}, [1, 3, 4, 5]),
        ("$A </s>", {}, [3, 4, 5]),
        (None, {}, [3, 4, 5]),
        # transformers 5 goes by tokenizer.json, whatever the flag says beside it
        (None, {"tokenizer_config": {"add_bos_token": True}}, [3, 4, 5]),
        ("<s> $A", {"tokenizer_config": {"add_bos_token": False}}, [1, 3, 4, 5]),
    ],
)
def test_auto_is_what_the_published_tokenizer_does(tmp_path, template, named, auto):
    assert prompt(write(tmp_path, template, **named)) == auto


@pytest.mark.parametrize("front", [None, "<s> $A"])
@pytest.mark.parametrize("said", [True, False, None])
def test_two_files_that_disagree_on_a_bos_are_named(tmp_path, caplog, front, said):
    """Which matters for who measured with one: the sink is there."""
    published_tokenizer(write(tmp_path, front, tokenizer_config={"add_bos_token": said}))
    told = [x.getMessage() for x in caplog.records]
    expected = [f"{tmp_path}: {NO_BOS}"] if said and front is None else []
    assert told == expected


@pytest.mark.parametrize(
    ("named", "bos"),
    [
        ({"tokenizer_config": {"bos_token": "</s>"}}, 2),
        ({"tokenizer_config": {"bos_token": {"content": "<pad>"}}}, 6),
        ({"config": {"bos_token_id": 2}}, 2),
        ({"tokenizer_config": {"bos_token": "<pad>"}, "config": {"bos_token_id": 2}}, 6),
        ({"config": {"bos_token_id": 99}}, 1),
    ],
)
def test_bos_is_the_named_one(tmp_path, named, bos):
    assert prompt(write(tmp_path, "<s> $A", **named), "yes") == [bos, 3, 4, 5]


def test_yes_and_no_are_what_they_say(tmp_path):
    with_bos = write(tmp_path, "<s> $A")
    assert prompt(with_bos, "yes") == [1, 3, 4, 5]
    assert prompt(with_bos, "no") == [3, 4, 5]
    without = write(tmp_path)
    assert prompt(without, "yes") == [1, 3, 4, 5]
    with pytest.raises(InputError, match="bos='maybe': unknown; accepted: auto, yes, no"):
        prompt(without, "maybe")
    with pytest.raises(InputError, match="prompt='': empty and without BOS"):
        encode_prompt(published_tokenizer(without), "", "no")
    assert encode_prompt(published_tokenizer(without), "", "yes").tolist() == [1]


def test_end_of_text_is_the_named_one(tmp_path):
    write(tmp_path, config={"eos_token_id": [6, 2]})
    assert published_tokenizer(tmp_path).eot == 6
    write(tmp_path, tokenizer_config={"eos_token": "</s>"})
    assert published_tokenizer(tmp_path).eot == 2


def test_gpt2s_own_files(shared_data, tmp_path):
    """vocab.json and merges.txt, as on the hub; the reference's ids of a known sentence."""
    place = shared_data / "tokenizer" / "gpt2"
    (tmp_path / "vocab.json").write_text((place / "encoder.json").read_text())
    (tmp_path / "merges.txt").write_text((place / "vocab.bpe").read_text())
    found = published_tokenizer(tmp_path)
    assert found.encode("Hello world").tolist() == [15496, 995]
    assert encode_prompt(found, "Hello world").tolist() == [15496, 995]
    assert encode_prompt(found, "Hello world", "yes").tolist() == [50256, 15496, 995]


def test_bytes_start_with_bos():
    assert encode_prompt(load_tokenizer("bytes"), "a").tolist() == [257, 97]


def test_no_tokenizer_and_a_broken_one(tmp_path):
    assert published_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        published_tokenizer(tmp_path)


def pair_of_files(place, shared, **files):
    for ours, theirs in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        (place / ours).write_text((shared / "tokenizer" / "gpt2" / theirs).read_text())
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return place


@pytest.mark.parametrize(("said", "front"), [({}, []), ({"add_bos_token": True}, [50256])])
def test_gpt2s_files_are_told_whether_bos_is_in_front(shared_data, tmp_path, said, front):
    """As OPT's, which have no post-processor."""
    found = published_tokenizer(pair_of_files(tmp_path, shared_data, tokenizer_config=said))
    assert encode_prompt(found, "Hello world").tolist() == [*front, 15496, 995]


def test_tokens_that_are_added_to_gpt2s(shared_data, tmp_path):
    """As Phi's runs of spaces: by one file or the other, at the ids they say."""
    spaces = {"content": "   ", "lstrip": False, "normalized": True, "special": False}
    place = pair_of_files(
        tmp_path, shared_data, added_tokens={"  ": 50257},
        tokenizer_config={"tokenizer_class": "CodeGenTokenizer",
                          "added_tokens_decoder": {"50258": spaces}},
    )  # fmt: skip
    assert published_tokenizer(place).encode("a   b").tolist() == [64, 50258, 65]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"tokenizer_config": {"tokenizer_class": "RobertaTokenizer"}}, "merges of RobertaTok"),
        ({"tokenizer_config": {"add_prefix_space": True}}, "merges of add_prefix_space"),
        ({"tokenizer_config": {"tokenizer_class": ["x"]}}, r"merges of \['x'\]"),
        ({"added_tokens": {"   ": 60000}}, "added token '   '=60000: accepted: the next id"),
        ({"added_tokens": {"   ": None}}, "added tokens: int"),
        ({"tokenizer_config": {"added_tokens_decoder": ["x"]}}, "added tokens: 'list' object"),
        ({"tokenizer_config": {"added_tokens_decoder": "x"}}, "added tokens: 'str' object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "added tokens: invalid lit"),
        ({"tokenizer_config": {"added_tokens_decoder": {"50257": "x"}}}, "tokens: .* mapping"),
        ({"tokenizer_config": {"added_tokens_decoder": {"50257": {}}}}, "token ''=50257: acc"),
    ],
)
def test_a_vocabulary_and_merges_that_are_not_gpt2s(shared_data, tmp_path, files, wanted):
    with pytest.raises(InputError, match=wanted):
        published_tokenizer(pair_of_files(tmp_path, shared_data, **files))


def test_qwen2s_own_files(shared_data, tmp_path):
    """Its words, its normal form, and its end of text, which another file adds; ids of
    transformers 5.24."""
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
    decoder = {
        str(50256 + i): {"content": name, "special": name[1] == "|"} for i, name in enumerate(added)
    }
    place = pair_of_files(
        tmp_path, shared_data, config={"model_type": "qwen2"},
        tokenizer_config={"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False,
                          "bos_token": None, "added_tokens_decoder": decoder},
    )  # fmt: skip
    vocabulary = json.loads((place / "vocab.json").read_text())
    del vocabulary["<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps(vocabulary))
    found = published_tokenizer(place)
    assert (found.bos, found.eot, found.adds_bos, found.vocab) == (None, 50256, False, 50260)
    wanted = [40, 6, 3069, 1414, 220, 17, 15, 17, 19, 40304, 50259]
    assert found.encode("I'LL pay 2024 cafe\u0301<tool_call>").tolist() == wanted


def test_no_added_tokens(shared_data, tmp_path):
    place = pair_of_files(tmp_path, shared_data, tokenizer_config={"added_tokens_decoder": None})
    assert published_tokenizer(place).encode("Hello world").tolist() == [15496, 995]


BPE = {"type": "BPE", "vocab": {"b": 0}, "merges": []}
TEMPLATE = {
    "type": "TemplateProcessing", "pair": [], "special_tokens": {},
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
               {"Sequence": {"id": "A", "type_id": 0}}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "template"),
    [
        (BPE | {"unk_token": "<unk>"}, None),
        ({"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "[UNK]"}, None),
        ({"type": "Unigram", "vocab": [["b", 0.0]], "unk_id": None}, None),
        (BPE, TEMPLATE),
        (BPE | {"vocab": {}}, None),
        (BPE | {"vocab": {"a": 4_000_000_000}}, None),
    ],
)
def test_a_tokenizer_that_cannot_encode_is_refused_when_it_is_read(tmp_path, model, template):
    """An ordinary error, a panic of the library's Rust, no ids, or none that int32 holds."""
    spec = {"version": "1.0", "added_tokens": [], "model": model, "post_processor": template}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"tokenizer\.json (is no tokenizer\.json:|has no tokens)"):
        published_tokenizer(tmp_path)


def test_text_that_a_vocabulary_has_no_token_for_is_refused(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    spec = {"version": "1.0", "added_tokens": [], "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    found = published_tokenizer(tmp_path)
    assert found.encode("a").tolist() == [0]
    with pytest.raises(InputError, match=r"^text: .*; accepted: text that the model's tokenizer"):
        found.encode("b")


@pytest.mark.parametrize("template", [None, "<s> $A", "$A </s>"])
@pytest.mark.parametrize("adds", [True, False])
def test_a_tokenizer_comes_back_from_what_is_written(tmp_path, template, adds):
    """The published form keeps BOS, the end of a text, and whether BOS comes first."""
    given = published_tokenizer(write(tmp_path, template, tokenizer_config={"bos_token": "<s>"}))
    given = replace(given, adds_bos=adds)
    (tmp_path / "out").mkdir()
    assert write_tokenizer(given, tmp_path / "out") == {"bos_token_id": 1, "eos_token_id": 2}
    found = published_tokenizer(tmp_path / "out")
    assert (found.bos, found.eot, found.adds_bos) == (1, 2, adds)
    assert encode_prompt(found, "summer is warm").tolist() == [1, 3, 4, 5][not adds :]
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    # other libraries are told by the rule of the tokenizer itself
    assert (plain.encode("summer").ids[0] == 1) == adds


def test_how_a_model_was_trained_is_kept(tmp_path):
    """A file of this library says whether sequences began with BOS; beside a checkpoint too."""
    given = published_tokenizer(write(tmp_path))
    replace(given, adds_bos=True).save(tmp_path / "tokenizer.json")
    assert published_tokenizer(tmp_path).adds_bos


def byte_level(place, bos, eos, ordinary=(), front=None, **files):
    """A tokenizer.json with these special tokens, and ordinary words that look like some."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[bos, eos], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(["summer is warm"] * 9, trainer)
    spec = json.loads(backend.to_str())
    for word in ordinary:
        spec["model"]["vocab"][word] = len(spec["model"]["vocab"])
    if front is not None:
        spec["post_processor"] = {
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": front, "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {front: {"id": front, "ids": [spec["model"]["vocab"][front]],
                                       "tokens": [front]}},
        }  # fmt: skip
    place.mkdir(exist_ok=True)
    (place / "tokenizer.json").write_text(json.dumps(spec))
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return published_tokenizer(place)


DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")


@pytest.mark.parametrize("names", [DEEPSEEK, ("[BOS]", "[EOS]")])
@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": ("bos_token", "eos_token")},
        {"special_tokens_map": ("bos_token", "eos_token")},
        {"config": ("bos_token_id", "eos_token_id")},
    ],
)
def test_special_tokens_of_any_name(tmp_path, names, files):
    """Named by any of the three files, whatever they are called."""
    ((file, roles),) = files.items()
    said = (0, 1) if file == "config" else names
    content = dict(zip(roles, said, strict=True))
    found = byte_level(tmp_path, *names, front=names[0], **{file: content})
    assert (found.bos, found.eot, found.adds_bos) == (0, 1, True)


def test_special_tokens_that_no_file_names(tmp_path):
    """What the tokenizer puts in front is its BOS; without that there is none, and it says so."""
    found = byte_level(tmp_path / "front", "[B]", "[E]", front="[B]")
    assert (found.bos, found.adds_bos) == (0, True)
    bare = byte_level(tmp_path / "bare", "[B]", "[E]")
    assert (bare.bos, bare.eot, bare.adds_bos) == (None, None, False)
    assert encode_prompt(bare, "summer").size
    with pytest.raises(InputError, match="the tokenizer has no BOS token; accepted: auto, no"):
        encode_prompt(bare, "summer", "yes")
    bare.save(tmp_path / "saved.json")
    again = load_saved(tmp_path / "saved.json")
    assert (again.bos, again.eot, again.adds_bos) == (None, None, False)


def test_an_ordinary_word_is_no_special_token(tmp_path):
    """Gemma's vocabulary holds the HTML tag <s>; its BOS is <bos>, which it puts in front."""
    for files in ({}, {"tokenizer_config": {"bos_token": "<bos>", "eos_token": "<eos>"}}):
        found = byte_level(tmp_path, "<bos>", "<eos>", ["<s>", "</s>"], front="<bos>", **files)
        assert (found.bos, found.eot, found.adds_bos) == (0, 1, True)
