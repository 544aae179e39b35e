"""What is no whole GGUF file is refused in one line; what is read has the model's shape."""

import dataclasses
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sysout_jax.data import SubwordTokenizer
from sysout_jax.errors import InputError
from sysout_jax.families.checkpoint import load_checkpoint, open_checkpoint
from sysout_jax.families.gguf_files import model as gguf_model
from sysout_jax.families.gguf_files.architectures import ARCHITECTURES
from sysout_jax.families.gguf_files.config import Metadata
from sysout_jax.families.gguf_files.header import read_header
from sysout_jax.families.verdict import would_load
from tests.families import gguf_writing

ROOT = Path(__file__).parents[2]
MUTATIONS = 300
# Numbers of the config that a file says once, so that nothing can contradict them.
SAID_ONCE = {"context", "norm_eps", "rope_theta", "rope_context"}
TEMPLATE = "{{ raise_exception('run') }}{% for i in range(10**12) %}x{% endfor %}"


def vocabulary(writer):
    """A byte-level vocabulary of nine tokens, and a chat template that must not be run."""
    tokens = ["<|endoftext|>", "a", "b", "c", "d", "ab", "cd", "abcd", "Ġ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 8)
    writer.add_token_merges(["a b", "c d", "ab cd"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)


@pytest.fixture(scope="module")
def whole(golden, tmp_path_factory):
    """A small file of LLaMA with a tokenizer, its bytes and where its data begins."""
    directory, _, _ = golden("llama")
    file = gguf_writing.write_gguf(
        directory, tmp_path_factory.mktemp("whole") / "model.gguf", more=vocabulary
    )
    raw = file.read_bytes()
    data = sum(array.nbytes for array in gguf_writing.converted(
        directory, "llama", {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 20,
                             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6},
    ).values())  # fmt: skip
    return raw, len(raw) - data, load_checkpoint(file)


def mutated(raw: bytes, start: int, rng: np.random.Generator) -> bytes:
    """One change: of bits, bytes or a whole number of the header, of a string, or of the length."""
    out = bytearray(raw)
    kind = rng.integers(7)
    at = int(rng.integers(start))
    if kind == 0:
        out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        out[at : at + 4] = struct.pack("<I", int(rng.integers(1 << 32)))
    elif kind == 2:
        lies = (0, 1, 2, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, len(raw))
        out[at : at + 8] = struct.pack("<Q", int(rng.choice(np.array(lies, np.uint64))))
    elif kind == 3:
        return bytes(out[: int(rng.integers(len(raw)))])
    elif kind == 4:
        out[at:at] = rng.bytes(int(rng.integers(1, 64)))
    elif kind == 5:
        del out[at : at + int(rng.integers(1, 64))]
    else:  # one of the numbers that are counts, lengths, types or offsets
        words = [
            i for i in range(8, start - 8) if 0 < int.from_bytes(raw[i : i + 8], "little") < 64
        ]
        where = int(rng.choice(words))
        out[where] = int(rng.integers(256))
    return bytes(out)


def outcome(file):
    """The model, or why it is refused."""
    try:
        return load_checkpoint(file)
    except InputError as error:
        return error


def test_mutations_are_refused_or_harmless(whole, tmp_path):
    raw, start, model = whole
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.params)
    rng = np.random.default_rng(0)
    file, refused = tmp_path / "model.gguf", 0
    for number in range(MUTATIONS):
        file.write_bytes(mutated(raw, start, rng))
        found = outcome(file)
        if isinstance(found, InputError):
            refused += 1
            assert len(str(found).splitlines()) == 1, number
            assert str(file) in str(found), number
            assert len(str(found)) < 2000, number
            continue
        assert jax.tree.map(lambda x: (x.shape, x.dtype), found.params) == shapes, number
        changed = {
            field.name
            for field in dataclasses.fields(found.config)
            if getattr(found.config, field.name) != getattr(model.config, field.name)
        }
        assert changed <= SAID_ONCE, (number, changed)
    assert MUTATIONS // 2 < refused < MUTATIONS


def test_every_length_but_the_whole_is_refused(whole, tmp_path):
    raw, _, model = whole
    file = tmp_path / "model.gguf"
    file.write_bytes(raw)
    last = read_header(file).tensors[-1]
    end = last.start + last.rows * last.row_bytes  # behind it is padding
    for length in [*range(0, 64), *range(64, end, 997), end - 1]:
        file.write_bytes(raw[:length])
        with pytest.raises(InputError):
            load_checkpoint(file)
    file.write_bytes(raw + b"behind the last tensor")
    assert load_checkpoint(file).config == model.config


def test_each_fault_is_named(whole, tmp_path):
    raw, _, _ = whole
    file = tmp_path / "model.gguf"
    name = b"blk.0.ffn_norm.weight"
    entry = raw.index(name) + len(name)
    offset = entry + 4 + 8 + 4

    def says(changed, match):
        file.write_bytes(changed)
        with pytest.raises(InputError, match=match):
            load_checkpoint(file)

    says(b"GGML" + raw[4:], r"begins with b'GGML'; accepted: b'GGUF'")
    says(raw[:4] + struct.pack("<I", 1) + raw[8:], "is GGUF of version 1")
    says(raw[:4] + struct.pack(">I", 3) + raw[8:], "is big-endian; accepted: little-endian")
    says(raw[:8] + struct.pack("<Q", 1 << 60) + raw[16:], f"{1 << 60} tensors in the")
    says(raw[:16] + struct.pack("<Q", 1 << 60) + raw[24:], f"{1 << 60} keys of metadata in the")
    says(raw.replace(b"\0llama", b"\0llamo", 1), "architecture 'llamo'; accepted")
    says(raw[:entry] + struct.pack("<I", 5) + raw[entry + 4 :], "blk.0.ffn_norm.weight has 5 axes")
    says(raw[:offset] + bytes(8) + raw[offset + 8 :], r"begins at byte 0 of the data; accepted: \d")
    says(raw.replace(name, b"blk.1.ffn_norm.weight"), "blk.1.ffn_norm.weight stand twice")
    says(raw.replace(name, b"blk.0.ffn_form.weight"), r"left over: blk\.0\.ffn_form\.weight")
    says(raw.replace(b"llama.block_count", b"llama.blocc_count"), "llama.block_count is None")
    twice = raw.replace(b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id")
    says(twice, "the key tokenizer.ggml.eos_token_id stands twice")
    says(raw.replace("Ġ".encode(), b"\xff\xff"), "not UTF-8")
    file.write_bytes(raw)
    at = read_header(file).tensors[-1].start
    for value in (np.nan, np.inf):
        number = np.float32(value).tobytes()
        says(raw[:at] + number + raw[at + 4 :], r"tensor token_embd\.weight \(F32\) holds NaN")


def test_known_keys_that_are_not_read_are_refused_and_others_change_nothing(golden, tmp_path):
    directory, _, _ = golden("llama")

    def with_key(key, value):
        return gguf_writing.write_gguf(
            directory, tmp_path / "model.gguf", more=lambda writer: writer.add_float32(key, value)
        )

    with pytest.raises(InputError, match=r"llama\.residual_scale=2\.0 \(accepted"):
        load_checkpoint(with_key("llama.residual_scale", 2.0))
    plain = load_checkpoint(gguf_writing.write_gguf(directory, tmp_path / "plain.gguf"))
    unknown = load_checkpoint(with_key("llama.nobody.knows", 2.0))
    assert unknown.config == plain.config
    assert unknown.origin.ignored == ("llama.nobody.knows",)
    assert load_checkpoint(with_key("llama.logit_scale", 1.0)).config == plain.config


@pytest.fixture
def changed(golden, tmp_path, monkeypatch):
    """A record as a GGUF file, opened with other metadata than it has; None: without the key."""

    def opened(case, keys):
        def read(file):
            header = read_header(file)
            merged = {**header.metadata, **keys}
            return dataclasses.replace(
                header, metadata={k: v for k, v in merged.items() if v is not None}
            )

        monkeypatch.setattr(gguf_model, "read_header", read)
        file = gguf_writing.write_gguf(golden(case)[0], tmp_path / "model.gguf")
        return open_checkpoint(file)

    return opened


@pytest.mark.parametrize(
    ("case", "keys", "said"),
    [
        ("llama", {"general.architecture": ["llama"]}, r"architecture \"\['llama'\]\"; accepted"),
        ("mpt", {"mpt.attention.max_alibi_bias": "8"}, r"alibi_bias is '8'; accepted: a number"),
        ("bloom", {"bloom.attention.head_count_kv": 2}, r"head_count_kv is 2; accepted: 4"),
        ("bloom", {"bloom.feed_forward_length": 9}, r"feed_forward_length is 9; accepted: 96"),
        ("gemma2", {"gemma2.attention.scale": "x"}, r"scale is 'x'; accepted: a number"),
        ("llama", {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": "2"},
         r"scaling\.factor is '2'; accepted: a number"),
    ],
)  # fmt: skip
def test_metadata_of_another_type_is_named(changed, case, keys, said):
    with pytest.raises(InputError, match=said):
        changed(case, keys)


def test_metadata_that_may_be_absent_or_of_another_type(changed):
    """Gemma 2's window is 4096 where its file does not say: so llama.cpp (models/gemma2.cpp)."""
    assert changed("llama", {"general.file_type": [1]}).origin.weights == "GGUF (21 F32)"
    assert changed("gemma2", {"gemma2.attention.sliding_window": None}).config.window == 4096
    assert changed("gemma2", {"gemma2.attention.sliding_window": 0}).config.window is None
    assert changed("gemma3", {"gemma3.attention.sliding_window": None}).config.window is None


OLLAMA = {
    "gemma3.rope.freq_base": None, "gemma3.rope.freq_base_swa": None,
    "gemma3.rope.global.freq_base": 5e5, "gemma3.rope.local.freq_base": 2e4,
    "gemma3.final_logit_softcapping": 30.0, "gemma3.attention.layer_norm_rms_epsilon": None,
    "gemma3.vision.block_count": 27,
}  # fmt: skip


def test_gemma_3_as_ollama_writes_it(changed, caplog):
    plain = changed("gemma3", {})
    found = changed("gemma3", OLLAMA)
    assert found.config.final_softcap is None
    assert (found.config.rope.theta, found.config.rope.local_theta) == (5e5, 2e4)
    assert found.config.norm_eps == 1e-6
    assert found.origin.ignored == ("gemma3.vision.block_count",)
    rope = dataclasses.replace(
        found.config.rope, theta=plain.config.rope.theta, local_theta=plain.config.rope.local_theta
    )
    assert dataclasses.replace(found.config, rope=rope, norm_eps=plain.config.norm_eps) == (
        plain.config
    )
    assert ["no soft cap" in x for x in caplog.messages].count(True) == 1
    long = changed("gemma3", OLLAMA | {"gemma3.context_length": 131_072}).config.rope
    assert (long.rule, long.factor, long.theta) == ("linear", 8.0, 5e5)
    capped = {"gemma3.final_logit_softcapping": 30.0}
    assert changed("gemma3", capped).config.final_softcap == 30.0
    bare = changed("gemma3", dict.fromkeys(OLLAMA)).config
    assert (bare.rope.theta, bare.rope.local_theta, bare.rope.rule) == (1e6, 1e4, "plain")


def test_what_reads_images_is_left_out_where_a_file_says_that_it_has_it(golden, tmp_path):
    def opened(name, key):
        def more(writer):
            writer.add_uint32(key, 27)
            writer.add_tensor("v.patch_embedding.weight", np.ones((4, 3, 2, 2), np.float16))
            writer.add_tensor("mm.mm_input_projection.weight", np.ones((4, 8), np.float32))

        return open_checkpoint(
            gguf_writing.write_gguf(golden("gemma3")[0], tmp_path / name, more=more)
        )

    assert opened("seeing.gguf", "gemma3.vision.block_count").config.layers > 0
    with pytest.raises(InputError, match=r"left over: mm\.mm_input_projection\.weight, v\.patch"):
        opened("blind.gguf", "gemma3.some.block_count")


def test_yarn_as_ollama_writes_it(changed):
    start = "gemma3.rope.scaling."
    keys = {"type": "yarn", "factor": 8.0, "original_context_length": 64, "beta_fast": 64.0,
            "beta_slow": 2.0, "extrapolation_factor": 1.0}  # fmt: skip
    rope = changed("gemma3", {f"{start}{key}": value for key, value in keys.items()}).config.rope
    assert (rope.rule, rope.fast, rope.slow, rope.context) == ("yarn", 64.0, 2.0, 64)
    keys |= {"extrapolation_factor": 0.5}
    with pytest.raises(InputError, match=r"yarn_ext_factor is 0\.5; accepted: 1\.0"):
        changed("gemma3", {f"{start}{key}": value for key, value in keys.items()})


def test_no_scaling_of_positions_whatever_the_factor(changed):
    """A factor alone is of the linear rule, as of llama.cpp's older files."""
    factor = {"llama.rope.scaling.factor": 8.0}
    assert changed("llama", factor | {"llama.rope.scaling.type": "none"}).config.rope.rule == (
        "plain"
    )
    assert changed("llama", factor).config.rope.rule == "linear"
    assert changed("llama", {"llama.rope.scale_linear": 8.0}).config.rope.rule == "linear"


def test_yarns_factor_under_its_other_name(changed):
    """llama.cpp's of OLMo 3's first days, and Ollama's."""
    start = "llama.rope.scaling."
    keys = {"type": "yarn", "factor": 8.0, "original_context_length": 64}
    keys = {f"{start}{key}": value for key, value in keys.items()}
    of = f"{start}attn_factor"
    plain = changed("llama", keys).config
    assert plain.rope.rule == "yarn"
    own = float(np.float32(1.0 + 0.1 * np.log(8.0)))
    assert changed("llama", keys | {of: own}).config == plain
    with pytest.raises(InputError, match=r"attn_factor is 0\.9; accepted: 1 or 1\.20794"):
        changed("llama", keys | {of: 0.9})
    with pytest.raises(InputError, match=r"attn_factor is 1\.3; accepted: 1$"):
        changed("llama", {of: 1.3})


def test_yarns_factor_as_a_multiplier_of_its_own(changed, caplog):
    """DeepSeek-R1-0528-Qwen3-8B's, which transformers and llama.cpp leave out; others are read."""
    start = "llama.rope.scaling."
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    keys = {f"{start}{key}": value for key, value in keys.items()}
    plain = changed("llama", keys).config
    assert "factor of channels that turn" not in caplog.text
    of = f"{start}yarn_attn_factor"
    assert changed("llama", keys | {of: 0.8782488562869419}).config == plain
    assert "yarn's factor of channels that turn is its own, 1.139, and not 0.8782" in caplog.text
    assert changed("llama", keys | {of: 0.9}).config.rope.scale == pytest.approx(0.9)


def test_divisors_that_are_not_there_are_missed(changed):
    with pytest.raises(InputError, match=r"'longrope'.*with the tensors rope_factors_"):
        changed("llama", {"llama.rope.scaling.type": "longrope"})


def test_pooling_of_the_last_states_changes_none_of_them(changed):
    plain = changed("qwen3", {}).config
    assert changed("qwen3", {"qwen3.pooling_type": 3}).config == plain
    with pytest.raises(InputError, match=r"qwen3\.pooling_type=4 \(accepted"):
        changed("qwen3", {"qwen3.pooling_type": 4})


def test_granite_4_without_state_spaces_is_granite_3(changed):
    plain = changed("granite", {})
    width = {"granite.expert_shared_feed_forward_length": plain.config.mlp_width}
    spaces = {f"granite.ssm.{key}": 4 for key in ("conv_kernel", "state_size", "group_count")}
    assert changed("granite", width | spaces).config == plain.config
    with pytest.raises(InputError, match="expert_shared_feed_forward_length is of another width"):
        changed("granite", {"granite.expert_shared_feed_forward_length": 7})


@pytest.mark.parametrize(
    ("case", "keys", "without", "said"),
    [
        ("stablelm", {"context_length": 4096}, "", {"rope_theta": 1e4}),
        ("stablelm", {"context_length": 16_384}, "", {"rope_theta": 1e6}),
        ("falcon", {}, "", {"rope_theta": 1e4}),
        ("falcon new decoder", {}, "", {"rope_theta": 1e4}),
        ("falcon new decoder", {}, "attn_norm_2", {"rope_theta": 500_042.0}),
        ("gpt_neox", {"block_count": 44}, "", {"hidden_act": "gelu_fast"}),
        ("gpt_neox", {"block_count": 36}, "", {"rotary_emb_base": 1e4}),
    ],
)
def test_what_converters_leave_out_is_as_published(case, keys, without, said, golden, tmp_path):
    """Stable Code 3B, Falcon 2 and GPT-NeoX 20B, beside others of their families."""
    header = read_header(gguf_writing.write_gguf(golden(case)[0], tmp_path / "model.gguf"))
    of = header.metadata["general.architecture"]
    changed = {**header.metadata, **{f"{of}.{key}": value for key, value in keys.items()}}
    del changed[f"{of}.rope.freq_base"]
    tensors = {x.name: x for x in header.tensors if not (without and without in x.name)}
    meta = Metadata(dataclasses.replace(header, metadata=changed), of, tensors)
    raw = ARCHITECTURES[of].config(meta)
    assert {key: raw.get(key) for key in said} == said


def test_unknown_keys_of_positions_and_attention_are_refused(changed):
    """They change numbers, and what is not read is not known to agree."""
    for key in ("rope.elsewhere.freq_base", "attention.head_gates"):
        with pytest.raises(InputError, match=rf"llama\.{key}=2\.0 \(accepted"):
            changed("llama", {f"llama.{key}": 2.0})
    plain = changed("llama", {}).config
    harmless = {"attention.head_dim": 6, "attention.causal": True, "rope.scaling.attn_factor": 1.0}
    assert changed("llama", {f"llama.{k}": v for k, v in harmless.items()}).config == plain
    with pytest.raises(InputError, match=r"attention\.head_dim is 8; accepted: 6"):
        changed("llama", {"llama.attention.head_dim": 8})


def test_without_a_tokenizer_that_is_read_a_file_loads(whole, tmp_path, caplog):
    raw, _, model = whole
    file = tmp_path / "model.gguf"
    file.write_bytes(raw.replace(b"abcd", b"ab d"))
    found = load_checkpoint(file)
    assert found.tokenizer is None
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)
    (said,) = caplog.messages
    assert said.startswith(f"no tokenizer: {file}: tokenizer.ggml.merges is 'ab cd', among others")
    assert said[: said.index(";")] in would_load(str(file)).message


def test_heads_that_no_tensor_has_rows_for(changed):
    """Whose rows would be numbered to put them in order."""
    size = {"llama.attention.key_length": 1 << 40, "llama.attention.value_length": 1 << 40}
    said = "head_count is 4, heads of 1099511627776; accepted: no more than the 29 rows"
    with pytest.raises(InputError, match=said):
        changed("llama", size)


def test_a_chat_template_is_never_run(whole):
    _, _, model = whole
    assert isinstance(model.tokenizer, SubwordTokenizer)
    assert model.tokenizer.encode("abcd ab").tolist() == [7, 8, 5]
    assert TEMPLATE not in model.tokenizer.backend.to_str()


MEMORY = """
import sys
import jax
from sysout_jax.families.checkpoint import load_checkpoint
def peak():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM"))
jax.devices()
bare = peak()
model = load_checkpoint(sys.argv[1], "float32")
print(peak() - bare)
"""


@pytest.mark.slow
def test_smollm2_loads_in_less_than_a_gigabyte(smollm2):
    """Half of which are its 134.5M parameters in float32, and a tenth its embedding unpacked."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, smollm2],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 538e6 < int(done.stdout) * 1024 < 1e9
