"""An element's content: spooled, fetched, uploaded, signed, served, deleted.

Its door: `Access`, `access`, `Attachments`, `attachments_of`, `Comparison`, `configured_storage`, `Fate`,
`former_storage`, `Listed`, `LocalStorageClient`, `Mover`, `Orphans`, `Plan`, `require_ours`, `Tally`,
`threads_in_spool`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forebay.attachments.attachments import Attachments, attachments_of
    from forebay.attachments.folder import LocalStorageClient
    from forebay.attachments.providers import configured_storage

__all__ = ["Attachments", "LocalStorageClient", "attachments_of", "configured_storage"]

_MODULES = {
    "Attachments": "attachments",
    "attachments_of": "attachments",
    "LocalStorageClient": "folder",
    "configured_storage": "providers",
}

if not TYPE_CHECKING:  # a type checker knows which names there are, and which not

    def __getattr__(name: str) -> Any:
        """What needs Chainlit is imported when asked for: importing it takes seconds and writes into its root."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
