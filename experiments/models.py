"""Which published models can be loaded, and what each family supports.

python -m experiments.models
python -m experiments.models --markdown          # the table of docs/models.md
python -m experiments.models --check PATH [PATH...] [--json]   # would these load?
"""

import sys
from dataclasses import asdict

from absl import flags
from rich.console import Console

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Group
from sysout_jax.families.table import FAMILIES
from sysout_jax.families.verdict import Verdict, would_load
from sysout_jax.model.config import ModelConfig
from sysout_jax.showing import Table

from .cli import launch, showing
from .cli.tables import Section
from .cli.verdict import Verdict as End
from .cli.verdict import conclude, numbered

FLAGS = flags.FLAGS
OFTEN = ("check", "json", "markdown")  # what --help explains
COLUMNS = ("family", "published models", "positions", "block", "supports", "paper")
# what a table says of fields that a family's models may have at other than the default value
FEATURES = {
    "kv_heads": "grouped KV heads",
    "experts": "experts",
    "window": "windows",
    "window_layers": "windows by layer",
    "rope_layers": "layers without positions",
    "embed_norm": "norm of embeddings",
    "query_key_norm": "QK norm",
    "attn_softcap": "soft caps",
    "residual_scale": "scaled branches",
    "logit_scale": "scaled logits",
    "rope": "longer contexts",
    "clip_qkv": "clipped QKV",
    "qkv_bias": "QKV biases",
    "mlp_bias": "MLP biases",
    "tied": "tied head",
    "embed_width": "projected embeddings",
}


def settable(family: Family) -> set[str]:
    """The fields of ModelConfig that differ between the family's models, or from the default."""
    found = {
        name
        for name, value in family.fixed.items()
        if value and value != getattr(ModelConfig, name)
    }
    for row in family.config:
        if isinstance(row, Field):
            found.add(row.ours)
        elif isinstance(row, Group):
            found |= set(row.ours)
            if "rope_scaling" not in row.names:  # then there is no rule of longer contexts
                found.discard("rope")
    return found


def rows() -> list[tuple[str, ...]]:
    """The table, a row for each family and one for llama2.c."""
    out = []
    for family in FAMILIES.values():
        fixed, names = family.fixed, settable(family)
        positions = str(fixed.get("position", "rope or alibi"))
        placement = str(fixed.get("norm_placement", "pre or post"))
        placement = placement if "norm_placement" in names else "pre"
        parts = [f"{fixed['norm']} norm, {placement}"]
        if "parallel_block" in names:
            parts.append("parallel")
        if fixed.get("variant") == "sink_logit":
            parts.append("sink logits")
        features = [label for name, label in FEATURES.items() if name in names]
        out.append(
            (
                family.name,
                family.covers,
                positions,
                ", ".join(parts),
                ", ".join(features),
                family.cite,
            )
        )
    llama2c = ("llama2.c", "files of version 0, e.g. stories260K", "rope", "rms norm, pre")
    return [*out, (*llama2c, "grouped KV heads, tied head", "github.com/karpathy/llama2.c")]


def table() -> Table:
    """The table, as docs/models.md shows it."""
    return Table.of("", COLUMNS, rows(), "l")


def check(names: list[str]) -> None:
    """Say of config files, directories, GGUF files and hub ids whether they would load."""
    verdicts = [would_load(name) for name in names]
    good = [verdict.path for verdict in verdicts if verdict.accepted]
    whole = [path for path in good if not path.endswith(".json")]  # a config alone is no model
    shown = [
        (v.path, "accepted" if v.accepted else "refused", v.family, v.message, ", ".join(v.ignored))
        for v in verdicts
    ]
    headings = ("path", "verdict", "family", "message", "ignored")
    said = End(
        f"{len(good)} of {numbered(len(verdicts), 'path')} would load", "",
        "weights are not read: what a config does not say can still be refused",
        ("analyze", f"--model={whole[0]}") if whole else ("models",),
    )  # fmt: skip
    if not showing.printed():  # a line each on stdout, and nothing else
        print("\n".join(map(line_of, verdicts)))
        conclude(Console(stderr=True), said)
        return
    found = Section("check", Table.of("", headings, shown, "l"))
    showing.listed([found], list(map(asdict, verdicts)), said)


def line_of(verdict: Verdict) -> str:
    """What is said of one path, in one line."""
    if not verdict.accepted:
        return f"refused   {verdict.path}: {verdict.message}"
    ignored = f"; ignored: {', '.join(verdict.ignored)}" if verdict.ignored else ""
    return f"accepted  {verdict.path}: {verdict.family}, {verdict.message}{ignored}"


def main() -> None:
    """Print the table, or what --check asks for."""
    if FLAGS.check is not None:
        if "" in FLAGS.check:
            raise InputError("check", None, "--check PATH [PATH...]", "no path")
        check(FLAGS.check)
        return
    said = End(
        f"{len(FAMILIES)} families of published models load, and llama2.c's files", "",
        "what the reference reads and this does not is refused by name",
        ("models", "--check", "PATH"),
    )  # fmt: skip
    found = [dict(zip(COLUMNS, row, strict=True)) for row in rows()]
    showing.listed([Section("models", table())], found, said)


def each_path(arguments: list[str]) -> list[str]:
    """Every path after --check as a flag of its own: absl gives a flag one value."""
    out: list[str] = []
    checking = False
    for number, argument in enumerate(arguments):
        if argument.startswith("-"):
            named = [x for x in arguments[number + 1 : number + 2] if not x.startswith("-")]
            checking = argument in ("--check", "-check")
            out += [] if checking and named else ["--check="] if checking else [argument]
        else:
            out.append(f"--check={argument}" if checking else argument)
    return out


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_multi_string(
        "check", None, "config files, directories, GGUF files or hub ids: would they load?"
    )
    showing.define_formats()


if __name__ == "__main__":
    define_flags()
    sys.argv[1:] = each_path(sys.argv[1:])
    launch.launch(main, OFTEN)
