"""The findings of a planted model as record, sentences, figures and page."""

import copy
import json
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax import plots
from sysout_jax.errors import InputError
from sysout_jax.model.decoder import forward, init
from sysout_jax.model.origin import Origin
from sysout_jax.plots import analysis, lifecycle
from sysout_jax.report import interactive
from sysout_jax.report.findings import OF_RUNS, PARTS, PROMPT_TOKENS, AnalysisInputs, header
from sysout_jax.report.page import page
from sysout_jax.report.tables import of_part
from sysout_jax.report.words import headline
from tests.analysis import first_visible as v
from tests.analysis import planted as p
from tests.refusing import refusal


def said(part):
    return "\n".join(headline(p.findings().record, part))


def test_of_several_kv_heads_the_heads_own_has_the_value():
    record = copy.deepcopy(p.findings().record)
    life = record["parts"]["lifecycle"]
    life["token"] = 50
    life["spread"] |= {"head": 2, "received": [0.1, 0.1, 0.25, 0.1], "value_ratio": [0.01, 0.75]}
    whole, *_, windowed = (
        next(
            line
            for line in headline(record | {"model": record["model"] | of}, "lifecycle")
            if line.startswith("spread")
        )
        for of in ({"window": None}, {"window": 30, "window_layers": None})
    )
    assert f"{0.25 * 101 / 51:.2f} of the attention of queries that see it" in whole
    assert f"{0.25 * 101 / 30:.2f} of the attention of queries that see it" in windowed
    assert whole.endswith("value there has 0.75 of the others' norm")
    title = lifecycle.spread(record, life).get_suptitle()
    assert title.endswith(f"{0.25 * 101 / 51:.2f} of the attention of queries that see it")


def test_a_null_of_few_says_how_many_it_can_flag():
    """Of n = 101 scores one alone is flagged where 1 / (1 + M) <= 0.01 / n."""
    record = copy.deepcopy(p.findings().record)
    part = record["parts"]["measures"]
    assert part["length"] == 101
    for size, told in ((10100, ""), (5000, "; fewer than 3 in a sequence cannot be")):
        for row in part["calibrated"]:
            row["limit"] = float(np.log10(size))
        lines = [
            line
            for line in headline(record, "measures")
            if "untrained models" in line and "beside" in line
        ]
        assert len(lines) == 3
        assert all(line.endswith(told) and ("fewer" in line) == bool(told) for line in lines)


def test_the_record_is_json_and_holds_every_part():
    record = p.findings().record
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert list(record["parts"]) == [name for name in PARTS if name not in OF_RUNS]
    assert p.findings().dynamics is None
    assert record["parts"]["lifecycle"]["channel"] == p.findings().lifecycle.channel == p.CHANNEL
    panel = record["parts"]["existence"]["panels"][0]
    assert len(panel["values"]) == p.T
    assert len(json.dumps(panel["values"][0])) < 12 * len(panel["values"][0])  # three digits


def test_sentences_say_where_things_are():
    existence = said("existence")
    assert "layers 1, 2, token 0 '0', 7 '0', channel 5" in existence
    assert "layers 1, 3, token 0 '0', 7 '0', neurons 17, 29" in existence
    assert "down[17, 5] of layer 1" in existence
    assert "in 6 of 6 sequences of text, 9 tokens: 67% initial (text: 1%), 33% other" in said(
        "positions"
    )
    assert "weights -> activations on channels: precision 1.00 (shuffled: 0.0" in said("relations")
    life = said("lifecycle")
    assert "emergence: layer 1 adds" in life
    assert "neuron 17 writes 100% of the MLP's part; the channel's form is rank one to 100%" in life
    assert "disappearance: layer 3 removes" in life
    assert "cosine of its write with the residual -1.00" in life
    assert "12% of heads are sinks" in said("roles")
    assert re.search(r"0% broadcast \(0.8 or more\); stable rank of outputs \d.* of other heads$",
                     said("roles"))  # fmt: skip
    assert (
        "super weight (Yu et al. 2024: down_in and mlp_out above 50): down[17, 5] of layer 1"
        in said("interventions")
    )
    spread = p.findings().lifecycle.spread
    raw = forward(p.CONFIG, p.params(), jnp.asarray(p.rows()[:1, :-1]), {"attn_weights": None})[1]
    given = np.asarray(raw["attn_weights"])[spread.layer, 0, spread.head]
    token = p.findings().lifecycle.token
    assert f"gives the token {given[token:, token].mean():.2f} of the attention of qu" in life
    measures = said("measures")
    assert "the first key is a sink of half of the heads up to threshold 0.05 (untr" in measures
    assert "top1@block_out 0.0" in measures
    assert (
        "massive activations per sequence (Sun), by its paper's threshold: 1.5 (untrained: 0)"
        in measures
    )
    assert re.search(r"over its channels: 1 flagged, in 1 of 1 \(.*\), most often 5\n", measures)
    assert re.search(
        r"an_attention, removed, rescaled by S: loss [+-]0\.000", said("interventions")
    )


