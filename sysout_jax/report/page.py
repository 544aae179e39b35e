"""Self-contained HTML pages of records: sentences, tables, figures, 3-D views, the record."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sysout_jax.files import write_text
from sysout_jax.plots import NARROW
from sysout_jax.plots.analysis import FIGURES
from sysout_jax.report import interactive, tables
from sysout_jax.report.summary import summary
from sysout_jax.report.words import headline, known_lines

Record = Mapping[str, Any]

# part -> its title, and what it answers
PARTS: Mapping[str, tuple[str, str]] = {
    "existence": ("Existence", "Which outliers does this prompt show, and where?"),
    "positions": (
        "Positions", "Where do they sit over many sequences: by layer, token, feature and head?"
    ),
    "relations": ("Relations", "Do outliers of one kind sit where others do?"),
    "lifecycle": (
        "Life cycle",
        "How is the largest activation made, what does it do to attention, how does it go?",
    ),
    "roles": ("Roles", "What do outlier tokens do for each head?"),
    "measures": (
        "Measures",
        "How does it score by every measure of the field, beside itself before training?",
    ),
    "dimensions": (
        "Outlier dimensions",
        "Which dimensions are large at nearly every token before the head, and what do they do?",
    ),
    "interventions": ("Interventions", "What does the model lose without them?"),
    "dynamics": ("Dynamics", "When do they emerge in training?"),
    "seeds": ("Seeds", "Do other seeds of the run have them at the same places?"),
}  # fmt: skip
OF_PROMPT = ("existence", "lifecycle")  # parts that are of the prompt; the others are of the text
# figures whose arrows lead from panel to panel
CHAINS = ("lifecycle-emergence", "lifecycle-spread", "lifecycle-disappearance")
CAPTIONS: Mapping[str, str] = {
    "existence": (
        "Magnitudes in the layers that show each kind best; the largest entry is named. Where "
        "features outnumber the stems, a stem is the largest of its neighbours."
    ),
    "positions-layers": "Magnitudes, attention received, and weight ratios of every layer.",
    "positions-tokens": "Classes of the flagged tokens, beside the class's share of all tokens.",
    "positions-features": "The five features with the largest peaks of every layer.",
    "positions-heads": "Share of attention on outlier tokens: heads, their mean and range.",
    "relations": "Precision, recall and Jaccard, averaged over sequences.",
    "lifecycle-trace": (
        "The value at the outlier's token and channel; dotted: the layer that makes it, dashed: "
        "the layer that removes it."
    ),
    "lifecycle-emergence": "Emergence: from the residual stream through the MLP and back.",
    "lifecycle-spread": "Spread: what a later layer's attention makes of the token.",
    "lifecycle-disappearance": "Disappearance: the layer that writes the opposite.",
    "roles": "Each head's implicit scaling factor, and the values of the tokens it comes from.",
    "measures": (
        "Measures over their values before training, with intervals over sequences; share of heads "
        "in which key k is a sink, by threshold."
    ),
    "dimensions": (
        "Scores after the final norm beside peaks in the residual stream, and what predictions "
        "become without them, or from them alone."
    ),
    "interventions": "Change of the loss by each intervention and its random control.",
    "interventions-forms": (
        "Change of the loss with each form in the sink's place; largest |h| of each token and its "
        "share of attention, in the layers that read the sink."
    ),
    "dynamics": (
        "Measures at the checkpoints; dotted: half way; dashed: the closest law; green: the "
        "modulated logarithm, where it is the best of four laws."
    ),
}
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 Georgia, 'Times New Roman', serif; color: #1a1a1a; background: #fff;
  max-width: 58rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .6rem 0; }
h2 { font-size: 1.3rem; border-top: 1px solid #ddd; padding-top: 1rem; margin-top: 2.2rem; }
h2 + p { color: #555; font-style: italic; margin-top: -.5rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem .9rem; }
a { color: #0072b2; }
figure { margin: 1.2rem 0; overflow-x: auto; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .88rem; color: #555; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font: .85rem/1.4 system-ui, sans-serif; margin: .8rem 0; }
th, td { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid #eee;
  vertical-align: top; }
td { white-space: nowrap; }
td.words { white-space: normal; min-width: 8rem; overflow-wrap: anywhere; }
.words { text-align: left; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid #999; font-weight: 600; }
code, pre { font: .82rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere;
  white-space: pre-wrap; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: #0072b2; }
@media (max-width: 640px) { img.chain { max-width: none; width: 44rem; } }
.view { width: 100%; height: 26rem; }
li { margin: .25rem 0; }
"""


