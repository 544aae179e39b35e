"""The exceptions that mean something to a user; every binary prints them as one line."""

import re
from collections.abc import Callable

# Of another argument that a text speaks of; not within a path, which may hold hyphens as well.
_NAMED = re.compile(r"(?<![\w/.-])--([a-z]\w*)")


class InputError(ValueError):
    """Bad input: the argument or file at fault, what was found there, and what is accepted.

    As text it is one line, "field=found: why; accepted: accepted". Where it speaks of other
    arguments, `why` and `accepted` write them as flags are written, "--width": Python users read
    their names alone, and `line` gives each name as the caller's users know it.

    field: the name of the argument, or the file.
    found: its value; None where that is too long to repeat, or where `why` says all.
    accepted: what would have done.
    why: what is wrong, where it does not follow from the two.
    """

    def __init__(self, field: str, found: object = None, accepted: str = "", why: str = "") -> None:
        super().__init__(field, found, accepted, why)
        self.field, self.found, self.accepted, self.why = field, found, accepted, why

    def __str__(self) -> str:
        return self.line(str)

    def line(self, named: Callable[[str], str]) -> str:
        """The text, with the name of each argument as `named` gives it."""
        if self.found is None and not self.accepted and not self.why:
            return self.field
        what = named(self.field) if self.field.isidentifier() else self.field
        what = what if self.found is None else f"{what}={self.found}"
        parts = [self.why, f"accepted: {self.accepted}" if self.accepted else ""]
        return f"{what}: {as_named('; '.join(filter(None, parts)), named)}"


def as_named(text: str, named: Callable[[str], str]) -> str:
    """A text that writes arguments as flags, with each as `named` gives it."""
    return _NAMED.sub(lambda found: named(found[1]), text)


class Diverged(ArithmeticError):
    """A loss that is not finite, which ends a run."""

    def __init__(self, variant: str, step: int, seed: int, loss: float) -> None:
        super().__init__(
            f"loss is {loss} at step {step} of seed {seed}, variant {variant}; "
            "try a smaller lr, a longer warmup or a smaller clip"
        )
        self.step, self.seed = step, seed


class Preempted(Exception):
    """A run that was asked to stop, and did: what there is to go on from is on disk."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, of a command that cannot go on where it stopped."""


def reason(error: object) -> str:
    """The first line of what an exception says, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
