"""Queries that commands make, which are not among the prepared statements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

Row = Mapping[str, Any]


async def rows_of(
    connection: AsyncConnection, query: sa.Executable, parameters: Mapping[str, Any] | None = None
) -> list[Row]:
    """The query's rows by name, whole. What a driver raises goes through."""
    found = (await connection.execute(query, parameters)).mappings()
    # The names as plain text: SQLAlchemy's are a kind of it that JSON does not take for a key.
    return [{str(name): value for name, value in row.items()} for row in found]
