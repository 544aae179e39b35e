"""The pages of docs/commands: what a command's module says of it, and its flags.

`tests.pages` writes them.
"""

import dataclasses
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from sysout_jax.model.rope import RULES, Rope
from sysout_jax.model.rope import flag as rope_flag
from sysout_jax.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "commands"
PARTS = re.compile(r"<!-- (command|flags) -->\n.*?\n?<!-- end -->", re.S)
TAKES = {
    "bool": "yes or no", "int": "an integer", "float": "a number", "string": "text",
    "comma separated list of strings": "a list, with commas", "multi string": "text, repeated",
}  # fmt: skip


def binaries() -> list[ModuleType]:
    """What can be run as `python -m experiments.NAME`."""
    files = sorted((ROOT / "experiments").glob("*.py"))
    return [
        importlib.import_module(f"experiments.{path.stem}")
        for path in files
        if '__name__ == "__main__"' in path.read_text()
    ]


def define(module: ModuleType) -> None:
    """Define the flags of one binary, and of no other: they share names."""
    for name in list(flags.FLAGS):
        if str(flags.FLAGS.find_module_defining_flag(name)).startswith("experiments"):
            delattr(flags.FLAGS, name)
    module.define_flags()


def table(module: ModuleType) -> str:
    """The flags of one binary in Markdown; of one that trains, those of training that it has as
    they are there are named alone."""
    config = module.Config() if hasattr(module, "Config") else None
    studies = getattr(config, "studies", ())
    own = rows(module, *([config] if config else []), *studies)
    if not studies and not isinstance(getattr(config, "train", None), TrainConfig):
        return _table(own)
    shared = training()
    absent = ", ".join(f"`--{name}`" for name in shared if name not in own)
    told = f"All flags of [training](training.md){' but ' if absent else ''}{absent}."
    kept = {name: row for name, row in own.items() if row != shared.get(name)}
    both = " Of two defaults the first is Backcopy's, the other that of text." if studies else ""
    return f"{_table(kept)}\n\n{told} Above is what differs from there.{both}"


def training() -> dict[str, str]:
    """The rows of the flags of training, with their usual defaults."""
    variants, usual = importlib.import_module("experiments.variants"), TrainConfig()
    names = {name for name, _ in fields(usual, tuple(RULES.values()))} - {"corpus"}  # a list there
    return {name: row for name, row in rows(variants, usual).items() if name in names}


def rows(module: ModuleType, *configs: Any) -> dict[str, str]:
    """Flag of one binary -> its row; defaults are those of configs where the flag has none."""
    define(module)
    of = [dict(fields(config, tuple(RULES.values()))) for config in configs]
    found = {}
    for name in sorted(flags.FLAGS):
        if not str(flags.FLAGS.find_module_defining_flag(name)).startswith("experiments"):
            continue
        flag = flags.FLAGS[name]
        values = [each.get(name) for each in of] if flag.default is None else [flag.default]
        default = " or ".join(dict.fromkeys(shown for shown in map(_shown, values) if shown))
        said = " ".join(flag.help.split()).replace("|", r"\|")
        found[name] = f"| `--{name}` | {TAKES[flag.flag_type()]} | {default} | {said} |"
    return found


def _table(found: dict[str, str]) -> str:
    return "\n".join(["| flag | takes | default | |", "| --- | --- | --- | --- |", *found.values()])


def fields(config: Any, rules: tuple[type[Rope], ...] = ()) -> Any:
    """(name, value) of every field, at any depth; of rotary rules that it has not, the defaults."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Rope):
            for of_rule in (*(rule() for rule in rules), value):
                yield from ((rope_flag(k), v) for k, v in dataclasses.asdict(of_rule).items())
        elif dataclasses.is_dataclass(value):
            yield from fields(value, rules)
        else:
            yield field.name, value


def _shown(value: Any) -> str:
    if value is None or value in ("", [], ()):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{value}`".replace("|", r"\|").replace("\n", r"\n")


def purpose(module: ModuleType) -> str:
    """What the text of a binary says of it in Markdown: a sentence, and commands."""
    first, _, commands = inspect.getdoc(module).partition("\n\n")  # type: ignore[union-attr]
    return f"{first}\n\n{textwrap.indent(commands, '    ')}"


def written(path: Path, page: str) -> str:
    """The page of a binary with its marked parts as the code is now."""

    def renewed(found: re.Match[str]) -> str:
        if path.stem == "training":
            said = _table(training())
        else:
            module = importlib.import_module(f"experiments.{path.stem}")
            said = {"command": purpose, "flags": table}[found[1]](module)
        return f"<!-- {found[1]} -->\n{said}\n<!-- end -->"

    return PARTS.sub(renewed, page)
