"""`sysout NAME --flags`: the commands of experiments/, of a clone or as the wheel carries them."""

import ast
import importlib
import importlib.util
import pkgutil
import runpy
import sys
from types import ModuleType

from sysout_jax.errors import InputError


def main() -> None:
    """Run a command as `python -m` does; without a name, list them."""
    commands = _commands()
    commands.ready()
    name, names = sys.argv[1] if len(sys.argv) > 1 else "--help", _names(commands)
    if name in ("--help", "-h"):
        print("sysout NAME --flags; sysout NAME --help\n")
        print("\n".join(f"  {each:<12} {_purpose(commands, each)}" for each in names))
    elif name in names:
        del sys.argv[1]
        runpy.run_module(f"{commands.__name__}.{name}", run_name="__main__", alter_sys=True)
    else:
        sys.exit(f"error: {InputError('command', repr(name), ', '.join(names), 'unknown')}")


def _commands() -> ModuleType:
    """The package of the commands: beside this one in a clone, in it as the wheel has it."""
    inside = f"{__package__}.experiments"
    return importlib.import_module(inside if importlib.util.find_spec(inside) else "experiments")


def _names(commands: ModuleType) -> list[str]:
    return sorted(
        found.name for found in pkgutil.iter_modules(commands.__path__) if not found.ispkg
    )


def _purpose(commands: ModuleType, name: str) -> str:
    """The first line of a command's text, without importing what it needs."""
    spec = importlib.util.find_spec(f"{commands.__name__}.{name}")
    source = spec.loader.get_source(spec.name) if spec and spec.loader else ""  # type: ignore[attr-defined]
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