def test_texts_are_told_apart():
    """Case U4: what is said of the prompt, and what of the text."""
    lines = said("existence").splitlines()
    assert sum(line.startswith("in the prompt, ") for line in lines) == 4
    assert "of the prompt, the largest activation relative to its layer's mean is" in said(
        "lifecycle"
    )
    record = copy.deepcopy(p.findings().record)
    part = record["parts"]["lifecycle"]
    part["trace"]["block_out"][0] = -3.0 * part["peak"]
    larger = headline(record, "lifecycle")[0]
    assert f"({3 * part['peak']:.3g} in layer 0, where the mean is larger too)" in larger


def test_a_sink_and_its_forms_in_words_and_tables():
    model = so.Model(v.CONFIG, v.params())
    found = so.analyze(
        model, v.rows(3)[0], v.rows(0), "interventions", calibration=v.rows(1, 6)
    )  # fmt: skip
    text = "\n".join(headline(found.record, "interventions"))
    assert "a sink of 100% of heads from layer 1 on; layer 0 writes its state" in text
    assert "over 6 other texts its key spreads by " in text
    removed, moved = (
        next(line for line in text.splitlines() if line.startswith(f"taken away {where}"))
        for where in ("from layer 1 on", "in every layer")
    )
    assert removed.endswith("it does not relocate")
    assert "most often of token 1" in moved
    assert moved.endswith("the sink relocates: the cost is not that of a model without one")
    rows = found.table("interventions-forms").rows
    assert len(rows) == 11
    assert rows[-1][0] == "taken away in every layer"
    assert rows[-1][-1] == "yes"
    tokens = found.table("interventions-tokens").rows
    assert [row[0] for row in tokens] == list(range(8))
    assert {"interventions", "interventions-forms"} == set(found.figures())


def test_a_model_without_a_sink_is_said_to_have_none():
    model = so.Model(p.CONFIG, p.untrained())
    found = so.analyze(model, p.rows()[0, :-1], p.rows(), "interventions")
    last = headline(found.record, "interventions")[-1]
    assert last.startswith("no sink at the first token: no head gives it more than 0.3")
    assert set(found.figures()) == {"interventions"}
    assert found.table("interventions-forms").rows == ()


