"""A database that has gone back: a standby that lagged behind takes over, or a copy of earlier is put in its place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from forebay import ForebayDataLayer, Settings, TransientError
from forebay.database.checkpoint import Checkpoint, CheckpointMoved, Position
from forebay.database.store import Store
from forebay.model import changes
from forebay.pipeline.drain import Drain
from forebay.telemetry.collector import Metrics
from tests.faults.conftest import MakeLayer
from tests.faults.load import Audit, versioned
from tests.integration.contract import accounted_for, until
from tests.support.pair import Lag, Pair
from tests.support.patience import patience
from tests.support.postgres import PostgresServer, Standby, name_of
from tests.support.proxy import Proxy


async def _write(layer: ForebayDataLayer, thread_id: str, numbers: range) -> None:
    for number in numbers:
        step_id = str(uuid.uuid5(uuid.UUID(thread_id), str(number)))
        await layer.create_step(versioned(step_id, thread_id, number))


async def _versions(url: str) -> list[int]:
    return sorted((await Audit(url).stored()).values())


class _Place:
    """A database behind a name, of which a copy can be made, and be put in its place."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.server = server
        self.url = url
        self.name = name_of(url)
        self._elsewhere = Audit(server.url())

    async def _end_sessions(self) -> None:
        await self._elsewhere.fetch(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'"
        )

    async def copy(self) -> None:
        """A backup; nobody may be connected."""
        await self._elsewhere.fetch(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS false')
        await self._end_sessions()
        await self._elsewhere.fetch(f'CREATE DATABASE "{self.name}_copy" TEMPLATE "{self.name}"')
        await self._elsewhere.fetch(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS true')

    async def restore(self) -> None:
        """The backup takes its place."""
        await self._elsewhere.fetch(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS false')
        await self._end_sessions()
        await self._elsewhere.fetch(f'ALTER DATABASE "{self.name}" RENAME TO "{self.name}_old"')
        await self._elsewhere.fetch(f'ALTER DATABASE "{self.name}_copy" RENAME TO "{self.name}"')


@pytest.fixture
async def place(postgres_server: PostgresServer, migrated_postgres_url: str) -> AsyncIterator[_Place]:
    place = _Place(postgres_server, migrated_postgres_url)
    yield place
    for suffix in ("_old", "_copy"):
        postgres_server.execute(f'DROP DATABASE IF EXISTS "{place.name}{suffix}"')


@pytest.mark.parametrize("then", ["it writes", "it looks", "an own statement asks"])
async def test_a_backup_that_is_put_back_gets_what_came_after_it(
    place: _Place, make_journaled: MakeLayer, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer, thread_id = make_journaled(place.url), str(uuid.uuid4())
    await _write(layer, thread_id, range(20))
    await layer.flush()
    await place.copy()
    await _write(layer, thread_id, range(20, 60))
    await layer.flush()
    await place.restore()
    assert await _versions(place.url) == [*range(20)]
    await until(lambda: not layer._store.has_writer)
    if then == "it writes":
        await _write(layer, thread_id, range(60, 70))
        await layer.flush()
    elif then == "it looks":
        await layer._engine.writer.look_back(layer._engine.cursor)
    else:
        assert await _counted(layer) == 60, "what it shows is less than there was"
    assert await _versions(place.url) == [*range(70 if then == "it writes" else 60)]
    assert layer._engine.counts.checkpoint_alarms == {"gone_back": 1}
    assert accounted_for(layer)
    assert "gone back" in caplog.text


async def _counted(layer: ForebayDataLayer) -> int:
    """What the first statement of the application's own shows that says no error."""
    async with patience():
        while True:
            with contextlib.suppress(TransientError):
                found = await layer.execute_sql("SELECT count(*) AS n FROM steps", {})
                assert isinstance(found, list)
                return int(found[0]["n"])
            await asyncio.sleep(0.01)


async def test_a_process_that_was_killed_too(
    place: _Place, make_journaled: MakeLayer, tmp_path: Path
) -> None:
    """Its journal is written from where the copy has it, by the next process or by `forebay drain`."""
    for index, drained in enumerate((False, True)):
        folder, thread_id = tmp_path / str(index), str(uuid.uuid4())
        layer = make_journaled(place.url, journal_dir=folder)
        await _write(layer, thread_id, range(10))
        await layer.flush()
        if not drained:
            await place.copy()
        await _write(layer, thread_id, range(10, 30))
        await layer.flush()
        journal = layer._engine.journal
        assert journal is not None
        await journal.close(remove=False)  # as if it had ended without a word
        if drained:
            await Audit(place.url).fetch("UPDATE forebay_checkpoints SET applied_seq = 10, token = 1")
            await Audit(place.url).fetch("DELETE FROM steps WHERE split_part(output, ' ', 1)::int >= 10")
            settings = Settings(journal_dir=folder)
            drain = Drain(folder, Store(place.url, settings), settings, Metrics())
            await drain.run()
            await drain.close()
        else:
            await place.restore()
            following = make_journaled(place.url, journal_dir=folder)
            await following.get_thread(thread_id)
        assert await _versions(place.url) == [*range(30)]
        await Audit(place.url).fetch("DELETE FROM steps")


async def test_an_asynchronous_failover_loses_nothing(
    make_journaled: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    with PostgresServer(own=True, durable=True) as primary:
        url = primary.create_database()
        async with Proxy.before(url) as proxy:
            layer, thread_id = make_journaled(proxy.url(url), auto_migrate=True), str(uuid.uuid4())
            await _write(layer, thread_id, range(50))
            await layer.flush()
            with Standby(primary) as standby:
                await asyncio.to_thread(standby.catch_up)
                # It hears no more, and nobody waits for it.
                standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
                standby.execute("SELECT pg_reload_conf()")
                await until(lambda: not standby.execute("SELECT 1 FROM pg_stat_wal_receiver"))
                await _write(layer, thread_id, range(50, 250))
                await layer.flush()
                await _write(layer, thread_id, range(250, 300))
                await asyncio.to_thread(primary.crash)
                await asyncio.to_thread(standby.promote)
                proxy.lead_to(standby.url(name_of(url)))
                proxy.reset()
                await _write(layer, thread_id, range(300, 320))
                async with patience():
                    await layer.flush()
                assert await _versions(standby.url(name_of(url))) == [*range(320)]
                assert layer._engine.counts.checkpoint_alarms == {"gone_back": 1}
                assert accounted_for(layer)
                await layer.close()
    assert "gone back" in caplog.text


@pytest.mark.parametrize("durability", ["journal", "memory"])
async def test_who_reads_first_does_not_see_less(make_journaled: MakeLayer, durability: str) -> None:
    """Nothing is written when the name moves, so that nobody but the reader meets the other server."""
    async with Pair(synchronous=False) as pair:
        values = {"durability": durability, "auto_migrate": True, "journal_keep": 3600}
        layer, thread_id = make_journaled(pair.url, **values), str(uuid.uuid4())
        await _write(layer, thread_id, range(10))
        await layer.flush()
        await asyncio.gather(*(layer.get_thread(thread_id) for _ in range(4)))
        await asyncio.to_thread(pair.catch_up)
        await pair.part()
        await _write(layer, thread_id, range(10, 30))
        await layer.flush()
        await pair.fail_over(Lag.NOWHERE, crash=True)
        pair.arrive()
        if durability == "journal":
            assert await _seen(layer, thread_id) == [*range(30)]
            assert layer._engine.counts.checkpoint_alarms == {"gone_back": 1}
        await _write(layer, thread_id, range(30, 31))
        assert (await _seen(layer, thread_id))[-1] == 30
        await layer.close()


async def _seen(layer: ForebayDataLayer, thread_id: str) -> list[int]:
    """What the first read shows that says no error."""
    async with patience():
        while True:
            try:
                thread = await layer.get_thread(thread_id)
            except TransientError:
                await asyncio.sleep(0.01)
                continue
            assert thread is not None
            return sorted(int(step["output"].split()[0]) for step in thread["steps"])


# ---- what went in beside the process's own journal


@asynccontextmanager
async def _held(url: str, thread_id: str) -> AsyncIterator[None]:
    """While it lasts, somebody holds the thread's row."""
    human = await asyncpg.connect(url)
    try:
        async with human.transaction():
            await human.execute("SELECT 1 FROM threads WHERE id = $1 FOR UPDATE", uuid.UUID(thread_id))
            yield
    finally:
        await human.close()


async def _write_parked(layer: ForebayDataLayer, url: str, thread_id: str, numbers: range) -> None:
    """Half of them are held up, in a lane that ends; the others of the thread come after them."""
    middle = len(numbers) // 2
    async with _held(url, thread_id):
        await _write(layer, thread_id, numbers[:middle])
        await until(lambda: bool(layer._engine.lanes.open))
    async with patience():
        await layer.flush()
    assert not layer._engine.lanes.open
    await _write(layer, thread_id, numbers[middle:])
    await layer.flush()


async def _recovered(layer: ForebayDataLayer) -> None:
    recovery = layer._engine.recovery
    assert recovery is not None
    await until(recovery.done_once.is_set)
    async with patience():
        await layer.flush()


async def test_what_a_lane_wrote_is_given_again(place: _Place, make_journaled: MakeLayer) -> None:
    """In its order, also beside what the thread's other changes were: a row that both wrote has its newest value."""
    layer, thread_id, both = make_journaled(place.url), str(uuid.uuid4()), str(uuid.uuid4())
    await _write(layer, thread_id, range(5))
    await layer.update_step(versioned(both, thread_id, 1000))
    await layer.flush()
    await place.copy()
    async with _held(place.url, thread_id):
        await layer.update_step(versioned(both, thread_id, 1001))
        await until(lambda: bool(layer._engine.lanes.open))
    await _write_parked(layer, place.url, thread_id, range(5, 25))
    await layer.update_step(versioned(both, thread_id, 1002))
    await layer.flush()
    await place.restore()
    await _write(layer, thread_id, range(25, 30))
    await layer.flush()
    await _recovered(layer)
    assert await _versions(place.url) == [*range(30), 1002]
    assert layer._engine.counts.checkpoint_alarms == {"gone_back": 1}
    assert accounted_for(layer)
    await layer.close()
    assert list(layer.settings.journal_dir.iterdir()) == []


async def test_a_lane_that_alone_has_gone_back(place: _Place, make_journaled: MakeLayer) -> None:
    """The database is where the process left it, and was not yet where the lane did."""
    layer, thread_id = make_journaled(place.url), str(uuid.uuid4())
    await _write(layer, thread_id, range(5))
    await layer.flush()
    async with _held(place.url, thread_id):
        await _write(layer, thread_id, range(5, 10))
        await until(lambda: bool(layer._engine.lanes.open))
        async with patience():
            await layer.get_thread(str(uuid.uuid4()))
    async with patience():
        await layer.flush()
    own = layer._engine.cursor.journal_id
    await Audit(place.url).fetch(f"DELETE FROM forebay_checkpoints WHERE journal_id <> '{own}'")
    await Audit(place.url).fetch("DELETE FROM steps WHERE split_part(output, ' ', 1)::int >= 5")
    (kept,) = layer._engine.kept._kept
    kept.until = 0.0
    await layer._engine.kept.sweep()
    recovery = layer._engine.recovery
    assert recovery is not None
    recovery.due = 0.0
    recovery.done_once.clear()
    await layer.create_step(versioned(str(uuid.uuid5(uuid.UUID(thread_id), "10")), thread_id, 10))
    await _recovered(layer)
    assert await _versions(place.url) == [*range(11)]
    await layer.close()
    assert list(layer.settings.journal_dir.iterdir()) == []


@pytest.mark.parametrize("writes_itself", [True, False])
async def test_what_was_left_by_a_process_that_was_killed_is_given_again(
    place: _Place, make_journaled: MakeLayer, tmp_path: Path, writes_itself: bool
) -> None:
    """Its own journal and its lane's, which the next process has written out before the database goes back."""
    folder, killed_thread, thread_id = tmp_path / "journals", str(uuid.uuid4()), str(uuid.uuid4())
    layer = make_journaled(place.url)
    await _write(layer, thread_id, range(100, 105))
    await layer.flush()
    await place.copy()
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.gone_back_worker", place.url, str(folder), killed_thread),
        stdout=asyncio.subprocess.PIPE,
    )
    assert killed.stdout is not None
    async with patience():
        assert await killed.stdout.readline() == b"begun\n"
        async with _held(place.url, killed_thread):
            killed.send_signal(signal.SIGUSR1)
            assert await killed.stdout.readline() == b"parked\n"
            killed.kill()
            await killed.wait()
    recovery = layer._engine.recovery
    assert recovery is not None
    recovery.due = 0.0
    await layer.get_thread(thread_id)
    await until(lambda: len(layer._engine.kept._kept) == 2)
    assert await _versions(place.url) == [*range(40), *range(100, 105)]
    if writes_itself:
        await _write(layer, thread_id, range(105, 107))
        await layer.flush()
    await place.restore()
    assert await _versions(place.url) == [*range(100, 105)]
    if writes_itself:
        await _write(layer, thread_id, range(107, 110))
        await layer.flush()
    else:
        for kept in layer._engine.kept._kept:
            kept.until = 0.0
        await layer._engine.kept.sweep()
        recovery.due = 0.0
        recovery.done_once.clear()
        await layer.get_thread(thread_id)
    await _recovered(layer)
    assert await _versions(place.url) == [*range(40), *range(100, 110 if writes_itself else 105)]
    assert accounted_for(layer)
    await layer.close()
    assert list(folder.iterdir()) == []


# ---- the statement itself


@pytest.fixture
async def store(migrated_url: str) -> AsyncIterator[Store]:
    store = Store(migrated_url, Settings())
    yield store
    await store.close()


_THREAD = str(uuid.UUID(int=255))


async def test_a_step_is_taken_from_where_it_starts_alone(store: Store) -> None:
    async def put(number: int, before: Position, after: Position, *, delete: bool = False) -> None:
        change = changes.thread(_THREAD, metadata={"n": number})
        more = [changes.Delete("steps", str(uuid.UUID(int=1)))] if delete else []
        await store.apply([change, *more], Checkpoint("j", before, after))

    async def stored() -> int:
        number: int = (await store.read(store.statements.thread, id=_THREAD))["metadata"]["n"]
        return number

    start, third, part = Position(), Position(3, 30), Position(3, 31)
    await put(3, start, third)
    await put(30, start, third)  # its answer was lost
    assert (await stored(), await store.position("j")) == (3, third)
    await put(4, third, part, delete=True)
    for before, after in ((start, Position(4, 4)), (third, Position(4, 4)), (Position(2, 2), Position(4, 4))):
        for delete in (False, True):
            with pytest.raises(CheckpointMoved) as moved:
                await put(9, before, after, delete=delete)
            assert moved.value.position == part
    assert (await stored(), await store.position("j")) == (4, part)
    await store.clear_checkpoints()
    assert await store.position("j") == part
    await put(5, part, Position(2**62, 2**62))
    assert (await stored(), await store.position("j")) == (5, Position(2**62, 2**62))


async def test_a_journal_that_the_database_does_not_know_can_only_begin(store: Store) -> None:
    with pytest.raises(CheckpointMoved) as moved:
        await store.apply([changes.thread(_THREAD)], Checkpoint("j", Position(1, 1), Position(2, 2)))
    assert moved.value.position == Position()
    assert await store.read(store.statements.thread, id=_THREAD) is None


async def test_what_a_release_before_has_left_is_gone_on_from(store: Store) -> None:
    await store.execute_sql("INSERT INTO forebay_checkpoints (journal_id, applied_seq) VALUES ('j', 7)", {})
    assert await store.position("j") == Position(7, 0)
    await store.apply([changes.thread(_THREAD)], Checkpoint("j", Position(7, 0), Position(8, 8)))
    assert await store.position("j") == Position(8, 8)


async def test_a_checkpoint_is_cleared_by_its_age(store: Store) -> None:
    await store.apply([], Checkpoint("new", Position(), Position(1, 1)))
    await store.apply([], Checkpoint("old", Position(), Position(1, 1)))
    days = 91 * 24 * 3600 * 1_000_000
    await store.execute_sql(
        f"UPDATE forebay_checkpoints SET noted_at = noted_at - {days} WHERE journal_id = 'old'", {}
    )
    await store.clear_checkpoints()
    assert (await store.position("new"), await store.position("old")) == (Position(1, 1), Position())


@pytest.mark.parametrize("durability", ["commit", "memory", "journal"])
async def test_two_processes_with_one_id_lose_nothing(
    migrated_url: str, make_journaled: MakeLayer, durability: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a fork, or when a virtual machine was copied."""
    caplog.set_level(logging.CRITICAL)
    thread_id = str(uuid.uuid4())
    first, second = (make_journaled(migrated_url, durability=durability) for _ in range(2))
    await _write(first, thread_id, range(5))
    await first.flush()
    await second.get_thread(thread_id)
    if durability == "journal":
        second._engine.intake._open_journal()
    second._engine.cursor.journal_id = first._engine.cursor.journal_id
    await _write(second, thread_id, range(5, 20))
    await second.flush()
    await _write(first, thread_id, range(20, 30))
    await first.flush()
    thread = await first.get_thread(thread_id)
    assert thread is not None
    assert len(thread["steps"]) == 30
    assert second._engine.counts.checkpoint_alarms == {"not_ours": 1}
    assert first._engine.counts.checkpoint_alarms == {}
    assert "checkpoint not ours" in caplog.text
