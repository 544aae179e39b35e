"""One error, in the words of Python users and of those of a command."""

import pickle

import pytest

from sysout_jax.errors import InputError


@pytest.mark.parametrize(
    ("error", "python", "command"),
    [
        (
            InputError("heads", 3, "a divisor, or any with --head_dim", "not of --width=7"),
            "heads=3: not of width=7; accepted: a divisor, or any with head_dim",
            "--heads=3: not of --width=7; accepted: a divisor, or any with --head_dim",
        ),
        (InputError("batch", 0, "at least 1"), "batch=0: accepted: at least 1", None),
        (InputError("tokens", None, "ids", "text"), "tokens: text; accepted: ids", None),
        (InputError("a/--x.json", why="cut short"), "a/--x.json: cut short", None),
        (
            InputError("f", "\x1b[2J", "ids", "a\nb\xa0é"),
            r"f=\x1b[2J: a\nb\xa0é; accepted: ids",
            None,
        ),
        (InputError("f", "x" * 5000, "y"), f"f={'x' * 498}...: accepted: y", None),
        (InputError("f", why="x " * 5000), f"f: {'x ' * 1998}x...", None),
        (
            InputError("x", None, "what `pip install --no-deps --user y` brings, --no-x"),
            "x: accepted: what `pip install --no-deps --user y` brings, --no-x",
            None,
        ),
        (InputError("nothing of it"), "nothing of it", None),
    ],
)
def test_an_error_is_one_line(error, python, command):
    assert str(error) == python
    assert error.of_command({"heads", "width"}) == (command or python)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.field, again.found) == (python, error.field, error.found)


def test_a_command_names_its_flags(capsys, monkeypatch):
    from absl import flags

    from experiments.cli import ending, launch

    def main():
        raise InputError("log_dir", 1, "with --other", "not of a/--b")

    assert "log_dir" in flags.FLAGS
    for module in (launch, ending):
        monkeypatch.setattr(module, "FLAGS", {"log_dir": flags.FLAGS["log_dir"]})
    assert launch.guarded(main, ["program"]) == 2
    assert capsys.readouterr().err == "error: --log_dir=1: not of a/--b; accepted: with --other\n"
