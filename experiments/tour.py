"""A published model's outliers, what they do, and the model without them, in minutes.

python -m experiments.tour                                          # SmolLM2-135M
python -m experiments.tour --model=MODEL --corpus=PATH
python -m experiments.tour --redraw=runs/tour/RUN
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.compressed import Compressed, losses
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.intervene.passes import passes
from sysout_jax.analysis.intervene.relocation import taps
from sysout_jax.analysis.intervene.sink_forms import edits, sink_forms
from sysout_jax.analysis.intervene.weak_sinks import standing_rows
from sysout_jax.analysis.locate.existence import Panel, existence, maps
from sysout_jax.analysis.locate.scan import default_batch_size, for_length, scan
from sysout_jax.analysis.locate.sinks import first_token_sink
from sysout_jax.analysis.statistics import bootstrap_interval
from sysout_jax.checking import PARAGRAPH
from sysout_jax.converting import conversions
from sysout_jax.data.prompt import encode_prompt
from sysout_jax.errors import InputError, at_least
from sysout_jax.model.model import Model
from sysout_jax.results import RunDirectory

from .cli import grid, launch, showing
from .cli.grid import Place
from .inputs import identity
from .inputs.evaluation_text import Text, Texts, corpus_name, length_of
from .inputs.model_selection import Choice, Chosen, choose, origins, resolve
from .reports.tour_report import REPORT

FLAGS = flags.FLAGS
OFTEN = ("model", "corpus", "sequences", "seq_len", "workdir")  # what --help explains
MODEL = "smollm2-135m"
METHOD = "w8a8-tensor"  # the one that a single large activation spoils
WAYS = ("bound", "prefix+bound")
TOKENS = 128  # of a sequence
DRAWN = 40  # tokens of a text in the figure
SMOKE = {"sequences": 2, "calibration": 4, "seq_len": 48}


@dataclass(frozen=True)
class Config:
    """Everything that determines what is shown."""

    choice: Choice = field(default_factory=lambda: Choice(model=MODEL))
    corpus: str | None = None  # text to calibrate on and measure; None: stdlib, Python's own source
    calibration: int = 8  # sequences of the training part, for constants and bounds
    sequences: int = 8  # of the validation part, to measure on
    seq_len: int | None = None  # T, of each; None: 128, or the learned positions if fewer
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        for name, least in (("calibration", 4), ("sequences", 1), ("seq_len", 32)):
            at_least(least, name, getattr(self, name))


def run(config: Config, console: Console) -> RunDirectory:
    """Look at the model, take its sink away, convert it, quantise it; record and draw."""
    chosen = choose(config.choice)
    length = length_of(config.seq_len, chosen.model.config, TOKENS)
    text = Texts(config.corpus, config.calibration, config.sequences, length, console).of(chosen)
    say = partial(console.print, markup=False, highlight=False)
    return grid.run(
        config, "tour", {chosen.cell: chosen}, lambda each, log: _found(config, each, text, say),
        lambda each: identity.of(each, *text.rows), grid.common(config),
        lambda there: {"models": there.all()}, REPORT, console,
        described={"config": grid.told(config), "origins": origins([chosen])}, of=[chosen.name],
    )  # fmt: skip


def _found(config: Config, chosen: Chosen, text: Text, say: Any) -> dict[str, Any]:
    model = chosen.model
    say("  its outliers, and what takes the sink's place")
    found = {"name": chosen.name, "seed": chosen.seed, **_outliers(model, text)}
    say("  the model without its sink's state")
    made = conversions(model, text.calibration, None if chosen.bos else ())
    models = {"as trained": model} | {way: made[way].model for way in WAYS}
    begin = int(text.begun_by_bos(chosen))
    cut = {way: begin for way in WAYS if made[way].kind == "prefix"}
    say("  weights and activations in 8 bits")
    return found | {
        "corpus": corpus_name(config.corpus, chosen),
        "tokens": text.evaluation[:, 1:].size,
        "kind": made[WAYS[0]].kind, "said": list(made[WAYS[0]].said),
        "ways": [
            {"name": name, **_eight_bits(each, text, cut.get(name, 0), begin)}
            for name, each in models.items()
        ],
        "drawn": _drawn(chosen, models[WAYS[-1]], text, cut.get(WAYS[-1], 0)),
    }  # fmt: skip


def _outliers(model: Model, text: Text) -> dict[str, Any]:
    """The three kinds in all texts, and what stands in for the sink."""
    rows, params = text.evaluation, model.params
    length = rows.shape[1] - 1
    config, batch = for_length(model.config, length), default_batch_size(length)
    seen = scan(config, params, rows[:, :-1], batch=batch)
    sink, site = first_token_sink(config, seen), seen.block_out
    ratio = site.top[..., 0] / site.median
    layer = int(np.argmax(ratio.mean(axis=1))) if sink.emergence is None else sink.emergence
    ratios, standing = standing_rows(params)
    none = edits(config, length, config.layers)
    of_model = passes(config, params, rows, [sink.first], batch, taps(config), none)
    forms = sink_forms(of_model, of_model.taps, sink, text.calibration)
    return {
        "massive": {
            "layer": layer, "size": float(site.top[layer, :, 0].mean()),
            "over_median": float(ratio[layer].mean()),
            "first": float((site.token_peak[layer].argmax(axis=-1) == 0).mean()),
        },
        "sink": asdict(sink),
        "rows": {"layers": standing, "ratios": ratios},
        "forms": [
            {"name": f.name, "label": f.label, "change": f.change, "share": f.share}
            for f in forms.forms
        ],
    }  # fmt: skip


def _eight_bits(model: Model, text: Text, cut: int, begin: int) -> dict[str, Any]:
    """The loss as it is and in 8 bits, of tokens after BOS if there is one; the largest state."""
    rows, calibration = text.evaluation[:, cut:], text.calibration[:, cut:]
    batch = default_batch_size(rows.shape[1] - 1)
    compressor = Compressor(model.config, model.params, calibration, batch=batch)
    whole, rounded = (
        losses(model.config, of, rows, batch, begin - cut)
        for of in (Compressed(model.params), compressor.compress(schemes.scheme(METHOD)))
    )
    config = for_length(model.config, rows.shape[1] - 1)
    site = scan(config, model.params, rows[:, :-1], batch=batch).block_out
    return {
        "loss": float(whole.mean()), "losses": whole, "rounded": rounded,
        "rise": bootstrap_interval(rounded - whole),
        "over_median": float((site.top[..., 0] / site.median).max()),
    }  # fmt: skip


def _drawn(chosen: Chosen, converted: Model, text: Text, cut: int) -> dict[str, Any]:
    """The states and the attention of one text, in the layers of the paper's first figure."""
    model = chosen.model
    room = min(DRAWN, model.config.longest or DRAWN)
    if model.tokenizer is None:
        tokens = text.evaluation[0, :room]
        pieces = list(map(str, tokens))
    else:
        tokens = encode_prompt(model.tokenizer, PARAGRAPH, "yes" if chosen.bos else "no")[:room]
        pieces = model.tokenizer.pieces(tokens)
    config = for_length(model.config, len(tokens))
    layers = {p.title: p.layer for p in existence(config, model.params, tokens).panels[2:]}
    return {
        name: {
            "pieces": pieces[begin:], "panels": _panels(of, tokens[begin:], layers),
        }
        for name, of, begin in (("as trained", model, 0), (WAYS[-1], converted, cut))
    }  # fmt: skip