def test_every_figure_is_drawn_from_the_record(tmp_path):
    figures = p.findings().figures()
    assert len(figures) == 15
    assert {"relations", "lifecycle-disappearance"} <= set(figures)
    marked = [t.get_text() for axes in figures["existence"].axes for t in axes.texts]
    assert "neuron 17, channel 5" in " ".join(marked) or "neuron 29" in " ".join(marked)
    with pytest.raises(InputError, match="accepted: of 'variants' or 'analysis'"):
        plots.draw({"experiment": "theory"}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_table_of_one_sequence_has_no_bounds():
    """And no interval is drawn; weights of several layers are not those from the sink on."""
    record = copy.deepcopy(p.findings().record)
    for effect in record["parts"]["interventions"]["effects"]:
        effect["change"] = [0.5, None, None]
        effect["layer"] = None
    for row in record["parts"]["relations"]["rows"]:
        for name in ("precision", "recall", "jaccard"):
            row[name] = [0.5, None, None]
    shown = of_part(record, "interventions").split("</table>")[0]
    headings, before, *rows = (
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in shown.split("<tr>")[1:]
    )
    assert len(rows) == len(record["parts"]["interventions"]["effects"])
    assert {len(row) for row in (headings, before, *rows)} == {7}
    for row in rows:
        assert row[2] == ("several" if row[0].startswith("weights") else "2 on")
        assert row[-1] == "0.5"
    drawn = {name for name, _ in analysis.figures(record)}
    assert {"interventions", "relations"} <= drawn


def test_text_cannot_become_markup(tmp_path):
    """Tokens are whatever the text holds; in the page they are text."""
    record = copy.deepcopy(p.findings().record)
    record["prompt"] = ["</script><img src=x onerror=alert(1)>" for _ in record["prompt"]]
    kind = record["parts"]["positions"]["kinds"]["sun"]
    kind["tokens"] = [["<b>&", 9]]
    text = page(record, tmp_path).replace(interactive.plotly() or "", "")
    shown, *scripts = text.split("<script>")
    assert "<img" not in shown
    assert "<b>" not in shown
    # In a script they are JSON, which must not end it; there plotly would read them as markup.
    assert all(script.count("</script>") == 1 for script in scripts)
    assert all("<img" not in script and "<!--" not in script for script in scripts)
    marks = interactive.views(record)["view-2"]["drawing"]["data"][2]
    assert marks["text"][0].startswith("token 7 '</script><img")  # in space no other tag is read
    record["prompt"] = ['<b>"'] * len(record["prompt"])
    _, points, marks = interactive.views(record)["view-2"]["drawing"]["data"]
    assert marks["text"][0].startswith("token 7 '<\u200bb>\"'")
    assert ' &lt;b&gt;", ' in points["text"][0]


def test_a_measure_that_is_negative_or_not_finite_has_not_changed():
    record = copy.deepcopy(p.findings().record)
    first, second, *_ = record["parts"]["measures"]["scores"]
    first |= {"value": [-0.10, None, None], "untrained": [-0.11, None, None]}
    second |= {"value": [None, None, None], "untrained": [1.0, None, None]}
    changed = headline(record, "measures")[0]
    assert first["name"] not in changed
    assert second["name"] not in changed


def test_views_have_the_marks_and_the_whole_axes():
    views = interactive.views(p.findings().record)
    assert len(views) == 4
    drawing = views["view-2"]["drawing"]
    stems, points, marks = drawing["data"]
    assert marks["text"][0].endswith(f"channel {p.CHANNEL}")
    assert len(stems["z"]) == 3 * len(points["z"])
    assert max(points["z"]) == pytest.approx(marks["z"][0])
    assert drawing["layout"]["scene"]["xaxis"]["range"] == [0, p.T]
    assert drawing["layout"]["scene"]["yaxis"]["range"] == [0, 32]


@pytest.mark.parametrize(
    ("prompt", "rows", "told"),
    [
        ([1], None, "text: 1 token and no rows; accepted: at least 3 tokens, or rows"),
        ([1, 2], None, "text: 2 tokens and no rows; accepted: at least 3 tokens, or rows"),
        ([1], [[1, 2, 3]], "text: 1 token; accepted: 2 to 256 tokens"),
        ([1] * (PROMPT_TOKENS + 1), None, "text: 257 tokens; accepted: 2 to 256 tokens"),
        ([1, 2, 3], [[1, 2]], "rows: 2 in each; accepted: at least 3 tokens in each"),
        ([1, 2, 99], None, "text: token id 99; accepted: 0 to 18"),
        ([1, -5, 3], None, "text: token id -5; accepted: 0 to 18"),
        ([1, 2, 3], [[1, 2, 3], [1, 19, 3]], "rows: token id 19; accepted: 0 to 18"),
        ([1, 2, 3], [[1, 2, 3], [1, 2]], "rows: rows of different lengths; accepted: integer ids"),
        ([1, 2, 3], np.arange(4), "rows: int64 of shape [4]; accepted: integer ids [B, T]"),
        ([1, 2, 3], np.zeros((1, 1, 9), int), "rows: int64 of shape [1, 1, 9]; accepted: "),
        ([1, 2, 3], np.zeros((0, 5), int), "rows: int64 of shape [0, 5]; accepted: "),
        (np.array(4), None, "text: int64 of shape []; accepted: integer ids [T], at least one"),
        (np.array([1.5, 2.0, 3.0]), None, "text: float64 of shape [3]; accepted: integer ids [T]"),
    ],
)
def test_what_cannot_be_analysed_gets_one_line(prompt, rows, told):
    model = so.Model(p.CONFIG, p.params())
    assert told in refusal(so.analyze, model, prompt, rows=rows)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_none_is_refused(batch):
    with pytest.raises(InputError, match=f"batch={batch}: accepted: an integer of at least 1"):
        so.analyze(so.Model(p.CONFIG, p.params()), [1, 2, 3], batch=batch)


def test_attention_in_blocks_changes_no_finding():
    """A model that was trained in blocks of queries is analysed as one that was not; and one part
    may be asked for by its name alone."""
    config = so.ModelConfig(vocab=19, layers=2, width=16, heads=2, window=3, position="rope")
    params = init(config, jax.random.key(0))
    rows = p.rows()[:2, :12]

    def found(parts, query_block):
        model = so.Model(config.with_execution(query_block=query_block), params)
        return so.analyze(model, rows[0], rows=rows, parts=parts).record

    for part in ("existence", "lifecycle", "measures"):
        whole, blocked = found(part, None), found([part], 4)
        assert whole["parts"] == blocked["parts"]
        assert list(whole["parts"]) == [part]
        assert blocked["model"]["execution"]["query_block"] == 4


@pytest.mark.parametrize(
    ("inside", "expected"),
    [("someone", "~/a.gguf"), ("someone/cache", "$XDG_CACHE_HOME/a.gguf"), ("else", None)],
)
def test_a_record_names_neither_home_nor_cache(monkeypatch, tmp_path, inside, expected):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "someone")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "someone" / "cache"))
    place = str(tmp_path / inside / "a.gguf")
    model = so.Model(p.CONFIG, p.params(), origin=Origin(place, "float32"))
    shown = header(AnalysisInputs(model, p.rows()[0, :-1], p.rows()))["origin"]["place"]
    assert shown == (expected or place)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("zeros", ["all", "block_0"])
