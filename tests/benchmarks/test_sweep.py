"""The ways of a sweep agree with patches by hand, and are told apart where they do not."""

import numpy as np
import pytest
from rich.console import Console

import sysout_jax as so
from benchmarks import sweep


def test_every_patch_is_the_donors_state_at_its_place(golden, tmp_path, monkeypatch):
    directory, _, _ = golden("llama")
    model, seen = so.load(directory), {}

    def keep(name, way):
        def kept(*given):
            seen[name, given[4:]] = given, way(*given)
            return seen[name, given[4:]][1]

        monkeypatch.setattr(sweep, name, kept)

    one_program = sweep.one_program
    keep("one_program", one_program)
    keep("a_program_for_each", sweep.a_program_for_each)
    monkeypatch.setattr(sweep, "timed", lambda call: (1.0, call()))
    config = sweep.Config(str(directory), 5, 3, 2, 2, 1, str(tmp_path))
    record = sweep.run(config, Console(quiet=True))
    assert [row["what"] for row in record["rows"]][2] == "5 patches, one program, 2 at a time"
    (_, corrupt, donor, places), _ = seen["a_program_for_each", ()]
    assert places.tolist() == [[0, 0], [1, 0]]
    one, batch = (seen["one_program", (size,)][1] for size in (1, 2))
    np.testing.assert_allclose(one, batch, rtol=0, atol=1e-5)
    plain = so.apply(model, corrupt)[0][0, -1]
    assert np.abs(one - np.asarray(plain)).max(axis=1)[0] > 1e-3  # layer 0 reaches the last token
    np.testing.assert_allclose(one[1], plain, rtol=0, atol=1e-5)  # of the last block, its own alone
    last = one_program(model, corrupt, donor, np.array([[1, 2]]), 1)[0]
    expected = _unembedded(model, np.asarray(donor[1, 2], np.float64))
    np.testing.assert_allclose(last, expected, rtol=0, atol=1e-4)


def _unembedded(model, state):
    scale = np.asarray(model.params["final_norm"]["scale"], np.float64)
    normed = state / np.sqrt(np.mean(state**2) + model.config.norm_eps) * scale
    return normed @ np.asarray(model.params["head"], np.float64)


def test_ways_that_differ_are_refused():
    logits = np.ones((2, 3))
    sweep.check(logits, logits + 1e-4)
    for other in (logits * 1.01, logits * np.nan):
        with pytest.raises(RuntimeError, match="of a logit apart"):
            sweep.check(other, logits)


def test_gains_are_within_rounds():
    found = sweep.rows({"each": [10.0, 40.0], "one": [1.0, 2.0], "batch": [0.5, 1.0]}, 100, 50)
    assert [row.found[0] for row in found] == [25.0, 1.5, 0.75, 15.0, 30.0]
    assert [row.met for row in found] == [None] * 4 + [True]
