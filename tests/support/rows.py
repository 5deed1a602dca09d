"""What a database has, seen past forebay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from forebay.database.urls import parse_url
from tests.support.patience import PATIENCE


async def rows(url: str, query: str) -> list[Any]:
    """The rows of a query."""
    engine = create_async_engine(parse_url(url)[0])
    async with engine.connect() as connection:
        found: Sequence[Any] = (await connection.execute(sa.text(query))).mappings().all()
    await engine.dispose()
    return list(found)


async def become(url: str, query: str, expected: list[dict[str, Any]]) -> None:
    """Wait until a query gives these rows: what was acknowledged is written a little later."""
    async for attempt in AsyncRetrying(
        wait=wait_fixed(0.05),
        stop=stop_after_delay(PATIENCE),
        retry=retry_if_exception_type(AssertionError),
        reraise=True,
    ):
        with attempt:
            assert [dict(row) for row in await rows(url, query)] == expected
