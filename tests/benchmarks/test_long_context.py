"""The peer finds what we find at the same length; lengths are found; bad flags are refused."""

import io
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from benchmarks import against_hooks, children, long_context
from sysout_jax.analysis.locate import scan
from sysout_jax.errors import InputError

MIB = 2**20


def test_the_peer_finds_the_same(tmp_path, monkeypatch):
    """In blocks of queries, the last of them not full."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from benchmarks import hooks

    monkeypatch.setattr(scan, "MAPS_AT_ONCE_CPU", 64)
    monkeypatch.setattr(scan, "QUERY_BLOCK_CPU", 24)
    c = against_hooks.llama(layers=2, width=16, heads=2, vocab=29, context=128)
    place = str(against_hooks.write_model(c, tmp_path))
    rows = str(against_hooks.write_rows(tmp_path, c.vocab, 1, 127))
    ours = long_context.prepare(place, rows)()
    limits = asdict(scan.Thresholds())
    theirs = hooks.statistics(place, rows, limits, "cpu", long_context.SHARES)()
    torch.set_num_threads(1)
    assert ours.keys() == theirs.keys()
    assert against_hooks.check(ours, theirs) < 1e-5
    assert np.shape(ours["received"]) == (2, 2, long_context.SHARES)
    np.testing.assert_allclose(np.sum(ours["received"], axis=-1), 1.0, rtol=1e-5)
    theirs["received"][1][1][3] *= 1.1
    with pytest.raises(against_hooks.Differs, match="received"):
        against_hooks.check(ours, theirs)


def done(seconds):
    return {"seconds": [seconds], "whole": seconds + 2.0, "loaded": MIB, "peak": 2 * MIB}


def allowed(most, asked):
    def measure(tokens):
        asked.append(tokens)
        if tokens > most:
            raise children.NoMemory("no memory")
        return done(1.0)

    return measure


@pytest.mark.parametrize(
    ("most", "asked", "refused"),
    [
        (5000, [2048, 4096, 8192, 6144, 5120, 4608], 5120),
        (7200, [2048, 4096, 8192, 6144, 7168, 7680], 7680),
        (1500, [2048, 1536], 1536),
    ],
)
def test_the_longest_is_found_by_halving(most, asked, refused):
    seen = []
    found = long_context.longest(allowed(most, seen), 1024, 512, lambda text: None)
    assert seen == asked
    assert found["refused"] == refused
    assert set(found["points"]) == {tokens for tokens in asked if tokens <= most}


def test_lengths_double_until_time_or_memory_ends(monkeypatch):
    clock = iter([0.0, 12.0, 36.0, 60.0])
    monkeypatch.setattr(long_context.time, "perf_counter", lambda: next(clock))
    seen = []

    def timed(tokens):
        seen.append(tokens)
        return done(10.0)  # the next is expected to take 46 s

    found = long_context.as_time_allows(timed, 2048, 60.0, lambda text: None)
    assert seen == [2048, 4096]
    assert found["refused"] == 8192
    assert "minutes" in found["why"]
    monkeypatch.setattr(long_context.time, "perf_counter", lambda: 0.0)
    found = long_context.as_time_allows(allowed(5000, []), 2048, 60.0, lambda text: None)
    assert (found["refused"], found["why"]) == (8192, "no memory")
    assert set(found["points"]) == {2048, 4096}


def test_too_little_memory_to_compare_is_one_line():
    def refused():
        raise children.NoMemory("no memory")

    with pytest.raises(InputError, match=r"gib=8: too little for shared=4096; accepted: more"):
        long_context.compared(long_context.Config(), {"hooks": refused}, print)


def test_only_a_cpus_memory_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(long_context.jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match=r"computes on a gpu.*accepted: JAX_PLATFORMS=cpu"):
        long_context.run(long_context.Config(workdir=str(tmp_path)), Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())
