"""What tells the logit of a sink's factor: the regressions against NumPy's least squares."""

from dataclasses import replace

import numpy as np
import pytest

from sysout_jax.analysis.measure.factor_features import PENALTIES, Queries, errors, explained, ridge

TEXTS, LENGTH, WIDTH, HEADS, DIM = 12, 40, 6, 2, 3
POSITIONS = np.arange(1, LENGTH + 1)


def queries(seed=0, noise=0.0, **parts):
    """Queries whose logit S is a sum of the parts, plus noise: evidence - sink."""
    rng = np.random.default_rng(seed)
    shape = TEXTS, LENGTH
    made = Queries(
        rng.integers(0, 9, shape), POSITIONS, rng.normal(size=(*shape, WIDTH)),
        rng.normal(size=(*shape, HEADS, DIM)), rng.normal(size=(*shape, HEADS)),
        rng.normal(size=(*shape, HEADS)),
    )  # fmt: skip
    target = noise * rng.normal(size=(*shape, HEADS))
    of = {
        "ids": np.sin(made.ids)[..., None],
        "positions": np.log1p(POSITIONS)[None, :, None] ** 2,
        "x": made.x[..., [0]] - 2 * made.x[..., [1]],
        "q": made.query[..., 0] * made.query[..., 2] + made.query[..., 1] ** 2,
        "sink": 0.0,
    }
    for name, size in parts.items():
        target = target + size * of[name]
    return replace(made, evidence=target + made.sink)


def r_squared(fit, held_out):
    left, spread = errors(fit, held_out)
    return {name: explained(of, spread) for name, of in left.items()}


def test_ridge_is_least_squares_of_augmented_rows():
    rng = np.random.default_rng(3)
    f, y = 5 + rng.normal(size=(200, 4)) * [1, 10, 0.1, 3], rng.normal(size=(200, 2))
    choosing = np.arange(200) >= 150
    z = (f - f.mean(axis=0)) / f.std(axis=0)
    centred = y - y.mean(axis=0)

    def solved(rows, penalty):
        more = np.sqrt(penalty * rows.sum()) * np.eye(4)
        return np.linalg.lstsq(
            np.vstack([z[rows], more]), np.vstack([centred[rows], np.zeros((4, 2))])
        )[0]

    for target in range(2):
        left = [
            np.mean((centred[choosing] - z[choosing] @ solved(~choosing, penalty))[:, target] ** 2)
            for penalty in PENALTIES
        ]
        best = PENALTIES[int(np.argmin(left))]
        expected = (z @ solved(np.full(200, True), best) + y.mean(axis=0))[:, target]
        kernel, bias = ridge(f, y, 50)
        np.testing.assert_allclose((f @ kernel + bias)[:, target], expected, atol=1e-9)


def test_a_feature_that_does_not_vary_is_no_trouble():
    f = np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 5.0], [1.0, 8.0]])
    kernel, bias = ridge(f, f[:, 1:] * 2, 1)
    np.testing.assert_allclose(f @ kernel + bias, f[:, 1:] * 2, atol=2e-3)


@pytest.mark.parametrize(
    ("part", "tells"),
    [
        ("ids", {"token id"}),
        ("positions", {"position", "x and position"}),
        ("x", {"x", "x and position"}),
        ("q", {"quadratic in q"}),
    ],
)
def test_what_makes_the_factor_tells_it(part, tells):
    found = r_squared(queries(0, **{part: 3.0}), queries(1, **{part: 3.0}))
    for name in tells:
        assert found[name].min() > 0.95, name
    for name in set(found) - tells - {"the sink's logit", "LSE_R"}:
        assert found[name].max() < 0.3, name


def test_the_evidence_tells_it_where_the_sinks_logit_is_constant():
    fit, held_out = (replace(q, sink=np.full_like(q.sink, 2.0)) for q in map(queries, (0, 1)))
    fit, held_out = (
        replace(q, evidence=np.random.default_rng(n).normal(size=q.sink.shape))
        for n, q in enumerate((fit, held_out))
    )
    found = r_squared(fit, held_out)
    assert found["LSE_R"].min() > 0.999
    assert abs(found["the sink's logit"]).max() < 0.05


def test_products_are_of_the_directions_in_which_queries_vary_most():
    """Heads have more channels than products are taken of: of the others none is a feature."""
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40)))[0]

    def made(seed, one, other):
        shape = TEXTS, 160
        q = np.random.default_rng(seed).normal(size=(*shape, 1, 40)) * np.geomspace(4.0, 0.5, 40)
        return Queries(
            np.zeros(shape, int), np.arange(1, 161), np.zeros((*shape, 1)), q @ turn.T,
            np.zeros((*shape, 1)), q[..., one] * q[..., other],
        )  # fmt: skip

    for one, other, told in ((0, 1, True), (-1, -2, False)):
        found = r_squared(made(0, one, other), made(1, one, other))["quadratic in q"]
        assert found.min() > 0.95 if told else found.max() < 0.3


def test_errors_are_those_of_a_loop():
    """The token id's, in full: means of the texts to fit on, drawn to that of all."""
    fit, held_out = queries(0, ids=1.0, noise=0.5), queries(1, ids=1.0, noise=0.5)
    held_out.ids[0, :3] = 12  # which no text to fit on has
    left, spread = errors(fit, held_out)
    target = (held_out.evidence - held_out.sink).astype(np.float64)
    known = fit.evidence - fit.sink
    overall = known.mean(axis=(0, 1))
    for text in range(TEXTS):
        for head in range(HEADS):
            wrong, off = 0.0, 0.0
            for t in range(LENGTH):
                same = known[fit.ids == held_out.ids[text, t], head]
                told = overall[head] + np.sum(same - overall[head]) / (len(same) + 1)
                wrong += (target[text, t, head] - told) ** 2
                off += (target[text, t, head] - target[..., head].mean()) ** 2
            assert left["token id"][text, head] == pytest.approx(wrong)
            assert spread[text, head] == pytest.approx(off)


def test_noise_is_not_explained():
    found = r_squared(queries(0, noise=1.0), queries(1, noise=1.0))
    for name in set(found) - {"the sink's logit", "LSE_R"}:
        assert abs(found[name]).max() < 0.15, name


def test_explained_of_what_does_not_vary():
    np.testing.assert_array_equal(
        explained(np.array([[1.0, 0.0]]), np.array([[4.0, 0.0]])), [0.75, 0]
    )
