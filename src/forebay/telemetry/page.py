"""A page to look at, on the operators' port: do writes keep up, was anything lost, what is wrong and what to type.

One HTML text without anything from outside. Its script reads `/metrics` and `/readyz` of the same port every two
seconds, so it shows what they show and no more: no content, no ids. The page allows itself nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


_STYLE, _SCRIPT = _text("page.css"), _text("page.js")
PAGE = _text("page.html").replace("/* style */", _STYLE).replace("/* script */", _SCRIPT)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
