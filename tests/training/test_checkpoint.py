"""Models on disk: every bit comes back, nothing half-written stays, every fault gets one line."""

import dataclasses
import gc
import hashlib
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.data import load_tokenizer
from sysout_jax.data.tokenizer import ByteTokenizer
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.training import checkpoint
from sysout_jax.training.checkpoint import load, save
from tests.refusing import refusal
from tests.training.test_states import same_bits

CONFIG = ModelConfig(
    vocab=258, context=7, layers=2, width=13, heads=4, kv_heads=2, head_dim=6, mlp_width=19,
    variant="attention_bias", bias=True, norm_eps=1e-6,
)  # fmt: skip
SEEDS = (7, 0, 3)
# A failed read leaves orbax's other reads as coroutines that nobody awaits.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
BYTES = load_tokenizer("bytes")


@pytest.fixture(autouse=True)
def _collected():
    """What a failed read left behind is collected here, not in another module's test."""
    yield
    gc.collect()


def noisy(config=CONFIG, seeds=3):
    """Random bits, of several seeds: NaNs, infinities and denormals must come back too."""
    rng = np.random.default_rng(0)
    tree = jax.eval_shape(partial(init, config), jax.random.key(0))

    def draw(leaf):
        bits = rng.integers(0, 2**32, (seeds, *leaf.shape), dtype=np.uint32)
        return jnp.asarray(bits.view(np.float32))

    return jax.tree.map(draw, tree)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("a run") / "models" / "of softmax"
    save(path, CONFIG, noisy(), SEEDS, BYTES)
    return path


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "models" / "of softmax")


refused = partial(refusal, load)


# ------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("seed", [None, *SEEDS])
def test_every_bit_comes_back(written, seed):
    model = load(written, seed)
    at = 0 if seed is None else SEEDS.index(seed)
    same_bits(dict(model.params), jax.tree.map(lambda x: x[at], noisy()))
    assert model.config == CONFIG
    assert model.tokenizer == BYTES


def test_what_is_on_disk(written):
    assert {path.name for path in written.iterdir()} == {"config.json", "params", "tokenizer.json"}
    record = json.loads((written / "config.json").read_text())
    digests = record.pop("sha256")
    assert record == {
        "format": 1,
        "seeds": [7, 0, 3],
        "model": json.loads(json.dumps(dataclasses.asdict(CONFIG))),
    }
    files = [path for path in (written / "params").rglob("*") if path.is_file()]
    assert digests == {
        str(path.relative_to(written / "params")): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    assert [path.name for path in written.parent.iterdir()] == ["of softmax"]


def test_without_a_tokenizer_and_scanned(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, layers=3).with_execution(scan_layers=True)
    monkeypatch.chdir(tmp_path)
    save("here", config, noisy(config, 1), [5])
    model = so.load("here", seed=5)
    assert model.tokenizer is None
    assert model.config == config
    same_bits(dict(model.params), jax.tree.map(lambda x: x[0], noisy(config, 1)))


def test_a_trained_tokenizer_comes_back(tmp_path):
    words = load_tokenizer("bpe:300", lambda: [f"line {n} of lines" for n in range(300)])
    config = ModelConfig(vocab=300, context=2, layers=1, width=2, heads=1, mlp_width=2)
    save(tmp_path / "model", config, noisy(config, 1), [0], words)
    back = load(tmp_path / "model").tokenizer
    assert back.fingerprint == words.fingerprint
    assert back.encode("a line").tolist() == words.encode("a line").tolist()


# ------------------------------------------------------------------------- half-written


class Unsaved(ByteTokenizer):
    """A tokenizer for which the disk is full."""

    def save(self, path):
        raise OSError(28, "No space left on device", str(path))


def test_a_tokenizer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "model", CONFIG, noisy(), SEEDS, Unsaved())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_does_not_disturb(tmp_path):
    (tmp_path / ".model.partial" / "params").mkdir(parents=True)
    (tmp_path / ".model.partial" / "tokenizer.json").write_text("half")
    save(tmp_path / "model", CONFIG, noisy(), SEEDS)
    assert load(tmp_path / "model").tokenizer is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.partial", "model"]


def test_a_config_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "model", CONFIG, noisy(), SEEDS, BYTES)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_exists_is_kept(copy):
    with pytest.raises(OSError, match="of softmax"):
        save(copy, CONFIG, jax.tree.map(lambda x: x[:1], noisy()), [1])
    same_bits(dict(load(copy, 7).params), jax.tree.map(lambda x: x[0], noisy()))


# ------------------------------------------------------------------------- faults


def test_an_unknown_seed(written):
    assert refused(written, seed=1) == f"seed=1: not in {written}; accepted: 7, 0, 3"


def test_not_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nosuch", "file"):
        message = refused(tmp_path / name)
        assert message.startswith(f"{tmp_path / name / 'config.json'}: ")
        assert "accepted: a directory that a training run wrote" in message


def test_no_config(copy):
    (copy / "config.json").unlink()
    assert "config.json: No such file or directory; accepted: a directory" in refused(copy)


