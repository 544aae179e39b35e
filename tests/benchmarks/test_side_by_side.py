"""What is timed side by side computes the same thing, and the check of it can fail."""

import jax
import numpy as np
import pytest

from sysout_jax.errors import InputError
from sysout_jax.model.decoder import init

torch = pytest.importorskip("torch")  # requirements-reference.txt
torch.set_num_threads(1)  # more of them would wait for each other

from benchmarks import side_by_side, torch_decoder, train  # noqa: E402
from benchmarks.against_hooks import Differs  # noqa: E402

TINY = train.Size(
    layers=2, width=12, heads=3, mlp_width=17, vocab=29, seq_len=7, batch_size=5, steps=3
)


@pytest.fixture(scope="module", params=train.STYLES)
def compared(request):
    """(config, parameters, batch) of a style; every parameter away from its initial value."""
    c = TINY.architecture(request.param)
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * noise.standard_normal(x.shape).astype(np.float32),
        init(c, jax.random.key(0)),
    )
    return c, params, noise.integers(0, c.vocab, (TINY.batch_size, TINY.seq_len + 1), np.int32)


@pytest.mark.parametrize(("dtype", "least"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_the_peer_computes_the_same_loss_and_gradients(compared, dtype, least):
    c, params, batch = compared
    c = c.with_execution(dtype=dtype)
    peer = torch_decoder.filled(c, params)
    tokens = torch_decoder.on_device(batch)

    def found():
        expected = torch_decoder.gradients(peer, tokens, dtype)
        return {"ours": side_by_side.relative_error(c, params, expected, jax.numpy.asarray(batch))}

    same = found()
    assert max(same["ours"].values()) < least
    side_by_side.check(same, dtype)
    with torch.no_grad():
        peer.get_parameter("blocks.1.mlp.down.weight")[0, 0] += 0.5
    with pytest.raises(Differs, match="ours: gradients are"):
        side_by_side.check({"ours": {"gradients": found()["ours"]["gradients"]}}, dtype)


def test_what_is_no_number_is_refused():
    with pytest.raises(Differs, match="eager: steps are nan"):
        side_by_side.check({"eager": {"steps": float("nan")}}, "bfloat16")


def test_the_peer_is_in_bfloat16_where_asked(compared):
    c, params, batch = compared
    peer, tokens = torch_decoder.filled(c, params), torch_decoder.on_device(batch)
    seen = []
    peer.head.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    for dtype in ("float32", "bfloat16"):
        _, grads = torch_decoder.gradients(peer, tokens, dtype)
        assert {grad.dtype for grad in grads.values()} == {np.dtype(np.float32)}
    assert seen == [torch.float32, torch.bfloat16]


def test_every_parameter_has_its_peer(compared):
    c, params, _ = compared
    renamed = torch_decoder.renamed(c, params)
    peer = dict(torch_decoder.Decoder(c).named_parameters())
    assert {name: value.shape for name, value in renamed.items()} == {
        name: tuple(value.shape) for name, value in peer.items()
    }


def test_the_peer_learns(compared):
    c, params, batch = compared
    step = torch_decoder.make_step(
        torch_decoder.filled(c, params), side_by_side.OptimizerConfig(lr=0.01)
    )
    losses = [float(step(torch.from_numpy(batch.astype(np.int64)))) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


def test_the_peers_parts_are_its_batch(compared):
    c, params, batch = compared
    tokens = torch.from_numpy(batch.astype(np.int64))

    def losses(parts):
        step = torch_decoder.make_step(
            torch_decoder.filled(c, params), side_by_side.OptimizerConfig(lr=0.01), parts=parts
        )
        return [float(step(tokens)) for _ in range(5)]

    np.testing.assert_allclose(losses(len(batch)), losses(1), rtol=1e-5)


def test_the_peer_is_where_jax_is(monkeypatch):
    assert torch_decoder.device() == "cpu"
    monkeypatch.setattr(torch_decoder.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch_decoder.torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"PyTorch .* sees no GPU, but JAX does; accepted:"):
        torch_decoder.device()
    monkeypatch.setattr(torch_decoder.torch.cuda, "is_available", lambda: True)
    assert torch_decoder.device() == "cuda"


@pytest.fixture(scope="module")
def forms():
    c = TINY.architecture("gpt2-tiny", "bfloat16")
    return {"ours": c.with_execution(remat="block"), "ours, dense": c}


def test_forms_and_peers_are_timed_in_turn(forms, monkeypatch):
    def broken(model):
        def fails(tokens):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nmore")

        fails.parameters = model.parameters
        return fails

    monkeypatch.setattr(torch, "compile", broken)
    said = []
    found = side_by_side.timed(forms, 5, 3, 2, True, said.append)
    assert found["left_out"] == {"compile": "no compiler"}
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == {
        "eager": 2, "ours": 2, "ours, dense": 2
    }  # fmt: skip
    assert set(found["ratio"]) == {"eager", "ours, dense"}
    assert found["differences"]["ours, dense"].keys() == {"loss", "gradients", "steps"}
    assert any("compile: left out" in text for text in said)


def test_a_form_of_ours_that_is_wrong_is_refused(forms):
    wrong = {**forms, "ours, dense": side_by_side.replace(forms["ours"], mlp="relu")}
    with pytest.raises(Differs, match="ours, dense: gradients are"):
        side_by_side.timed(wrong, 5, 3, 2, False, lambda text: None)
