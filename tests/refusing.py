"""What is said to whom asks for what cannot be."""

from collections.abc import Callable
from typing import Any

import pytest

from sysout_jax.errors import InputError


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The one line with which a call refuses its input."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message, message
    return message
