"""The exported prefix is one that the reference implementation reads."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import sysout_jax as so
from sysout_jax.analysis.intervene.conversion import with_prefix
from sysout_jax.families.checkpoint import load_checkpoint
from sysout_jax.families.prefix_cache import export_prefix
from tests.families import reference

CASES = (
    "llama",
    "gpt2",
    "qwen3",
    "gemma2",
    "gpt_neox",
    "phi3",
    "mixtral",
    "gpt_oss",
    "falcon",
    "smollm3",
    "olmo3",
    "gptj",
)
COUNT = 2
PAGE = Path(__file__).parents[2] / "docs" / "convert.md"
(SNIPPET,) = re.findall(r"```python\n(import torch\n.*?)```", PAGE.read_text(), re.S)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def converted(directory, ids):
    model = load_checkpoint(directory)
    config, params = with_prefix(model.config, model.params, ids[0, :COUNT].tolist())
    return so.Model(config, params)


@pytest.mark.parametrize("case", CASES)
def test_the_converted_model_equals_the_record(case, golden):
    directory, ids, expected = golden(case)
    rows = ids[:1]  # one text: the others begin with other tokens
    logits, _ = so.apply(converted(directory, rows), jnp.asarray(rows[:, COUNT:]))
    np.testing.assert_allclose(logits, expected["logits"][:1, COUNT:], rtol=0, atol=1e-3)


def test_keys_are_those_of_the_cache(golden, tmp_path):
    directory, ids, _ = golden("llama")
    model = load_checkpoint(directory)
    _, taps = so.apply(model, ids[:1, :COUNT], {"key": None, "value": None})
    export_prefix(converted(directory, ids), tmp_path / "prefix.safetensors")
    stored = load_file(tmp_path / "prefix.safetensors")
    assert len(stored) == 2 * model.config.layers
    for layer in range(model.config.layers):
        for name in ("key", "value"):
            expected = np.swapaxes(taps[name][layer], 1, 2)
            np.testing.assert_allclose(stored[f"{name}.{layer}"], expected, atol=1e-5)


def test_other_models_have_no_prefix(golden, tmp_path):
    directory, _, _ = golden("llama")
    with pytest.raises(so.InputError, match="export=prefix: not converted; accepted: a model conv"):
        export_prefix(load_checkpoint(directory), tmp_path / "prefix.safetensors")


def generates(model, said, ids):
    """The page's mask and a new cache give the tokens that come after the whole text."""
    new = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    whole = model.generate(ids, attention_mask=ids.new_ones(ids.shape), **new)[:, ids.shape[1] :]
    exec(SNIPPET.rpartition("logits = ")[0], said)  # a cache that no call has added to
    mask, cache = said["mask"], said["cache"]
    found = model.generate(said["ids"], attention_mask=mask, past_key_values=cache, **new)
    np.testing.assert_array_equal(found[:, said["ids"].shape[1] :], whole)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_the_reference_reads_the_prefix(case, dtype, tmp_path, monkeypatch):
    """By the lines of docs/convert.md; in bfloat16, in which rounding sends some tokens to other
    experts, most logits to two digits."""
    torch = pytest.importorskip("torch", reason="needs requirements-reference.txt")
    transformers = pytest.importorskip("transformers", reason="needs requirements-reference.txt")
    reference.make(case, tmp_path)
    ids = reference.tokens(reference.CASES[case][2])[:1]
    ours = converted(tmp_path, ids)
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    export_prefix(ours, Path("prefix.safetensors"))
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path, dtype=getattr(torch, dtype)).eval()
    said = {"model": model, "ids": torch.tensor(ids[:, COUNT:], dtype=torch.long)}
    with torch.no_grad():
        exec(SNIPPET, said)
        theirs = said["logits"].float().numpy()
        whole = model(torch.tensor(ids, dtype=torch.long)).logits.float().numpy()[:, COUNT:]
        if dtype == "float32":
            generates(model, said, torch.tensor(ids, dtype=torch.long))
    for found in (whole, so.apply(ours, ids[:, COUNT:])[0]):
        off = np.abs(theirs - found)
        assert off.max() < 1e-3 if dtype == "float32" else np.median(off) < 0.03
