"""Object keys that every storage takes, whatever somebody has named a file.

S3, Google's and Azure's storages take keys of up to 1,024 bytes, and no index of PostgreSQL takes an entry of more than
some 2,700.
"""

from __future__ import annotations

import hashlib
import re

from forebay.model import cleaning

_ID_BYTES = 200
_NAME_BYTES = 400
_ENDING_CHARS = 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def object_key(user_id: str, element_id: str, name: str) -> str:
    """`{user}/{element}/{name}`, in at most 802 bytes; a name that is cut keeps its beginning and its ending."""
    parts = (_cut(user_id, _ID_BYTES), _cut(element_id, _ID_BYTES), _cut(name, _NAME_BYTES))
    return "/".join(part for part in parts if part)


def _cut(part: str, most: int) -> str:
    """A part of a key: without control characters or steps to other folders; what is too long ends in a digest."""
    clean = _CONTROL.sub("_", cleaning.text(part))
    if any(step in (".", "..") for step in clean.split("/")):
        clean = clean.replace("/", "_").lstrip(".") or "_"
    if len(clean.encode()) <= most:
        return clean
    ending = clean[clean.rfind(".") :] if "." in clean[-_ENDING_CHARS:] else ""
    digest = hashlib.sha256(clean.encode()).hexdigest()[:16]
    tail = f"~{digest}{ending}"
    return clean.encode()[: most - len(tail.encode())].decode("utf-8", "ignore") + tail
