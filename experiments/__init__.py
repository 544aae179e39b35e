"""Commands: `python -m experiments.NAME`, or `sysout NAME` where the wheel is installed.

What must be so before the first import, which takes seconds: Ctrl-C ends in a line, and no file
that is opened gets the number of a standard stream that is closed, as `>&-` closes it.
"""

import os
import signal
import sys


def end(*_: object) -> None:
    """End at once: nothing is begun yet that could be left half-written."""
    os.write(2, b"error: interrupted\n")
    os._exit(130)


def ready() -> None:
    """Prepare the process: see above."""
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may ignore it
        signal.signal(signal.SIGINT, end)


if sys.argv[:1] == ["-m"]:  # which it is while Python looks for the module that -m names
    ready()
