"""Every table of the README and of docs/ is what its record, or a table of the code, says."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import sysout_jax
from sysout_jax.analysis.intervene.explicit_factor import FORMS
from sysout_jax.core.attention import VARIANTS
from sysout_jax.files import read_json
from sysout_jax.results import read_record
from tests import pages, quick, usage

ROOT = Path(__file__).parent.parent
README = pages.README.read_text()
RESULTS, MODELS, SCALE = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("results", "models", "scale")
)
PAGES = {path: path.read_text() for path in pages.PAGES}
MARKS = [found[1] for text in PAGES.values() for found in pages.TABLES.finditer(text)]
RECORDS = {mark.split()[1] for mark in MARKS if mark.startswith("table: ")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_tables_are_what_records_and_code_say(page):
    """To renew them: `python -m tests.pages`."""
    assert pages.written(page) == PAGES[page]


@pytest.mark.parametrize("directory", sorted(RECORDS))
def test_records_behind_tables_are_of_clean_commits_and_whole(directory):
    record = read_record(ROOT / directory)
    # What the time of a machine cut off says so, with a reason, and has what was measured.
    assert record["status"] == "complete" or (record["status"] == "preempted" and record["reason"])
    assert record["provenance"]["code"]["dirty"] is False
    cells = [cell for cell in record.get("cells", ()) if "code" in cell]
    assert not any(cell["code"]["dirty"] for cell in cells)


def test_the_sizes_of_published_models_come_from_their_record():
    """To renew it: `python -m tests.families.large 1b PLACE > FILE`, then `mv` it there."""
    record = read_record(ROOT / "results" / "models" / "1b")
    assert record["provenance"]["code"]["dirty"] is False
    done, analysis = record["pass"], record["analysis"]
    sizes = [record["checkpoint"], done["loaded"]["VmHWM"], analysis["VmHWM"]]
    shown = re.search(
        r"A 1.1B model \(([\d.]+) GB\) loads at a peak of ([\d.]+) GB"
        r" and is analysed at ([\d.]+) GB",
        " ".join(MODELS.split()),
    )
    assert shown.groups() == tuple(f"{size / 1e9:.1f}" for size in sizes)
    assert analysis["parameters"] == pytest.approx(1.1e9, rel=0.01)
    page = " ".join((ROOT / "docs" / "models.md").read_text().split())
    times = (done["seconds"]["load"], done["seconds"]["run"], analysis["seconds"])
    assert "That took {:.0f}, {:.0f} and {:.0f} s".format(*times) in page
    sizes[1:1] = [done["loaded"]["VmHWM"], done["end"]["VmHWM"]]
    for size in sizes:
        assert f"{size / 1e9:.1f} GB" in page


def test_the_sizes_of_a_streamed_model_come_from_their_record():
    """To renew it: `python -m tests.families.large 7b PLACE > FILE`, then `mv` it there."""
    record = read_record(ROOT / "results" / "models" / "7b")
    assert record["provenance"]["code"]["dirty"] is False
    done, analysis = record["pass"], record["analysis"]
    assert analysis["parameters"] == pytest.approx(6.7e9, rel=0.01)
    page = " ".join((ROOT / "docs" / "models.md").read_text().split())
    shown = re.search(
        r"The 7B shape \(([\d.]+) GB\) streams, one layer at a time with private memory limited to"
        r" ([\d.]+) GB\. One pass peaks at ([\d.]+) GB, the analysis at ([\d.]+) GB"
        r" \(\[record\]\(\.\./results/models/7b/result\.json\)\)\. They took (\d+) and (\d+) s",
        page,
    )
    assert analysis["VmHWM"] < record["limit"] < record["checkpoint"]
    sizes = (record["checkpoint"], record["limit"], done["end"]["VmHWM"], analysis["VmHWM"])
    times = (done["seconds"]["run"], analysis["seconds"])
    assert shown.groups() == tuple(
        [*(f"{size / 1e9:.1f}" for size in sizes), *(f"{seconds:.0f}" for seconds in times)]
    )


def test_what_a_step_needs_on_tpus_comes_from_the_plans():
    """To renew one: the command in its record."""
    shown = re.search(
        r"- GPT-2 124M \(64 x 1,024\): (\S+) of (\d+) GiB and (\S+) ms on a v5e-8;\n"
        r"- LLaMA-2-7B \(256 x 4,096\): (\S+) of (\d+) GiB and (\S+) s on a v5e-256;\n"
        r"- LLaMA-2-7B \(256 x 4,096\): (\S+) of (\d+) GiB and (\S+) s on a v5p-512\.\n",
        SCALE,
    )
    found = []
    for name in ("gpt2-124m-v5e-8", "llama2-7b-v5e-256", "llama2-7b-v5p-512"):
        record = read_record(ROOT / "results" / "plan" / f"{name}-flash")
        step, small = record["steps"]["train"], record["model"] == "gpt2-124m"
        assert (step["config"]["batch_size"], step["config"]["seq_len"]) == (
            (64, 1024) if small else (256, 4096)
        )
        peak, room, least = step["memory"]["peak"], step["room"], step["roofline"]["step"]
        found += [f"{peak / 2**30:.1f}", f"{room / 2**30:.0f}"]
        found.append(f"{1e3 * least:.0f}" if small else f"{least:.2f}")
    assert shown.groups() == tuple(found)


def test_tables_are_there():
    assert len(RECORDS) >= 4
    assert {"claims", "models", "variants"} <= set(MARKS)
    assert MARKS.count("claims") == 2  # all of them, and the README's


def test_what_removing_a_sink_costs_is_in_the_record():
    """To renew it: COMMANDS["analyze/backcopy"] of experiments.records.commands."""
    record = read_record(ROOT / "results" / "analyze" / "backcopy")
    assert record["provenance"]["code"]["dirty"] is False
    (cost,) = [
        effect["change"][0]
        for effect in record["parts"]["interventions"]["effects"]
        if effect["detector"] == "an_attention"
        and effect["treatment"] == "removed, rows renormalised"
        and not effect["control"]
    ]
    assert f"removing a sink's attention costs {cost:.3f} nats" in " ".join(RESULTS.split())


def test_explicit_forms_are_those_of_the_record():
    def changes(record, name):
        rows = pages.table(f"results/explicit/{record}", f"{name}-softmax").splitlines()
        by_label = {row.split(" | ")[0].lstrip("| "): row.split(" | ")[2] for row in rows}
        return {form: by_label[label] for form, label in FORMS.items() if label in by_label}

    page = " ".join(RESULTS.split())
    books, source = (
        {form: each.lstrip("+") for form, each in changes(*of).items()}
        for of in (("fruitfly-h100", "books"), ("sinks", "stdlib"))
    )
    leaving = f"S itself costs {books['factor']} nats; leaving the sink out costs"
    assert f"{leaving} {books['dropped']}" in page
    says = f"S in its place costs {source['factor']} nats, of {source['dropped']} that leaving"
    assert says in page
    costs = f"removal costs {source['dropped']} nats, with S in its place {source['factor']} |"
    assert costs in README


def test_the_first_figure_is_described_by_its_record():
    """To renew it: `python -m experiments.tour --name=smollm2-135m`."""
    rows = pages.table("results/tour/smollm2-135m", "smollm2-135m-ways").splitlines()
    cells = {row.split(" | ")[0].lstrip("| "): row.rstrip(" |").split(" | ") for row in rows}
    before, after = cells["as trained"], cells["prefix+bound"]
    assert f"falls from {before[1]} to {after[1]} times the median" in README
    rows = pages.table("results/convert/smollm2-135m-prefix", "smollm2-135m-check").splitlines()
    before, after = next(row for row in rows if "max/median" in row).split(" | ")[1:]
    assert f"from {before} to {after.rstrip(' |')} on 4,096 of books" in README


def test_what_stands_in_for_the_published_models_sink_is_in_its_record():
    claims = read_json(ROOT / "results" / "claims.json")

    def told(form, model):
        numbers = claims[f"{form}_the_sink.{model}"]["numbers"]
        return numbers.removesuffix(" nats").split(" of ")

    factor, removal = told("factor_replaces", "smollm2")
    assert f"removal costs {removal} nats, S in its place {factor}; Gemma" in README
    factor, removal = (each.split()[0] for each in told("factor_replaces", "gemma"))
    assert f"Gemma 3 270M: {removal} and {factor} |" in README
    more, less = (claims[f"converted_prunes_better.{m}"]["numbers"] for m in ("smollm2", "gemma"))
    assert (
        f"| {less.split()[0].lstrip('-')} nats less; {more.split()[0]} more (bound alone) |"
        in README
    )
    assert less.startswith("-")
    left = [told("factor_and_bias_replace", m)[0].split()[0] for m in ("smollm2", "gemma")]
    assert f"| {left[0]} and {left[1]} nats are left |" in README


def test_what_the_first_page_says_of_the_ledger_is_in_it():
    claims = read_json(ROOT / "results" / "claims.json")
    channel, books, faster, source = (
        claims[name]["numbers"].partition(" - softmax ")
        for name in (
            "activations_cause_sinks.smollm2", "factor_removes_large_activations.books",
            "converges_faster.books", "converges_faster.source",
        )
    )  # fmt: skip
    assert f"attention without it is {channel[0]} above the control's |" in README
    smollm2, gemma = (
        [
            " to ".join(sorted(set(re.findall(rf"{of} (\d\.\d\d)", shared["numbers"]))))
            for of in ("precision", "recall")
        ]
        for model in ("smollm2", "gemma")
        for shared in [claims[f"activations_and_attention_share_tokens.{model}"]]
    )
    assert (
        f"tokens that are sinks: {smollm2[0]} in SmolLM2, {gemma[0]} in Gemma 3; "
        f"reverse: {smollm2[1]}, {gemma[1]} |"
    ) in README
    assert f"the largest is {books[0]} times softmax's |" in README

    def lower(said):
        """A difference as how much lower, its interval turned."""
        mean, low, high = re.findall(r"-(\d\.\d+)", said)[:3]
        return f"{mean} [{high}, {low}]"

    assert f"{lower(source[2])} nats lower on source text (0.17M)," in README
    assert f"{lower(faster[0])} on books |" in README


def test_what_the_conversion_buys_is_in_its_record():
    """To renew it: COMMANDS["compress/smollm2-135m-books"] of experiments.records.commands."""
    rows = pages.table("results/compress/smollm2-135m-books", ".cache/books_val.txt-bought")
    rows = [row.strip("| ").split(" | ") for row in rows.splitlines()]
    of = {row[0]: dict(zip(rows[0][1:], row[1:], strict=False)) for row in rows[2:]}
    gone = re.search(r"\((.*)\)", of["w8a8-tensor"]["prefix+bound"])[1]
    assert f"| SmolLM2: {gone} of what they add on books is gone" in README
    page = " ".join((ROOT / "docs" / "convert.md").read_text().split())
    rows = pages.table("results/compress/gemma3-270m-books", ".cache/books_train_2.txt.xz-bought")
    of_other = next(row for row in rows.splitlines() if row.startswith("| w8a8-tensor "))
    assert f"Gemma 3: {re.search(r'[(](.*?) ', of_other)[1]} |" in README
    prefix = re.search(r"\((.*?) ", of["w8a8-tensor"]["prefix"])[1]
    assert f"prefix alone removes {prefix} of the rise of W8A8 with one scale a tensor" in page
    left = float(of["w8a8-atensor"]["prefix+bound"].split()[0])
    rotated, smoothed, by_token = (
        float(of[name]["as trained"].split()[0])
        for name in ("rotate-w8a8-tensor", "smoothall-w8a8-tensor-minmax", "w8a8")
    )
    assert f"takes away {gone.split()[0]} of the rise" in page
    assert f"{left:.2f} nats are left; the goal was 0.05" in page
    assert f"rotation leaves {rotated:.2f} nats and smoothing of all inputs {smoothed:.2f}" in page
    smooth, more = (
        pages.table(f"results/compress/smollm2-135m-books-{name}", ".cache/books_val.txt-bought")
        for name in ("smooth", "more")
    )
    (left, own), (cost, _) = (
        re.search(rf"[|] {name} [|] [+](\d\.\d+) .*?[(](\d+%) [^(]*$", table, re.M).groups()
        for name, table in (("smooth-w8a8-tensor-minmax", smooth), ("w8a8-tensor-minmax", more))
    )
    assert f"leaves {float(left):.2f} of the {float(cost):.2f} nats that static ranges" in page
    assert f"Conversion takes {own} of what is left" in page
    assert f"The published model loses {by_token:.2f} nats. With a prefix its loss stays" in page
    models = read_record(ROOT / "results" / "compress" / "smollm2-135m-books")["models"]
    mine = {model.get("conversion"): model for model in models}

    def rise(way, method):
        """Over the model's own loss."""
        return np.mean(np.subtract(mine[way]["methods"][method]["losses"], mine[way]["losses"]))

    lower = np.mean(np.subtract(mine[None]["losses"], mine["prefix"]["losses"]))
    by_token, rotated = (rise("prefix", name) for name in ("w8a8", "rotate-w8a8-tensor"))
    by_tensor, before = (rise(way, "w8a8-tensor") for way in ("prefix+bound", None))
    assert f"lower the unrounded loss, by {lower:.3f} nats" in page
    pays = f"still pays {by_token:.3f} nats for a scale a token and {rotated:.3f} with a rotation"
    assert pays in page
    less = f"costs the model with prefix and bound {by_tensor:.3f} nats; that is"
    assert (
        f"{less} {1 - by_tensor / before:.0%} less, where the table says {gone.split()[0]}" in page
    )


