"""Reads on a standby: real streaming replication, paused, ended, promoted; a process always sees what it wrote."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from chainlit.types import ThreadDict

from forebay import ForebayDataLayer, RowError, Settings, SettingsError
from forebay.database import replica
from forebay.database.store import Store
from forebay.doctor.database import Target, check_database
from forebay.errors import ThreadHeldUp
from forebay.pipeline.drain import Drain
from forebay.telemetry.collector import Metrics
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, new_id, stored_thread, until
from tests.support.patience import patience
from tests.support.pgbouncer import Pgbouncer
from tests.support.postgres import PostgresServer, Standby, name_of
from tests.support.proxy import Proxy

_APPLICATION = "forebay_reads"


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresServer]:
    with PostgresServer(own=True) as server:
        yield server


@pytest.fixture(scope="module")
def shared_standby(primary: PostgresServer) -> Iterator[Standby]:
    """Not to be stopped."""
    with Standby(primary) as server:
        yield server


@pytest.fixture
def own_standby(primary: PostgresServer) -> Iterator[Standby]:
    with Standby(primary) as server:
        yield server


@pytest.fixture
async def url(primary: PostgresServer) -> str:
    """A migrated database of the primary's."""
    url = primary.create_database()
    store = Store(url, Settings())
    await store.migrate()
    await store.close()
    # It goes with the server: a standby replays nothing behind a DROP DATABASE while a session of its own is in there.
    return url


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "_RETRY", 0.0)
    monkeypatch.setattr(replica, "_CONNECT_TIMEOUT", 30.0)  # the machine may be slow


def _read_url(standby: PostgresServer, url: str) -> str:
    return f"{standby.url(name_of(url))}?application_name={_APPLICATION}"


def _layer(make_layer: MakeLayer, url: str, standby: Standby) -> ForebayDataLayer:
    standby.catch_up()
    return make_layer(url, settings=Settings(read_url=_read_url(standby, url), metrics_address="off"))


def _reads(layer: ForebayDataLayer) -> dict[str, int]:
    return {outcome: count for outcome, count in layer._engine.counts.replica_reads.items() if count}


async def _catch_up(standby: Standby) -> None:
    await asyncio.to_thread(standby.catch_up)


async def _marked(layer: ForebayDataLayer, standby: Standby) -> None:
    """There is a checkpoint that stands for all that the process has written, and the standby has it."""
    await until(lambda: layer._store._bookmarks.complete)
    await _catch_up(standby)


async def _asked(layer: ForebayDataLayer) -> None:
    """What the last read has set off is over."""
    assert layer._store.replica is not None
    assert layer._store.replica._marking is not None
    await layer._store.replica._marking


@contextmanager
def _paused(standby: Standby) -> Iterator[None]:
    """It replays nothing."""
    standby.execute("SELECT pg_wal_replay_pause()")
    try:
        yield
    finally:
        standby.execute("SELECT pg_wal_replay_resume()")


async def test_reads_arrive_at_the_replica(url: str, shared_standby: Standby, make_layer: MakeLayer) -> None:
    layer = _layer(make_layer, url, shared_standby)
    thread_id = await a_thread(layer, name="one")
    await layer.create_step(a_step(thread_id, output="answer"))
    await layer.flush()
    await _catch_up(shared_standby)
    thread = await stored_thread(layer, thread_id)
    assert [step["output"] for step in thread["steps"]] == ["answer"]
    assert _reads(layer) == {"replica": 1}
    asked = await asyncio.to_thread(
        shared_standby.execute,
        f"SELECT query FROM pg_stat_activity WHERE application_name = '{_APPLICATION}'",
    )
    (query,) = [row["query"] for row in asked]
    assert query
    asking = layer._statements.thread.on_standby
    assert asking is not None
    assert asking.sql.startswith(query)  # of a long one PostgreSQL shows the beginning


