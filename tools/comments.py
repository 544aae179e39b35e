"""Fields of dataclasses in the API reference: the comment behind each is its description."""

from typing import Any

import griffe


class Comments(griffe.Extension):
    """Adds "Attributes:" to the docstring of a class whose fields have comments."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe for each class that it has read."""
        if cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        lines = cls.lines_collection[cls.filepath]
        fields = []
        for name, member in cls.attributes.items():
            line = lines[member.lineno - 1] if member.lineno else ""
            said = line.partition("  # ")[2]
            if said and member.annotation and not name.startswith("_"):
                fields.append(f"  {name}: {said}")
        if fields:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(fields)
