"""forebay: a data layer for Chainlit whose writes are batched and whose reads are one statement each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forebay.errors import (
    AccessError,
    ChangeTooLarge,
    DatabaseError,
    DeletionIncomplete,
    FetchError,
    ForebayError,
    InvalidId,
    JournalError,
    LayerClosed,
    LayerForked,
    OverrideError,
    QueueFull,
    RowError,
    SchemaError,
    SearchBusy,
    SettingsError,
    StatementError,
    StorageError,
    ThreadHeldUp,
    TransientError,
    WrongLoop,
)
from forebay.settings import Settings

if TYPE_CHECKING:
    from forebay.attachments import LocalStorageClient
    from forebay.layer.data_layer import ForebayDataLayer
    from forebay.layer.lifespan import lifespan

__all__ = [
    "AccessError",
    "ChangeTooLarge",
    "DatabaseError",
    "DeletionIncomplete",
    "FetchError",
    "ForebayDataLayer",
    "ForebayError",
    "InvalidId",
    "JournalError",
    "LayerClosed",
    "LayerForked",
    "LocalStorageClient",
    "OverrideError",
    "QueueFull",
    "RowError",
    "SchemaError",
    "SearchBusy",
    "Settings",
    "SettingsError",
    "StatementError",
    "StorageError",
    "ThreadHeldUp",
    "TransientError",
    "WrongLoop",
    "lifespan",
]

if not TYPE_CHECKING:  # a type checker knows which names there are, and which not

    def __getattr__(name: str) -> Any:
        """What needs Chainlit is imported when asked for: importing it takes seconds and writes into its root."""
        if name == "ForebayDataLayer":
            from forebay.layer.data_layer import ForebayDataLayer

            return ForebayDataLayer
        if name == "lifespan":
            from forebay.layer.lifespan import lifespan

            return lifespan
        if name == "LocalStorageClient":
            from forebay.attachments import LocalStorageClient

            return LocalStorageClient
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
