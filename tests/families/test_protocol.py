"""Perplexity by the published protocol is what the usual script gives for the same model."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.inputs.evaluation_text import WINDOW, windows
from sysout_jax.analysis.compress.compressed import Compressed, losses
from sysout_jax.families.checkpoint import load_checkpoint
from tests.families import reference


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "gpt_neox"])
def test_it_is_that_of_the_usual_script(case, tmp_path):
    """Frantar et al.'s: one stream of ids, the model's own loss of a window, times its tokens."""
    torch = pytest.importorskip("torch", reason="needs requirements-reference.txt")
    transformers = pytest.importorskip("transformers", reason="needs requirements-reference.txt")
    reference.make(case, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_checkpoint(tmp_path)
    stream = np.random.default_rng(0).integers(3, ours.config.vocab, 3 * WINDOW + 17)
    (tmp_path / "split.txt").write_text("any text")
    tokenizer = SimpleNamespace(encode=lambda text: stream, adds_bos=False, bos=None)
    rows = windows(str(tmp_path / "split.txt"), tokenizer, ours.config.longest)
    size = rows.shape[1]
    found = float(np.exp(losses(ours.config, Compressed(ours.params), rows, 1).mean()))
    count, total = len(stream) // size, 0.0
    with torch.no_grad():
        for n in range(count):
            window = torch.tensor(stream[None, n * size : (n + 1) * size])
            total += float(theirs(window, labels=window).loss) * size
    assert found == pytest.approx(np.exp(total / (count * size)), rel=1e-3)
