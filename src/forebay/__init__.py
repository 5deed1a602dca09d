"""forebay: a data layer for Chainlit whose writes are batched and whose reads are one statement each."""

from forebay.data_layer import ForebayDataLayer
from forebay.errors import (
    AccessError,
    DatabaseError,
    ForebayError,
    LayerClosed,
    QueueFull,
    RowError,
    SchemaError,
    SettingsError,
    StatementError,
    TransientError,
    WrongLoop,
)
from forebay.lifespan import lifespan
from forebay.settings import Settings

__all__ = [
    "AccessError",
    "DatabaseError",
    "ForebayDataLayer",
    "ForebayError",
    "LayerClosed",
    "QueueFull",
    "RowError",
    "SchemaError",
    "Settings",
    "SettingsError",
    "StatementError",
    "TransientError",
    "WrongLoop",
    "lifespan",
]
