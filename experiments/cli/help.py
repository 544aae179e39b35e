"""What --help prints, and the line for a flag that cannot be read."""

import dataclasses
import difflib
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from sysout_jax.model.rope import RULES, Rope
from sysout_jax.model.rope import flag as rope_flag

FLAGS = flags.FLAGS
HELP = ("--help", "-help", "--helpshort", "-h")
WIDTH, COLUMN = 80, 26
KINDS = {
    "bool": "", "int": "=N", "float": "=X", "string": "=TEXT",
    "comma separated list of strings": "=A,B", "multi string": "=TEXT",
}  # fmt: skip


def page(text: str, often: Sequence[str], configs: Sequence[Any]) -> str:
    """What a command is for, the flags that people use, and the names of the others.

    Args:
      text: of the command's module.
      often: the flags that are explained, in this order.
      configs: what the command does when no flag is given, one for each of its studies.
    """
    often = often or sorted(ours())
    parts = [*map(_fitted, text.strip().splitlines()), "", "often used:"]
    parts += [_entry(name, configs) for name in often]
    others = sorted(ours() - set(often))
    parts += ["", "others, explained by --helpfull:"] if others else []
    groups = {name: _group(name, configs) for name in others}
    for group in dict.fromkeys(groups.values()):
        names = ", ".join(name for name in others if groups[name] == group)
        parts.append(textwrap.fill(f"  {group}: {names}", WIDTH, subsequent_indent="    "))
    return "\n".join(parts)


def unread(error: flags.Error) -> str:
    """The line for flags that cannot be parsed."""
    if not isinstance(error, flags.UnrecognizedFlagError):
        return f"error: {error}"
    near = difflib.get_close_matches(error.flagname, sorted(ours()), n=3)
    meant = f"did you mean {' or '.join(f'--{name}' for name in near)}? " if near else ""
    return f"error: --{error.flagname}: unknown flag; {meant}--help lists the accepted ones"


def ours() -> set[str]:
    """The flags of this command, without those of absl."""
    by_module = FLAGS.flags_by_module_dict()
    return {
        flag.name
        for module, defined in by_module.items()
        if "experiments" in module or "benchmarks" in module
        for flag in defined
    }


def _fitted(line: str) -> str:
    """A line of a command's text in lines that fit, which a shell reads as one where it is typed.

    What is said beside it comes nearer, or above it.
    """
    if len(line) <= WIDTH:
        return line
    command, said, comment = line.partition("  #")
    if said:
        near = f"{command.rstrip()}{said}{comment}"
        return near if len(near) <= WIDTH else f"#{comment}\n{_fitted(command.rstrip())}"
    lines = textwrap.wrap(
        line, WIDTH - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
    return " \\\n".join(lines) if line.startswith("python ") else textwrap.fill(line, WIDTH)


def _entry(name: str, configs: Sequence[Any]) -> str:
    flag = FLAGS[name]
    default = flag.default
    if default is None:
        values = dict.fromkeys(_shown(_field(config, name)) for config in configs)
        shown = " or ".join(value for value in values if value)
    else:
        shown = "" if default is False else _shown(default)
    said = " ".join((flag.help or "").split()) + (f" [{shown}]" if shown else "")
    left = f"  --{name}{KINDS[flag.flag_type()]}"
    lines = textwrap.wrap(said, WIDTH - COLUMN) or [""]
    if len(left) >= COLUMN:
        lines, left = ["", *lines], f"{left}\n"
        return left + "\n".join(" " * COLUMN + line for line in lines[1:])
    return left.ljust(COLUMN) + f"\n{' ' * COLUMN}".join(lines)


def _group(name: str, configs: Sequence[Any]) -> str:
    """What a flag is about: the class of configs that has it as a field."""
    found = (group for config in configs for group, field, _ in _fields(config) if field == name)
    return next(found, "").removesuffix("Config").lower() or "run"


def _field(config: Any, name: str) -> Any:
    return next((value for _, field, value in _fields(config) if field == name), None)


def _is_part(config: Any, name: str) -> bool:
    return dataclasses.is_dataclass(getattr(config, name))


def _fields(config: Any) -> Iterator[tuple[str, str, Any]]:
    """(class, name, value) of every field, at any depth, its own before those of its parts."""
    for field in sorted(dataclasses.fields(config), key=lambda f: _is_part(config, f.name)):
        value = getattr(config, field.name)
        if isinstance(value, Rope):
            for rule in (value, *(kind() for kind in RULES.values())):
                for name, number in dataclasses.asdict(rule).items():
                    yield "Rope", rope_flag(name), number
        elif dataclasses.is_dataclass(value):
            yield from _fields(value)
        else:
            yield type(config).__name__, field.name, value


def _shown(value: Any) -> str:
    if value is None or value is False:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
