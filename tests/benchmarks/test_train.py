"""What is timed side by side computes the same thing, and the check of it can fail."""

import jax
import numpy as np
import pytest

from sysout_jax.errors import InputError
from sysout_jax.model.decoder import init

torch = pytest.importorskip("torch")  # requirements-reference.txt

from benchmarks import torch_decoder, train  # noqa: E402

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


def test_the_peer_computes_the_same_loss_and_gradients(compared):
    c, params, batch = compared
    peer = torch_decoder.filled(c, params)
    theirs = torch.from_numpy(batch.astype(np.int64))
    assert train.apart(c, params, peer, jax.numpy.asarray(batch), theirs) < 1e-5
    with torch.no_grad():
        peer.get_parameter("blocks.1.mlp.down.weight")[0, 0] += 0.1
    assert train.apart(c, params, peer, jax.numpy.asarray(batch), theirs) > train.EQUAL


def test_every_parameter_has_its_peer(compared):
    c, params, _ = compared
    renamed = torch_decoder.renamed(c, params)
    peer = dict(torch_decoder.Decoder(c).named_parameters())
    assert {name: value.shape for name, value in renamed.items()} == {
        name: tuple(value.shape) for name, value in peer.items()
    }


def test_the_peer_learns(compared):
    c, params, batch = compared
    step = torch_decoder.make_step(torch_decoder.filled(c, params), train.OptimizerConfig(lr=0.01))
    losses = [float(step(torch.from_numpy(batch.astype(np.int64)))) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sizes": ("2b",)}, "--sizes=2b"),
        ({"styles": ()}, "--styles="),
        ({"rounds": 1}, "--rounds=1"),
    ],
    ids=str,
)
def test_bad_flags_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        train.Config(**changes)