def write_page(record: Record, directory: Path) -> Path:
    """Write report.html into a run directory whose figures are drawn; returns its path.

    Args:
      record: of the analysis experiment, as JSON holds it.
      directory: with figures/*.png; result.json and the PDF files are linked relative to it.
    """
    return write_text(directory / "report.html", page(record, directory / "figures"))


def page(record: Record, figures: Path) -> str:
    """The page of an analysis as text."""
    parts = [name for name in PARTS if name in record["parts"]]
    views = interactive.views(record)
    script = interactive.plotly() if views else None
    links = "".join(f'<a href="#{name}">{PARTS[name][0]}</a>' for name in parts)
    sections = "\n".join(_section(record, name, figures, views if script else {}) for name in parts)
    body = f"""{tables.about(record)}
{_known(record)}<nav>{links}<a href="#record">Record</a></nav>
{sections}"""
    scripts = interactive.scripts(script, views)
    return document(_title(record), summary(record), body, record, scripts)


def document(title: str, said: Sequence[str], body: str, record: Record, scripts: str = "") -> str:
    """A page of a record, which needs no other file, as text.

    Args:
      title: of the page.
      said: what it begins with, sentences without capitals and full stops; "" for none.
      body: HTML.
      record: where it comes from, in its "provenance".
      scripts: HTML at the end.
    """
    summed = " ".join(f"{_begun(text)}." for text in said if text)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p id="summary">{html.escape(summed)}</p>
{body}
<h2 id="record">Record</h2>
<p>Every number and figure here is drawn from <a href="result.json">result.json</a>; figures are
in figures/ as PNG and PDF.</p>
{_provenance(record)}
{scripts}
</body>
</html>
"""


def _begun(sentence: str) -> str:
    """With a capital where it begins with a word, and not with a name such as w8a8."""
    word = sentence.split()[0]
    return sentence[0].upper() + sentence[1:] if word.isalpha() else sentence


def _known(record: Record) -> str:
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in known_lines(record))
    return f"<h3>Published coordinates</h3><ul>{lines}</ul>\n" if lines else ""


def _title(record: Record) -> str:
    name = record.get("name")
    config = record["model"]
    layers = config["layers"]
    what = f"{config['variant']}, {layers} layer{'s' * (layers != 1)}, width {config['width']}"
    return f"Outliers of {name} ({what})" if name else f"Outliers of a model: {what}"


def _section(record: Record, name: str, figures: Path, views: Mapping[str, Any]) -> str:
    title, question = PARTS[name]
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in headline(record, name))
    named = FIGURES[name]
    shown = "".join(drawn(figures, figure, CAPTIONS[figure], figure in CHAINS) for figure in named)
    mine = "".join(
        f"<details><summary>Turn it: {html.escape(view['title'])}</summary>"
        f'<div class="view" id="{key}"></div></details>'
        for key, view in views.items()
        if view["part"] == name
    )
    return (
        f'<section id="{name}"><h2>{title}</h2><p>{question} {_text(record, name)}</p>\n'
        f"<ul>{lines}</ul>\n"
        f"{shown}{mine}{tables.of_part(record, name)}</section>"
    )


def _text(record: Record, name: str) -> str:
    """Which of the two texts a part is of."""
    if name in OF_PROMPT:
        return f"Of the prompt, {len(record['prompt'])} tokens."
    corpus = f" of {record['corpus']}" if "corpus" in record else ""
    return html.escape(f"Of {record['sequences']} sequences of {record['seq_len']} tokens{corpus}.")


def drawn(figures: Path, name: str, caption: str, chain: bool = False) -> str:
    """An image in the page itself, with a link to the PDF; nothing where it was not drawn.

    Args:
      figures: the directory of figures.
      name: of the figure.
      caption: under it.
      chain: whether arrows lead from panel to panel, so that they cannot be stacked.
    """
    path = figures / f"{name}.png"
    if not path.exists():
        return ""
    caption, stacked = html.escape(caption), figures / NARROW / path.name
    narrow = (
        f'<source media="(max-width: 640px)" srcset="{_inline(stacked)}">'
        if stacked.exists()
        else ""
    )
    kind = ' class="chain"' if chain else ""
    return (
        f'<figure><picture>{narrow}<img{kind} alt="{caption}" src="{_inline(path)}"></picture>'
        f'<figcaption>{caption} <a href="figures/{name}.pdf">PDF</a></figcaption></figure>\n'
    )


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _provenance(record: Record) -> str:
    origin = html.escape(json.dumps(record["provenance"], indent=1))
    command = html.escape(str(record["provenance"]["command"]))
    return (
        f"<p><code>{command}</code></p><details><summary>Versions and device</summary>"
        f"<pre>{origin}</pre></details>"
    )
