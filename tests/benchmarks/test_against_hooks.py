"""What two benchmarks share: a difference is refused, and passes are in turn."""

import pytest

from benchmarks import against_hooks

NUMBERS = {"top": [[2.0, 1.0]], "shares": [{"precision": None}, {"precision": 0.5}], "layer": 3}


@pytest.mark.parametrize(
    ("theirs", "where"),
    [
        ({**NUMBERS, "top": [[2.0, 1.01]]}, "top: 5.0e-03"),
        ({**NUMBERS, "shares": [{"precision": None}, {"precision": 0.6}]}, "shares 1 precision"),
        (
            {**NUMBERS, "shares": [{"precision": 0.5}, {"precision": 0.5}]},
            "shares 0 precision: inf",
        ),
        ({**NUMBERS, "layer": 4}, "layer: 2.5e-01"),
        ({**NUMBERS, "top": [[2.0]]}, "top: inf"),
    ],
    ids=str,
)
def test_a_difference_is_refused(theirs, where):
    assert against_hooks.check(NUMBERS, NUMBERS) == 0.0
    with pytest.raises(against_hooks.Differs, match=where):
        against_hooks.check(NUMBERS, theirs)


def passed():
    return {"seconds": [1.0], "whole": 1.0, "loaded": 2**20, "peak": 2**21}


def test_passes_are_in_turn():
    order = []

    def call(name):
        return lambda: order.append(name) or passed()

    passes = against_hooks.in_turn({"a": call("a"), "b": call("b")}, 3, order.append)
    assert [name for name in order if len(name) == 1] == list("abbaab")
    assert {name: len(each) for name, each in passes.items()} == {"a": 3, "b": 3}
