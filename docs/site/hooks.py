"""What mkdocs needs beside its plugins: links that leave docs/ lead to the repository, where that has an address."""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)\s]*)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Replace links to files outside of docs/: by their address in the repository, or else by their text."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, found[2]))
        if path.startswith("docs/"):
            return found[0]
        return f"[{found[1]}]({config.repo_url}/blob/main/{path})" if config.repo_url else found[1]

    return _LINK.sub(replaced, markdown)