def test_variants_are_counted():
    assert f"**Train {len(VARIANTS)} variants** of attention side by side" in README


def test_every_binary_has_its_flags():
    pages_of = {path.stem: text for path, text in PAGES.items() if path.parent == usage.PAGES}
    binaries = {module.__name__.rpartition(".")[2] for module in usage.binaries()}
    assert set(pages_of) == binaries | {"training"}
    assert all("\n| `--" in text for text in pages_of.values())
    assert sum(text.count("\n| `--") for text in pages_of.values()) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_figures_exist(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)", PAGES[page])
    assert all((page.parent / target).exists() for target in targets)
    assert page.name != "README.md" or any(target.endswith(".png") for target in targets)


def test_readme_is_read_once():
    """Words, lines, tables and decimals: a reader of the first page looks for what it is for."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", README, flags=re.S)
    assert len(text.split()) <= 700
    prose = [line for line in README.splitlines() if not line.startswith(("|", "!["))]
    assert max(map(len, prose)) <= 120
    assert README.index("```python") < len(README) / 2
    tables = [line for line in README.splitlines() if line.startswith("|---")]
    assert [line.count("|") - 1 for line in tables] == [3]
    first = "\n".join(README.splitlines()[:60])
    assert len(re.findall(r"\d\.\d", first)) <= 20


def test_python_example_runs(smollm2, monkeypatch):
    """The code block does what it says, as it stands."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(ROOT / ".cache"))
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    scope: dict[str, object] = {}
    with quick.optimised():  # it runs longer than it compiles
        exec(block, scope)
    assert scope["logits"].shape[2] == 49152
    assert scope["taps"]["block_out"].shape[0] == 30


