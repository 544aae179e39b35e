"""Figures that can be turned, drawn by plotly in the browser without a network.

plotly is the optional extra `interactive` (`pip install plotly`): it is 5 MB in every page.
Without it the page has the static figures alone.
"""

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from sysout_jax.plots.stems import coordinate, joined, mark_label

Record = Mapping[str, Any]
LEAST = 0.02  # of the largest value: shorter stems are left out
_TAGS = re.compile(r"<(?=/?(br|b|i|sup|sub)\b)")  # which texts in space are read for, and no others


def plotly() -> str | None:
    """plotly's script, or None where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    return str(get_plotlyjs())


def views(record: Record) -> dict[str, dict[str, Any]]:
    """What can be turned, by the id of its place in the page: the part, a title, the drawing."""
    panels = record["parts"].get("existence", {}).get("panels", [])
    found = {}
    for which, panel in enumerate(panels):
        title = f"{panel['title']}, layer {panel['layer']}"
        drawing = {"data": _stems(panel, record["prompt"]), "layout": _layout(panel)}
        found[f"view-{which}"] = {"part": "existence", "title": title, "drawing": drawing}
    return found


def scripts(plotly: str | None, views: Mapping[str, Any]) -> str:
    """The scripts at the end of the page: each view is drawn when it is first opened."""
    if plotly is None:
        return ""
    drawings = {key: view["drawing"] for key, view in views.items()}
    data = json.dumps(drawings).replace("<", "\\u003c")
    return f"""<script>{plotly}</script>
<script>
const drawings = {data};
for (const [id, drawing] of Object.entries(drawings)) {{
  const place = document.getElementById(id);
  place.parentElement.addEventListener("toggle", () => {{
    if (place.parentElement.open && !place.hasChildNodes())
      Plotly.newPlot(place, drawing.data, drawing.layout, {{responsive: true, displaylogo: false}});
  }});
}}
</script>"""


def _stems(panel: Record, pieces: list[str]) -> list[dict[str, Any]]:
    """One line of segments for all stems, one point on each, and the marks by name."""
    values = panel["values"]
    step = joined(panel["features"], len(values[0]))
    row_step = joined(panel["rows"], len(values))
    top = max(max(abs(v or 0.0) for v in row) for row in values) or 1.0
    stems = [
        (row * row_step, column * step, abs(value))
        for row, line in enumerate(values)
        for column, value in enumerate(line)
        if value is not None and abs(value) >= LEAST * top
    ]
    x, y, z = ([stem[axis] for stem in stems] for axis in range(3))
    of_token = panel["axes"][0] == "token"
    shown = [f" {html.escape(piece, quote=False)}" for piece in pieces]
    names = [
        coordinate(panel, 0, a) + (shown[a] if of_token else "") + ", " + coordinate(panel, 1, b)
        for a, b, _ in stems
    ]
    marks = [(row, column) for row, column in panel["marks"]]
    heights = [abs(values[row // row_step][column // step] or 0.0) for row, column in marks]
    return [
        {
            "type": "scatter3d", "mode": "lines", "hoverinfo": "skip", "showlegend": False,
            "x": [v for a in x for v in (a, a, None)], "y": [v for b in y for v in (b, b, None)],
            "z": [v for c in z for v in (0, c, None)], "line": {"color": "#7a3500", "width": 2},
        },
        {
            "type": "scatter3d", "mode": "markers", "x": x, "y": y, "z": z, "text": names,
            "hovertemplate": "%{text}<br>%{z:.3g}<extra></extra>", "showlegend": False,
            "marker": {"size": 2, "color": z, "colorscale": "Plasma", "reversescale": True},
        },
        {
            "type": "scatter3d", "mode": "text", "x": [a for a, _ in marks],
            "y": [b for _, b in marks], "z": heights, "showlegend": False, "hoverinfo": "skip",
            "text": [
                _TAGS.sub("<\u200b", mark_label(dict(panel), row, column, pieces))
                for row, column in marks
            ],
        },
    ]  # fmt: skip


def _layout(panel: Record) -> dict[str, Any]:
    rows, columns = panel["axes"]
    return {
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "scene": {
            "xaxis": {"title": {"text": rows}, "range": [0, panel["rows"]]},
            "yaxis": {"title": {"text": columns}, "range": [0, panel["features"]]},
            "zaxis": {"title": {"text": panel["title"]}, "rangemode": "tozero"},
            "camera": {"eye": {"x": -1.5, "y": -1.5, "z": 0.9}},
        },
    }
