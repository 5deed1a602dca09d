"""What is stored stays, whoever else writes the row at the same time, and whatever another program has put there."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from forebay import Settings
from forebay.database.store import Store
from forebay.model import changes
from tests.support.patience import patience

THREAD, STEP = str(uuid.uuid4()), str(uuid.uuid4())


@pytest.fixture
async def store(migrated_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(migrated_url, Settings(journal_dir=tmp_path))
    yield store
    await store.close()


async def rows(store: Store, query: str) -> list[dict[str, Any]]:
    found = await store.execute_sql(query, {})
    assert isinstance(found, list)
    return found


async def waits_for_a_lock(connection: asyncpg.Connection) -> None:
    """Return when some statement of this database waits for another transaction."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with patience():
        while not await connection.fetchval(waiting):  # noqa: ASYNC110 - it is the database that waits
            await asyncio.sleep(0.01)


async def test_a_default_does_not_overwrite_what_another_process_inserts_meanwhile(
    migrated_postgres_url: str, tmp_path: Path
) -> None:
    store = Store(migrated_postgres_url, Settings(journal_dir=tmp_path))
    await store.apply([changes.thread(THREAD, "a name")])
    other, onlooker = [await asyncpg.connect(migrated_postgres_url) for _ in range(2)]
    await other.execute("BEGIN")
    await other.execute(
        'INSERT INTO steps (id, "threadId", name, type, streaming, "createdAt") VALUES ($1, $2, $3, $4, $5, $6)',
        *(STEP, THREAD, "My tool", "tool", True, "2026-01-01T00:00:00Z"),
    )
    part = {"id": STEP, "threadId": THREAD, "metadata": {"favorite": True}, "streaming": False}
    writing = asyncio.create_task(store.apply([changes.step(part)]))
    await waits_for_a_lock(onlooker)
    await other.execute("COMMIT")
    await writing
    (stored,) = await rows(store, 'SELECT name, type, streaming, metadata, "createdAt" FROM steps')
    assert (stored["name"], stored["type"], stored["createdAt"]) == (
        "My tool",
        "tool",
        "2026-01-01T00:00:00Z",
    )
    assert stored["streaming"] is False, "what it did bring counts"
    assert "favorite" in str(stored["metadata"])
    await other.close()
    await onlooker.close()
    await store.close()


@pytest.mark.parametrize("stored", ["null", '"text"', "3", "[1]", "true"])
@pytest.mark.parametrize("late", [False, True])
async def test_metadata_that_is_no_object_counts_as_an_empty_one(
    store: Store, stored: str, late: bool
) -> None:
    is_postgres = store.url.get_backend_name() == "postgresql"
    value = f"CAST('{stored}' AS JSONB)" if is_postgres else f"'{stored}'"
    written_at = 2**60 if late else 1
    columns = 'id, metadata, "forebayWrittenAt"'
    await store.execute_sql(f"INSERT INTO threads ({columns}) VALUES ('{THREAD}', {value}, {written_at})", {})
    for _ in range(2):
        await store.apply([changes.step({"id": STEP, "threadId": THREAD})], late=late)
    await store.apply([changes.thread(THREAD, None, None, {"key": "value", "gone": None})], late=late)
    (thread,) = await rows(store, "SELECT metadata FROM threads")
    metadata = thread["metadata"]
    assert (json.loads(metadata) if isinstance(metadata, str) else metadata) == {"key": "value"}
    assert len(await rows(store, "SELECT id FROM steps")) == 1
