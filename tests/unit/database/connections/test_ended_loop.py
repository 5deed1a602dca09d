"""A connection to a SQLite file whose event loop has ended lets go of the file."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from forebay.database.connections.endpoint import Endpoint
from forebay.database.connections.sqlite_file import File
from forebay.settings import Settings
from tests.support.patience import PATIENCE

# What a thread is at for a while, so that its answer comes when the loop is closed.
_LONG = """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000)
SELECT max(i) FROM n"""


@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.filterwarnings("ignore")  # the thread ends by an error, the connection is never given back
def test_what_it_had_begun_is_taken_back(tmp_path: Path, busy: bool) -> None:
    path = tmp_path / "chat.db"
    endpoint = Endpoint(sa.make_url(f"sqlite+aiosqlite:///{path}"), {}, Settings(), 2)
    kept: list[Any] = []  # as the frames of what was on its way keep it

    async def begin() -> None:
        connection = await endpoint.engine.connect()
        await connection.exec_driver_sql("CREATE TABLE t (a)")
        await connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        raw: Any = (await connection.get_raw_connection()).driver_connection
        kept.extend((connection, raw))
        if busy:
            kept.append(asyncio.ensure_future(raw.execute(_LONG)))
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()

    def write() -> None:
        with sqlite3.connect(path, timeout=PATIENCE) as another:
            another.execute("CREATE TABLE IF NOT EXISTS t (a)")
            another.execute("INSERT INTO t VALUES (2)")
            assert another.execute("SELECT * FROM t").fetchall() == [(2,)]
        another.close()

    async def go_on() -> None:
        endpoint.forget_connections()
        await asyncio.to_thread(write)

    gc.disable()
    try:
        asyncio.run(go_on())
    finally:
        gc.enable()
        kept.clear()
        gc.collect()  # here, where its warnings are expected


def test_what_is_read_half_holds_up_no_commit(tmp_path: Path) -> None:
    """As in a file that is not in WAL mode, where a commit waits for all readers."""
    path = tmp_path / "chat.db"
    reader = sqlite3.connect(path, factory=File)
    reader.executescript(
        "PRAGMA journal_mode = DELETE; CREATE TABLE t (a); INSERT INTO t VALUES (1), (2), (3)"
    )
    half_read = reader.execute("SELECT * FROM t")
    assert half_read.fetchone() == (1,)
    writer = sqlite3.connect(path, timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"), writer:
        writer.execute("DELETE FROM t")
    reader.close()
    with writer:
        writer.execute("DELETE FROM t")
    writer.close()
