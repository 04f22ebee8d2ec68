"""Examples in docstrings shown as code: the parser of Google's style takes them for text outside of a section."""

import re
from typing import Any

from griffe import Extension

_EXAMPLE = re.compile(r"(?:^|(?<=\n\n))(>>> .*?)(?=\n\n|\Z)", re.S)


class Examples(Extension):
    """Puts a fence around every paragraph that begins with a prompt."""

    def on_instance(self, *, obj: Any, **options: Any) -> None:
        """Change the docstring of one module, class or function."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(r"```pycon\n\1\n```", obj.docstring.value)