async def test_what_decides_is_read_from_the_primary(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    layer = _layer(make_layer, url, shared_standby)
    user = await a_user(layer)
    assert await layer.get_user("ada") == user
    await layer._store.position("a")
    await layer._store.read(layer._statements.garbage, first=1, after="")
    assert _reads(layer) == {}


async def test_while_the_replica_is_behind_its_own_writes_come_from_the_primary(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    layer = _layer(make_layer, url, shared_standby)
    thread_id = await a_thread(layer, name="before")
    await layer.flush()
    await _catch_up(shared_standby)
    assert (await stored_thread(layer, thread_id))["name"] == "before"
    with _paused(shared_standby):
        for number in range(5):
            await layer.update_thread(thread_id, name=f"after {number}")
            assert (await stored_thread(layer, thread_id))["name"] == f"after {number}"
        await layer.delete_thread(thread_id)
        assert await layer.get_thread(thread_id) is None
        assert _reads(layer) == {"replica": 1, "behind": 6}
    await _marked(layer, shared_standby)
    assert await layer.get_thread(thread_id) is None
    assert _reads(layer) == {"replica": 2, "behind": 6}


async def test_a_process_that_starts_sees_what_was_written_before_it(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    before = _layer(make_layer, url, shared_standby)
    with _paused(shared_standby):
        thread_id = await a_thread(before, name="one")
        await before.close()
        after = make_layer(
            url, settings=Settings(read_url=_read_url(shared_standby, url), metrics_address="off")
        )
        assert (await stored_thread(after, thread_id))["name"] == "one"
        assert _reads(after) == {"behind": 1}


async def test_a_process_that_writes_nothing_reads_there_too(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    layer = _layer(make_layer, url, shared_standby)
    assert await layer.get_thread(new_id()) is None
    await _marked(layer, shared_standby)
    for _ in range(3):
        assert await layer.get_thread(new_id()) is None
    assert _reads(layer) == {"behind": 1, "replica": 3}


async def test_a_read_is_one_round_trip_and_so_is_a_batch(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    shared_standby.catch_up()
    read_url = _read_url(shared_standby, url)
    async with Proxy.before(url) as primary, Proxy.before(read_url) as standby:
        settings = Settings(read_url=standby.url(read_url), metrics_address="off")
        layer = make_layer(primary.url(url), settings=settings)
        thread_id = await a_thread(layer)
        for number in range(3):
            await layer.update_thread(thread_id, name=str(number))
            await layer.flush()
            await _catch_up(shared_standby)
            before = primary.trips, standby.trips
            assert (await stored_thread(layer, thread_id))["name"] == str(number)
            await layer.update_thread(thread_id, metadata={"number": number})
            await layer.flush()
            if number:  # the statements are prepared by then
                assert (primary.trips, standby.trips) == (before[0] + 1, before[1] + 1)
        assert _reads(layer) == {"replica": 3}
        await layer.close()


async def test_what_the_application_commits_itself_is_seen(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    """The primary answers until there is a checkpoint behind it, which nobody has to write for that."""
    layer = _layer(make_layer, url, shared_standby)
    thread_id = await a_thread(layer, name="before")
    await layer.flush()
    await _catch_up(shared_standby)
    renamed = "UPDATE threads SET name = :name WHERE id = CAST(:id AS uuid)"

    async def by_hand() -> None:
        await layer.execute_sql(renamed, {"name": "by hand", "id": thread_id})

    async def by_session() -> None:
        async with layer.async_session() as session:
            await session.execute(sa.text(renamed), {"name": "by session", "id": thread_id})
            await session.commit()

    async def by_engine() -> None:
        async with layer.engine.connect() as connection:
            await connection.execute(sa.text(renamed), {"name": "by engine", "id": thread_id})
            await connection.commit()
            await layer.update_thread(thread_id, metadata={"on": "its way"})
            await layer.flush()
            # While it is held, nobody knows what has begun to commit on it.
            assert (await stored_thread(layer, thread_id))["name"] == "by engine"

    for write, name, reads in (
        (by_hand, "by hand", 1),
        (by_session, "by session", 1),
        (by_engine, "by engine", 2),
    ):
        layer._store.replica.reads.clear()  # type: ignore[union-attr]
        with _paused(shared_standby):
            await write()
            assert (await stored_thread(layer, thread_id))["name"] == name
            assert _reads(layer) == {"behind": reads}
        await _marked(layer, shared_standby)
        assert (await stored_thread(layer, thread_id))["name"] == name
        assert _reads(layer) == {"behind": reads, "replica": 1}


async def test_what_is_stored_past_the_queue_is_seen(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    layer = _layer(make_layer, url, shared_standby)
    thread_id = await a_thread(layer, name="one")
    await layer.flush()
    await _catch_up(shared_standby)
    with _paused(shared_standby):
        await a_user(layer)
        await stored_thread(layer, thread_id)
        assert _reads(layer) == {"behind": 1}


async def test_a_standby_of_another_database_answers_nothing(
    url: str,
    primary: PostgresServer,
    shared_standby: Standby,
    make_layer: MakeLayer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As one that was made of a backup, or of another cluster: it has the tables, and no word of this process."""
    other = primary.create_database()
    store = Store(other, Settings())
    await store.migrate()
    await store.close()
    shared_standby.catch_up()
    layer = make_layer(
        url, settings=Settings(read_url=_read_url(shared_standby, other), metrics_address="off")
    )
    thread_id = await a_thread(layer, name="one")
    for _ in range(3):
        assert (await stored_thread(layer, thread_id))["name"] == "one"
    assert await layer.get_thread(new_id()) is None
    assert _reads(layer) == {"behind": 4}
    assert "replica" not in caplog.text


async def test_a_checkpoint_that_is_nowhere_any_more_is_not_waited_for(
    url: str, shared_standby: Standby, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover; and a standby that merely lags is given no other one to catch up with."""
    layer = _layer(make_layer, url, shared_standby)
    thread_id = await a_thread(layer, name="one")
    await layer.flush()
    monkeypatch.setattr(replica, "_DOUBT", 0.0)
    known = layer._store._bookmarks.positions
    with _paused(shared_standby):
        await layer.update_thread(thread_id, name="two")
        await layer.flush()
        known = layer._store._bookmarks.positions
        for _ in range(3):
            assert (await stored_thread(layer, thread_id))["name"] == "two"
            await _asked(layer)
        assert layer._store._bookmarks.positions == known
    await layer.execute_sql("SELECT 1", {})
    await stored_thread(layer, thread_id)
    await _asked(layer)
    (mark,) = layer._store._bookmarks.positions
    assert mark not in known
    gone = f"DELETE FROM forebay_checkpoints WHERE journal_id = '{mark}'"
    await asyncio.to_thread(shared_standby._primary.execute, gone, name_of(url))
    await _catch_up(shared_standby)
    await stored_thread(layer, thread_id)
    await _asked(layer)
    assert mark not in layer._store._bookmarks.positions
    await _catch_up(shared_standby)
    await stored_thread(layer, thread_id)
    assert _reads(layer) == {"behind": 5, "replica": 1}


async def test_a_thread_that_was_held_up_is_seen_as_it_was_written(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    """What waited by itself has a checkpoint of its own, which the standby must have too."""
    layer = _layer(make_layer, url, shared_standby)
    thread_id, other_id = await a_thread(layer, name="before"), await a_thread(layer, name="other")
    await layer.flush()
    await _catch_up(shared_standby)
    human = await asyncpg.connect(url)
    async with human.transaction():
        await human.execute("SELECT 1 FROM threads WHERE id = $1 FOR UPDATE", thread_id)
        await layer.update_thread(thread_id, name="after")
        await until(lambda: bool(layer._engine.lanes.open))
        await layer.update_thread(other_id, name="another")
        while (await stored_thread(layer, other_id))["name"] != "another":
            pass
        await _catch_up(shared_standby)
        shared_standby.execute("SELECT pg_wal_replay_pause()")
    try:
        await layer.flush()
        assert not layer._engine.lanes.open
        layer._store.replica.reads.clear()  # type: ignore[union-attr]
        assert (await stored_thread(layer, thread_id))["name"] == "after"
        assert _reads(layer) == {"behind": 1}
    finally:
        shared_standby.execute("SELECT pg_wal_replay_resume()")
        await human.close()
    await _catch_up(shared_standby)
    assert (await stored_thread(layer, thread_id))["name"] == "after"
    assert _reads(layer) == {"behind": 1, "replica": 1}


@pytest.fixture
async def drained(
    url: str, shared_standby: Standby, make_layer: MakeLayer, tmp_path: Path
) -> AsyncIterator[ForebayDataLayer]:
    """A layer whose changes a daemon writes."""
    shared_standby.catch_up()
    settings = Settings(
        read_url=_read_url(shared_standby, url),
        writer="external",
        journal_dir=tmp_path,
        metrics_address="off",
    )
    layer = make_layer(url, settings=settings)
    draining, stop = Drain(tmp_path, Store(url, settings), settings, Metrics()), asyncio.Event()
    running = asyncio.create_task(draining.run(stop))
    yield layer
    await layer.close()
    stop.set()
    await running
    await draining.close()


async def test_what_a_daemon_has_written_is_not_missing(
    drained: ForebayDataLayer, shared_standby: Standby
) -> None:
    thread_id = await a_thread(drained, name="before")
    assert (await stored_thread(drained, thread_id))["name"] == "before"
    await _marked(drained, shared_standby)
    assert (await stored_thread(drained, thread_id))["name"] == "before"
    assert _reads(drained) == {"behind": 1, "replica": 1}
    with _paused(shared_standby):
        await drained.update_thread(thread_id, name="after")
        assert (await stored_thread(drained, thread_id))["name"] == "after"
        assert _reads(drained) == {"behind": 2, "replica": 1}


async def test_what_a_daemon_had_to_leave_for_a_while_is_not_missing(
    url: str, drained: ForebayDataLayer, shared_standby: Standby
) -> None:
    thread_id, other_id = await a_thread(drained, name="before"), await a_thread(drained, name="other")
    await stored_thread(drained, thread_id)
    await _marked(drained, shared_standby)
    assert (await stored_thread(drained, thread_id))["name"] == "before"
    assert _reads(drained) == {"behind": 1, "replica": 1}
    human = await asyncpg.connect(url)
    async with human.transaction():
        await human.execute("SELECT 1 FROM threads WHERE id = $1 FOR UPDATE", thread_id)
        await drained.update_thread(thread_id, name="after")
        with pytest.raises(ThreadHeldUp):
            await drained.get_thread(thread_id)
        await _catch_up(shared_standby)
        assert (await stored_thread(drained, other_id))["name"] == "other"
        shared_standby.execute("SELECT pg_wal_replay_pause()")
    await human.close()
    try:
        async with patience():
            while (thread := await _unless_held_up(drained, thread_id)) is None:  # noqa: ASYNC110 - nothing to wait on
                await asyncio.sleep(0.01)
        assert thread["name"] == "after"
    finally:
        shared_standby.execute("SELECT pg_wal_replay_resume()")


async def _unless_held_up(layer: ForebayDataLayer, thread_id: str) -> ThreadDict | None:
    try:
        return await stored_thread(layer, thread_id)
    except ThreadHeldUp:
        return None


async def test_a_replica_that_ends_and_comes_back(
    url: str, own_standby: Standby, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = _layer(make_layer, url, own_standby)
    thread_id = await a_thread(layer, name="one")
    await layer.flush()
    await _catch_up(own_standby)
    await stored_thread(layer, thread_id)
    await asyncio.to_thread(own_standby.crash)
    for _ in range(5):
        assert (await stored_thread(layer, thread_id))["name"] == "one"
    assert _reads(layer) == {"replica": 1, "failed": 5}
    await asyncio.to_thread(own_standby.start)
    await _catch_up(own_standby)
    assert (await stored_thread(layer, thread_id))["name"] == "one"
    assert _reads(layer) == {"replica": 2, "failed": 5}
    lines = [record for record in caplog.records if record.name == "forebay.replica"]
    assert [record.levelno for record in lines] == [logging.WARNING] * 2
    assert "replica not used" in lines[0].getMessage()
    assert "replica used again" in lines[1].getMessage()


async def test_a_replica_that_failed_is_left_alone_for_a_while(
    url: str, own_standby: Standby, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_RETRY", 3600.0)
    layer = _layer(make_layer, url, own_standby)
    thread_id = await a_thread(layer, name="one")
    await layer.flush()
    await asyncio.to_thread(own_standby.crash)
    await stored_thread(layer, thread_id)
    await asyncio.to_thread(own_standby.start)
    await _catch_up(own_standby)
    await stored_thread(layer, thread_id)
    assert _reads(layer) == {"failed": 2}


async def test_a_replica_that_is_promoted_is_not_read_any_more(
    url: str, own_standby: Standby, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = _layer(make_layer, url, own_standby)
    thread_id = await a_thread(layer, name="one")
    await layer.flush()
    await _catch_up(own_standby)
    await stored_thread(layer, thread_id)
    await asyncio.to_thread(own_standby.promote)
    await asyncio.to_thread(own_standby.execute, "UPDATE threads SET name = 'another'", name_of(url))
    assert (await stored_thread(layer, thread_id))["name"] == "one"
    assert _reads(layer) == {"replica": 1, "failed": 1}
    assert "is no standby" in caplog.text


async def test_a_bad_id_does_not_turn_the_replica_off(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    layer = _layer(make_layer, url, shared_standby)
    await a_thread(layer)
    await layer.flush()
    await _catch_up(shared_standby)
    with pytest.raises(RowError):
        await layer._store.read(layer._statements.thread, id="no id")
    assert await layer.get_thread(new_id()) is None
    assert _reads(layer) == {"failed": 1, "replica": 1}


async def test_a_replica_behind_pgbouncer(url: str, shared_standby: Standby, make_layer: MakeLayer) -> None:
    shared_standby.catch_up()
    with Pgbouncer(shared_standby.url(name_of(url)), pool_size=2) as pooler:
        read_url = f"{pooler.url}?statement_cache_size=0"
        layer = make_layer(url, settings=Settings(read_url=read_url, metrics_address="off"))
        thread_ids = [await a_thread(layer, name=f"{number}") for number in range(20)]
        await layer.flush()
        await _catch_up(shared_standby)
        found = await asyncio.gather(*(stored_thread(layer, thread_id) for thread_id in thread_ids))
        assert [thread["name"] for thread in found] == [f"{number}" for number in range(20)]
        assert _reads(layer) == {"replica": 20}
        await layer.close()


async def test_many_chats_at_once_see_their_writes(
    url: str, shared_standby: Standby, make_layer: MakeLayer
) -> None:
    """While the standby follows as it can; and neither server gets more connections than it should."""
    layer = _layer(make_layer, url, shared_standby)

    async def chat(number: int) -> None:
        thread_id = await a_thread(layer, name=f"chat {number}")
        for turn in range(10):
            await layer.create_step(a_step(thread_id, output=f"answer {turn}"))
            assert len((await stored_thread(layer, thread_id))["steps"]) == turn + 1
        await layer.delete_thread(thread_id)
        assert await layer.get_thread(thread_id) is None

    await asyncio.gather(*(chat(number) for number in range(20)))
    count = (
        "SELECT count(*) AS n FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = '{}'"
    )
    connections = [
        (await asyncio.to_thread(server.execute, count.format(name_of(url))))[0]["n"]
        for server in (shared_standby._primary, shared_standby)
    ]
    assert connections[0] <= layer.settings.pool_size
    assert connections[1] <= layer.settings.pool_size - 1
    assert sum(_reads(layer).values()) == 20 * 11
    assert "failed" not in _reads(layer)


async def test_the_doctor_looks_at_the_standby(
    url: str, primary: PostgresServer, own_standby: Standby
) -> None:
    async def found(read_url: str) -> list[tuple[str, str, str]]:
        settings = Settings(read_url=read_url, metrics_address="off")
        findings = [one async for one in check_database(Target(url, settings))]
        return [(one.check, str(one.level), one.found) for one in findings if one.check.startswith("replica")]

    await _catch_up(own_standby)
    read_url = _read_url(own_standby, url)
    assert [(check, level) for check, level, _ in await found(read_url)] == [
        ("replica", "ok"),
        ("replica pool", "ok"),
    ]
    ((_, level, said),) = await found(url)
    assert (level, "is no standby" in said) == ("error", True)
    await asyncio.to_thread(own_standby.crash)
    ((_, level, said),) = await found(read_url)
    assert (level, "can't be reached" in said) == ("error", True)


@pytest.mark.parametrize(
    ("database", "read_url"),
    [
        ("sqlite://", "postgresql://localhost/chat"),
        ("postgresql://localhost/chat", "sqlite:///chat.db"),
        ("postgresql://localhost/chat", "postgresql://me:secret@localhost/chat?nonsense=1"),
    ],
    ids=["primary", "standby", "parameter"],
)
def test_a_url_that_cannot_be_a_replica_is_refused(database: str, read_url: str) -> None:
    with pytest.raises(SettingsError, match="FOREBAY_READ_URL") as refused:
        Store(database, Settings(read_url=read_url))
    assert "secret" not in str(refused.value)