def test_layers_of_zeros_are_analysed_without_a_warning(zeros, tmp_path):
    """And none of them counts as the one with the largest outliers."""
    config = so.ModelConfig(vocab=19, layers=2, width=16, heads=2, position="none")
    params = {
        name: jax.tree.map(jnp.zeros_like, part) if zeros in ("all", name) else part
        for name, part in init(config, jax.random.key(0)).items()
    }
    parts, rows = ("existence", "lifecycle", "measures"), p.rows()[:2, :12]
    found = so.analyze(so.Model(config, params), rows[0], rows=rows, parts=parts)
    found.save(tmp_path)
    panel = found.existence.panels[0]
    assert (panel.title, panel.layer) == ("|down_in|", 0 if zeros == "all" else 1)


# ------------------------------------------------------------------------- shown


def test_findings_are_shown_short():
    """A line for a terminal; sentences and tables, escaped, for a notebook."""
    found = p.findings()
    assert repr(found) == f"Findings({', '.join(found.record['parts'])})"
    shown = found._repr_html_()
    assert len(shown) < 40_000
    assert "<h3>interventions</h3>" in shown
    assert "weights -&gt; activations" in shown


def test_every_part_has_its_table():
    found = p.findings()
    tables = {name: found.table(name) for name in found.record["parts"]}
    assert tables["existence"].rows[0][:2] == ("an_block_out", "1, 2")
    assert found.table("existence-weights").rows[0][:4] == ("down", 1, str(p.NEURON), p.CHANNEL)
    life = tables["lifecycle"]
    assert life.headings == ("layer", "block_in", "attn_out", "down_out", "block_out")
    assert [row[4] for row in life.rows] == found.record["parts"]["lifecycle"]["trace"]["block_out"]
    heads = found.record["parts"]["roles"]["attention"]
    assert len(tables["roles"].rows) == len(heads) * len(heads[0])
    with pytest.raises(InputError, match="name='lifecycles': unknown; accepted: existence, exist"):
        found.table("lifecycles")


def test_tables_for_pandas(monkeypatch):
    """The columns that a data frame is made of; a line where pandas is missing."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    frames = p.findings().to_pandas()
    assert {"existence", "existence-weights", "measures-detectors"} <= set(frames)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="to_pandas: pandas is not installed; accepted: pip inst"):
        p.findings().to_pandas()