def edited(record, **changes):
    return json.dumps(record | changes)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda r: json.dumps(r)[:40], "config.json: not JSON ("),
        (lambda r: "", "config.json: not JSON ("),
        (lambda r: "[1]", "config.json: a JSON list; accepted"),
        (lambda r: "\x00\x01", "config.json: not JSON ("),
        (lambda r: edited(r, format=2), "config.json: format 2; accepted: 1"),
        (
            lambda r: json.dumps({k: v for k, v in r.items() if k != "format"}),
            "config.json: not a model's config; accepted",
        ),
        (
            lambda r: json.dumps({k: v for k, v in r.items() if k != "model"}),
            "config.json: not a model's config; accepted",
        ),
        (
            lambda r: edited(r, model=r["model"] | {"depth": 3, "colour": 1}),
            "config.json: unknown fields colour, depth; accepted",
        ),
        (
            lambda r: json.dumps({k: v for k, v in r.items() if k != "seeds"}),
            "config.json: not a model's config; accepted",
        ),
        (lambda r: edited(r, seeds="none"), "config.json: not a model's config; accepted"),
        (lambda r: edited(r, seeds=[]), "config.json: not a model's config; accepted"),
        (
            lambda r: edited(r, model=r["model"] | {"width": "wide"}),
            "config.json: not a model's config; accepted",
        ),
    ],
    ids=[
        "cut short", "empty", "a list", "binary", "format", "no format", "no model",
        "unknown field", "no seeds", "seeds of letters", "seeds of none", "width of letters",
    ],
)  # fmt: skip
def test_a_config_that_is_none(copy, change, wanted):
    file = copy / "config.json"
    file.write_text(change(json.loads(file.read_text())))
    assert wanted in refused(copy)


def test_a_config_out_of_range(copy):
    file = copy / "config.json"
    record = json.loads(file.read_text())
    file.write_text(edited(record, model=record["model"] | {"variant": "softer"}))
    assert "'softer': unknown; accepted: " in refused(copy)


def test_a_config_of_another_model(copy):
    """Parameters are never padded or cut to the config's shapes."""
    file = copy / "config.json"
    record = json.loads(file.read_text())
    for model in ({"mlp_width": 23}, {"layers": 3}, {"bias": False}):
        file.write_text(edited(record, model=record["model"] | model))
        assert "params: cannot be read (" in refused(copy)


def test_no_parameters(copy):
    shutil.rmtree(copy / "params")
    assert "params: cannot be read (" in refused(copy)


def test_parameters_cut_short_flipped_or_missing(copy):
    """Whichever of the files it is, and wherever it was damaged."""
    for file in sorted(path for path in (copy / "params").rglob("*") if path.is_file()):
        whole = file.read_bytes()
        flipped = bytes([whole[0] ^ 1]) + whole[1:] if whole else b"0"
        for damaged in {whole[: len(whole) // 2], whole[:-1], flipped} - {whole}:
            file.write_bytes(damaged)
            assert f"params: cannot be read ({file.relative_to(copy / 'params')} " in refused(copy)
        file.unlink()
        assert "is missing or not as it was written" in refused(copy)
        file.write_bytes(whole)
    load(copy)


def test_a_corrupt_tokenizer(copy):
    file = copy / "tokenizer.json"
    file.write_text(file.read_text()[:10])
    assert "tokenizer.json" in refused(copy)


# ------------------------------------------------------------------------- the models of a run


def test_models_and_checkpoints_of_a_run(tmp_path):
    run = tmp_path / "run"
    assert checkpoint.models(run) == {}
    assert checkpoint.checkpoints(run, "a", 0) == []
    tiny = dataclasses.replace(CONFIG, layers=1)
    save(run / "models" / "a", tiny, noisy(tiny), SEEDS)
    save(run / "models" / "b", tiny, noisy(tiny, 1), (5,))
    for step in (1000, 0, 20):
        save(checkpoint.checkpoint_path(run, "a", step, 7), tiny, noisy(tiny, 2), (7, 0))
    save(checkpoint.checkpoint_path(run, "a", 0, 3), tiny, noisy(tiny, 1), (3,))
    assert checkpoint.models(run) == {"a": list(SEEDS), "b": [5]}
    assert [step for step, _ in checkpoint.checkpoints(run, "a", 0)] == [0, 20, 1000]
    assert [step for step, _ in checkpoint.checkpoints(run, "a", 3)] == [0]
    assert checkpoint.checkpoints(run, "b", 5) == []
    for _, path in checkpoint.checkpoints(run, "a", 0):
        assert load(path, 0).config == tiny


def test_seeds_that_nobody_asked_for_stay_off_the_devices(written, monkeypatch):
    """And all do, where a run puts the parameters in places of its own."""
    put = []
    monkeypatch.setattr(
        checkpoint.jnp, "array", lambda x: put.append(x.nbytes) or jax.device_put(x)
    )
    whole = sum(x.nbytes for x in jax.tree.leaves(noisy()))
    load(written, 3)
    assert sum(put) * len(SEEDS) == whole
    put.clear()
    held = load(written, 3, on_host=True)
    assert not put
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(dict(held.params)))
    same_bits(dict(held.params), dict(load(written, 3).params))
