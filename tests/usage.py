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
    """The flags of one binary in Markdown."""
    define(module)
    config = getattr(module, "Config", None)
    defaults = dict(fields(config(), tuple(RULES.values()))) if config else {}
    rows = ["| flag | takes | default | |", "| --- | --- | --- | --- |"]
    for name in sorted(flags.FLAGS):
        if not str(flags.FLAGS.find_module_defining_flag(name)).startswith("experiments"):
            continue
        flag = flags.FLAGS[name]
        default = _shown(defaults.get(name) if flag.default is None else flag.default)
        said = " ".join(flag.help.split()).replace("|", r"\|")
        rows.append(f"| `--{name}` | {TAKES[flag.flag_type()]} | {default} | {said} |")
    return "\n".join(rows)


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
    module = importlib.import_module(f"experiments.{path.stem}")
    made = {"command": purpose, "flags": table}
    return PARTS.sub(
        lambda found: f"<!-- {found[1]} -->\n{made[found[1]](module)}\n<!-- end -->", page
    )