def _panels(model: Model, tokens: np.ndarray, layers: dict[str, int]) -> list[dict[str, Any]]:
    """A panel of magnitudes and one of attention, each of its layer."""
    shown = maps(for_length(model.config, len(tokens)), model.params, jnp.asarray(tokens))
    width = model.config.sizes["D"]
    sizes = {"|block_out|": ("block_out", ("token", "channel"), width),
             "attention": ("attn_weights", ("query", "key"), len(tokens))}  # fmt: skip
    return [
        asdict(Panel(title, layer, np.asarray(shown[tap][layer, 0]), axes, features, len(tokens)))
        for title, layer in layers.items()
        for tap, axes, features in [sizes[title]]
    ]


# ----------------------------------------------------------------------------- the binary


config_from_flags = partial(launch.from_flags, Config(), SMOKE)


def main() -> None:
    if FLAGS.if_available:
        choice = config_from_flags().choice
        try:
            resolve(choice)
        except InputError as error:
            print(f"left out: {error}")
            return
    showing.run_or_redraw("experiments.tour", run, config_from_flags, REPORT)


def define_flags() -> None:
    """Define the flags of this binary."""
    grid.define_flags(Config, "a few short sequences")
    flags.DEFINE_bool("if_available", False, "say so and end well where the model cannot be had")


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