CODE = re.compile(r"^```(?:bash|sh)?\n(.*?)^```|^((?: {4}.*\n)+)|`([^`\n]+)`", re.M | re.S)
CALL = re.compile(r"experiments\.(\w+)((?:[^\S\n]|\\\n)[^#\n|]*(?:\\\n[^#\n]*)*)?")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_have_the_flags_that_pages_give_them(page):
    of = {path.stem: text for path, text in PAGES.items() if path.parent == usage.PAGES}
    flags = {name: set(re.findall(r"^\| `--(\w+)`", text, re.M)) for name, text in of.items()}
    for name, text in of.items():
        for but in re.findall(r"^All flags of \[training\]\(training\.md\)(.*)\.", text, re.M):
            flags[name] |= flags["training"] - set(re.findall(r"--(\w+)", but))
    unknown = [
        (name, flag)
        for parts in CODE.findall(PAGES[page])
        for name, rest in CALL.findall("".join(parts))
        for flag in re.findall(r"--(\w+)", rest)
        if name in flags
        and flag not in flags[name] | {"help", "helpfull"}
        and not (flag.startswith("no") and flag[2:] in flags[name])
    ]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_on_pages_is_python_and_names_what_there_is(page):
    text = PAGES[page]
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        ast.parse(block)
    assert set(re.findall(r"\bso\.(\w+)", text)) <= set(sysout_jax.__all__)
    named = set(re.findall(r"\bso\.measures\.(\w+)", text))
    assert named <= set(vars(sysout_jax.measures))
