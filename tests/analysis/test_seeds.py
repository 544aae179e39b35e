"""Coordinates of planted outliers, and pairs of models that have them or not."""

from dataclasses import replace

import numpy as np
import pytest

from sysout_jax.analysis.locate.scan import scan
from sysout_jax.analysis.measure.seeds import LARGEST, across_seeds, coordinates
from sysout_jax.errors import InputError
from tests.analysis import planted as p

TOKENS = p.rows()[:, :-1]


def test_coordinates_are_where_outliers_are_planted():
    found = coordinates(scan(p.CONFIG, p.params(), TOKENS))
    flagged = {on: np.flatnonzero(found["flagged", on]).tolist() for _, on in found}
    assert flagged == {
        "tokens": np.flatnonzero(TOKENS == p.TRIGGER).tolist(),
        "channels": [p.CHANNEL],
        "neurons": [p.NEURON, p.REMOVER],
        "layers": [p.MADE, p.HEARD, p.REMOVED],
    }
    largest = {on: np.flatnonzero(found["largest", on]).tolist() for _, on in found}
    assert largest["layers"] == [p.MADE]
    assert p.CHANNEL in largest["channels"]
    assert len(largest["channels"]) == len(largest["neurons"]) == LARGEST
    assert set(largest["tokens"]) <= set(flagged["tokens"])
    assert len(largest["tokens"]) == p.B


def test_a_layer_of_zeros_is_not_the_largest():
    found = scan(p.CONFIG, p.params(), TOKENS)
    dead = found.block_out.mean.copy(), found.block_out.top.copy()
    for array in dead:
        array[0] = 0.0
    site = replace(found.block_out, mean=dead[0], top=dead[1])
    largest = coordinates(replace(found, block_out=site))["largest", "layers"]
    assert np.flatnonzero(largest).tolist() == [p.MADE]


def test_every_pair_of_seeds_is_compared():
    """Two models that are the same, and one without outliers: Jaccard 1, 0, 0."""
    models = ((3, p.params()), (5, p.params()), (8, p.untrained()))
    seen = []
    found = across_seeds(
        p.CONFIG, models, TOKENS, progress=lambda *done: seen.append(done), total=3
    )
    assert found.seeds == (3, 5, 8)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    rows = {(row.given, row.on): row for row in found.rows}
    for on in ("tokens", "channels", "neurons", "layers"):
        assert rows["flagged", on].jaccard.mean == pytest.approx(1 / 3)
        assert rows["flagged", on].sequences == 1  # of the pairs, one in which both have any
    assert rows["flagged", "channels"].items == p.CONFIG.width
    assert rows["flagged", "tokens"].p_value < 0.01
    assert 1 / 3 <= rows["largest", "channels"].jaccard.mean < 1


def test_one_seed_has_nothing_to_be_compared_with():
    with pytest.raises(InputError, match="seeds: 1 of them; accepted: a run with at least 2"):
        across_seeds(p.CONFIG, [(3, p.params())], TOKENS)
