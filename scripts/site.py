"""A hook of MkDocs: on the site, a link to a file outside docs/ becomes the file's name.

On GitHub such a link leads there. The site holds docs/ alone, and a link that leads nowhere fails its build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page with the names of those files."""
    root = Path(config.config_file_path).parent
    folder = Path(page.file.abs_src_path).parent

    def without(link: re.Match[str]) -> str:
        text, target, _ = link.groups()
        if re.match(r"\w+:", target):
            return link[0]
        path = Path(os.path.normpath(folder / target))
        if not path.exists() or path.is_relative_to(config.docs_dir):
            return link[0]
        name = path.relative_to(root)
        return f"`{name}`" if text.rstrip("/") in str(name) else f"{text} (`{name}`)"

    return _LINK.sub(without, markdown)
