"""What the database alone takes: the rows of a load through COPY, and through forebay's batch statement.

Neither has a queue, a journal or sessions; the batches are as large as forebay's can be.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg
from sqlalchemy.dialects import postgresql

from forebay.bench.plan import Load, Subject
from forebay.bench.workload import new_id, turn
from forebay.database.sql.batch_parameters import Documents, documents
from forebay.database.sql.statements import Statements
from forebay.model import changes, schema
from forebay.model.changes import Upsert
from forebay.settings import Settings

_STATEMENTS = Statements(postgresql.asyncpg.dialect())


async def write(subject: Subject, url: str, load: Load) -> tuple[int, float, float]:
    """Write the rows that a load ends with: how many, the seconds, the seconds of CPU in this process."""
    batches = _batches(load)
    rows = sum(len(batch) for batch in batches)
    connection = await asyncpg.connect(url)
    try:
        if subject.kind == "copy":
            with _settled():
                return rows, *await _copy(connection, batches)
        encoded = [documents(batch) for batch in batches] if subject.kind == "encoded" else None
        await _batch(connection, [[]], None)  # compiled and prepared before the clock runs
        with _settled():
            return rows, *await _batch(connection, batches, encoded)
    finally:
        await connection.close()


@contextmanager
def _settled() -> Iterator[None]:
    """No collection goes through all rows of the load while the clock runs, and finds nothing."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _batches(load: Load) -> list[list[Upsert]]:
    """A turn of every session after the other, each row as it is at last, in batches."""
    thread_ids = [new_id() for _ in range(load.sessions)]
    final: dict[str, Upsert] = {}
    for number in range(load.turns):
        for thread_id in thread_ids:
            for written in turn(thread_id, number, load.step_bytes, updates=False):
                change = changes.step(written.values)
                final[change.key] = change
    rows, size = list(final.values()), Settings(database_url=None).batch_max_rows
    return [rows[start : start + size] for start in range(0, len(rows), size)]


async def _batch(
    connection: asyncpg.Connection, batches: Sequence[list[Upsert]], encoded: list[Documents] | None
) -> tuple[float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    for number, batch in enumerate(batches):
        document = encoded[number] if encoded is not None else documents(batch)
        statement = _STATEMENTS.batch(partial=document.partial, late=False, checkpoint=False)
        await connection.fetch(statement.sql, *statement.arguments(document.parameters))
    return time.perf_counter() - started, time.process_time() - cpu


async def _copy(connection: asyncpg.Connection, batches: Sequence[list[Upsert]]) -> tuple[float, float]:
    await _make_threads(connection, batches)
    columns = [column.name for column in schema.steps.columns]
    records = [[_record(change, columns) for change in batch] for batch in batches]
    started, cpu = time.perf_counter(), time.process_time()
    for batch in records:
        await connection.copy_records_to_table("steps", records=batch, columns=columns)
    return time.perf_counter() - started, time.process_time() - cpu


async def _make_threads(connection: asyncpg.Connection, batches: Sequence[list[Upsert]]) -> None:
    ids = {change.thread_id for batch in batches for change in batch}
    await connection.execute("INSERT INTO threads (id) SELECT unnest($1::uuid[])", sorted(filter(None, ids)))


def _record(change: Upsert, columns: Sequence[str]) -> tuple[Any, ...]:
    row = {**change.row, "streaming": False}
    return tuple(value.decode() if isinstance(value := row.get(name), bytes) else value for name in columns)
