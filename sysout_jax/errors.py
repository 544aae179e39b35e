"""The exception that means the user's input is at fault; every binary prints it as one line."""


class InputError(ValueError):
    """Bad input: names the flag or file, what was found and what is accepted, in one line."""


class Diverged(ArithmeticError):
    """A loss that is not finite, which ends a run."""

    def __init__(self, variant: str, step: int, seed: int, loss: float) -> None:
        super().__init__(
            f"loss is {loss} at step {step} of seed {seed}, variant {variant}; "
            "try a smaller --lr, a longer --warmup or a smaller --clip"
        )
        self.step, self.seed = step, seed


class Preempted(Exception):
    """A run that was asked to stop, and did: what there is to go on from is on disk."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, of a command that cannot go on where it stopped."""


def reason(error: object) -> str:
    """The first line of what an exception says, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
