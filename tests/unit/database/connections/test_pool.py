"""The connections that readers share, on SQLite files."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa

from forebay.database.connections.endpoint import Endpoint
from forebay.database.connections.pool import Connections, Held
from forebay.database.sql.statement import Statement
from forebay.database.translation import translated
from forebay.errors import DatabaseError, TransientError, told
from forebay.settings import Settings
from tests.support.patience import FOR_EVER, patience


def _connections(path: Path) -> Connections:
    endpoint = Endpoint(sa.make_url(f"sqlite+aiosqlite:///{path}"), {}, Settings(), 2)
    return Connections(endpoint, most=2, patience=FOR_EVER)


@pytest.fixture
async def connections(tmp_path: Path) -> AsyncIterator[Connections]:
    connections = _connections(tmp_path / "file.db")
    yield connections
    assert connections.lent == 0
    await connections.close()


async def _waiting(connections: Connections, number: int) -> list[asyncio.Task[Held]]:
    waiting = [asyncio.create_task(connections.take()) for _ in range(number)]
    await asyncio.sleep(0)
    return waiting


async def test_who_waits_gets_it_in_the_loops_next_turn(connections: Connections) -> None:
    """In order. With a busy loop each turn takes long."""
    first, second = await connections.take(), await connections.take()
    earlier, later = await _waiting(connections, 2)
    await connections.give(second)
    await asyncio.sleep(0)
    assert earlier.done()
    assert not later.done()
    assert earlier.result() is second
    await connections.give(first)
    assert await later is first
    await connections.give(first)
    await connections.give(second)


async def test_who_does_not_wait_any_more_gets_none(connections: Connections) -> None:
    first, second = await connections.take(), await connections.take()
    cancelled, patient = await _waiting(connections, 2)
    cancelled.cancel()
    await connections.give(first)
    assert await patient is first
    await connections.give(first)
    await connections.give(second)


async def test_what_somebody_got_who_is_cancelled_at_that_moment_goes_on(connections: Connections) -> None:
    first, second = await connections.take(), await connections.take()
    cancelled, patient = await _waiting(connections, 2)
    await connections.give(first)
    cancelled.cancel()
    assert await patient is first
    await connections.drop(first)
    (late,) = await _waiting(connections, 1)
    opened = await late
    (cancelled, patient) = await _waiting(connections, 2)
    await connections.drop(second)
    cancelled.cancel()
    await connections.give(await patient)
    await connections.give(opened)


async def test_a_dropped_one_leaves_room_for_another(connections: Connections) -> None:
    first, second = await connections.take(), await connections.take()
    (waiting,) = await _waiting(connections, 1)
    await connections.drop(first)
    another = await waiting
    assert another is not first
    await connections.give(another)
    await connections.give(second)


async def test_one_that_can_not_be_opened_leaves_room(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    connections = _connections(folder / "file.db")
    for _ in range(3):
        with pytest.raises(DatabaseError):
            await connections.take()
    folder.mkdir()
    await connections.give(await connections.take())
    assert connections.lent == 0
    await connections.close()


async def test_patience_ends(connections: Connections) -> None:
    first, second = await connections.take(), await connections.take()
    connections._patience = 0.01
    with pytest.raises(TransientError, match="FOREBAY_POOL_SIZE"):
        await connections.take()
    await connections.give(first)
    await connections.give(second)


async def test_of_those_that_nobody_needs_one_is_kept(connections: Connections) -> None:
    first, second = await connections.take(), await connections.take()
    await connections.give(first)
    await connections.give(second)
    assert second.connection.closed
    assert not first.connection.closed
    assert await connections.take() is first
    await connections.give(first)


async def test_sqlite_ends_what_nobody_waits_for() -> None:
    forever = "WITH RECURSIVE more(x) AS (SELECT 1 UNION ALL SELECT x FROM more) SELECT count(*) FROM more"
    connections = Connections(
        Endpoint(sa.make_url("sqlite+aiosqlite://"), {}, Settings(), 2), most=2, patience=0.2
    )
    async with connections.held(60) as held:
        driver = held.driver
        asked = asyncio.ensure_future(driver.fetch(Statement(forever, ()), {}))
        started = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, started.set)
        await started.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        async with patience():
            assert [tuple(row) for row in await driver.fetch(Statement("SELECT 1", ()), {})] == [(1,)]
    await connections.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "no address is known for the host's name"),
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.4', 5432)"), "nobody listens"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 5)"), "nobody listens"),
        (OSError(113, "No route to host"), "No route to host"),
        (TimeoutError(), "it does not answer in time"),
        (ssl.SSLCertVerificationError("hostname 'db.internal' mismatch"), "TLS with the database failed"),
        (asyncpg.InterfaceError("connection is closed"), "the connection was closed"),
        (asyncpg.InvalidPasswordError('password authentication failed for user "me"'), "refuses the login"),
        (asyncpg.InvalidCatalogNameError('database "chat" does not exist'), "no such database"),
    ],
)
def test_an_error_says_why_in_words_and_not_where(error: Exception, words: str) -> None:
    """Chainlit shows its text to whoever chats, and a probe to whoever asks."""
    for sends_rows in (True, False):
        with (
            pytest.raises(DatabaseError) as raised,
            translated("postgresql://me:***@db.internal/chat", sends_rows=sends_rows),
        ):
            raise error
        said = str(raised.value)
        assert words in said
        for secret in ("db.internal", "me:", '"me"', "10.0.0.4", '"chat"', type(error).__name__):
            assert secret not in said
        assert told(raised.value) == f"{said} [postgresql://me:***@db.internal/chat]"
