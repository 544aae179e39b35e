"""Three sentences of an analysis, and figures whose panels are stacked for a narrow screen."""

import copy

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from sysout_jax.plots.style import save_stacked
from sysout_jax.report.summary import summary
from sysout_jax.results import read_record
from tests.pages import ROOT


@pytest.fixture
def smollm2():
    return copy.deepcopy(read_record(ROOT / "results/analyze/smollm2-135m-stdlib"))


def test_what_there_is_what_it_does_and_what_is_not(smollm2):
    """Massive at token 0, channel 507, 23,147 high, as the suite's positive control."""
    first, second, third = summary(smollm2)
    assert first == "massive activations: layers 11 to 27, token 0, channel 507, |h| 23,147"
    sink = smollm2["parts"]["interventions"]["sink"]
    assert second.startswith(f"{sink['heads']:.0%} of heads from layer 12 on are sinks")
    assert second.endswith("loss +0.92 nats")
    ratios = np.array(smollm2["parts"]["existence"]["weights"]["ratio"])
    assert f"the largest is {ratios.max():.3g} means" in third


def test_several_tokens_and_channels_are_counted():
    record = read_record(ROOT / "results/analyze/gemma3-270m-stdlib")
    trace = np.abs(record["parts"]["lifecycle"]["trace"]["block_out"])
    said = f"massive activations: layers 0 to 14, 9 tokens, 2 channels, |h| {trace[:15].max():,.0f}"
    assert summary(record)[0] == said


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([12], "layer 12,"), ([11, 12, 14], "layers 11 to 12, 14,"),
        ([11, 13, 15, 17, 18], "5 layers of 11 to 18,"),
    ],
)  # fmt: skip
def test_layers_and_size_are_those_of_massive_activations(smollm2, layers, told):
    parts = smollm2["parts"]
    (sun,) = (each for each in parts["existence"]["found"] if each["detector"] == "sun")
    sun["layers"] = layers
    trace = parts["lifecycle"]["trace"]["block_out"]
    trace[2] = -1e6  # where nothing is massive
    said = summary(smollm2)[0]
    assert said.startswith(f"massive activations: {told}")
    assert said.endswith(f"|h| {max(abs(trace[layer]) for layer in layers):,.0f}")
    sun["features"] = [3]  # another channel than the one that was followed
    assert "|h|" not in summary(smollm2)[0]


def test_the_sentences_follow_the_record(smollm2):
    parts = smollm2["parts"]
    (sun,) = (each for each in parts["existence"]["found"] if each["detector"] == "sun")
    sun.update(layers=[], largest=0.25)
    parts["interventions"]["sink"].update(heads=0.0, most=0.125)
    smollm2["asked"] = [*parts, "roles"]
    assert summary(smollm2) == (
        "no massive activation: the largest is 0.25 of the bound",
        "no sink: a head gives the first token at most 0.12",
        "not finished: roles",
    )


@pytest.mark.parametrize("kept", ["existence", "positions", "relations", "lifecycle"])
def test_any_part_alone_has_sentences(smollm2, kept):
    smollm2["parts"] = {kept: smollm2["parts"][kept]}
    smollm2["asked"] = [kept]
    assert any(summary(smollm2))


def drawn(path, columns, **kwargs):
    """The picture of two panels, and that of them stacked."""
    figure = Figure(figsize=(4 * columns, 2), dpi=50, layout="constrained")
    for at, axes in enumerate(figure.subplots(1, columns, squeeze=False, **kwargs).ravel()):
        axes.set(title=f"panel {at}", facecolor=("red", "blue")[at])
    made = save_stacked(figure, path / "narrow" / "two.png")
    return None if made is None else matplotlib.image.imread(made)


def test_panels_side_by_side_are_stacked(tmp_path):
    picture = drawn(tmp_path, 2)
    height, width = picture.shape[:2]
    assert width < 4 * 50  # of two columns one
    assert height > 1.6 * 2 * 50
    red = np.where((picture[..., :3] == (1, 0, 0)).all(axis=-1))[0]
    blue = np.where((picture[..., :3] == (0, 0, 1)).all(axis=-1))[0]
    assert red.max() < blue.min()
    assert len(red) == pytest.approx(len(blue), rel=0.1)  # none is cut off


@pytest.mark.parametrize("kwargs", [{"columns": 1}, {"columns": 2, "sharey": True}])
def test_what_cannot_be_stacked_is_left_as_it_is(tmp_path, kwargs):
    assert drawn(tmp_path, **kwargs) is None
    assert not (tmp_path / "narrow").exists()
