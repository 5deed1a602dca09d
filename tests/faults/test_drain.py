"""`forebay drain`: what is left behind is written out, once, or by a daemon that writes for living processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from chainlit.context import ChainlitContext
from click.testing import CliRunner, Result

from forebay import ForebayDataLayer, RowError, Settings, SettingsError, TransientError
from forebay.cli import main
from forebay.database.store import Store
from forebay.journal.journal import Journal
from forebay.model.changes import step
from forebay.pipeline import drain as drain_module
from forebay.pipeline import external_writer
from forebay.pipeline.drain import Drain
from forebay.telemetry.collector import Metrics
from tests.faults.test_late import a_step, count_of, gone, leave_behind
from tests.integration.contract import accounted_for, until
from tests.support.chainlit_server import free_port
from tests.support.patience import PATIENCE, patience
from tests.support.postgres import PostgresServer

MakeLayer = Callable[..., ForebayDataLayer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "journals"
    path.mkdir()
    return path


@pytest.fixture
def external(folder: Path, chainlit_context: ChainlitContext, monkeypatch: pytest.MonkeyPatch) -> MakeLayer:
    monkeypatch.setattr(
        external_writer, "_PATIENCE", PATIENCE
    )  # a daemon takes long to start where much else runs

    def make(url: str, **values: Any) -> ForebayDataLayer:
        settings = {"journal_dir": folder, "writer": "external", "close_timeout": 5}
        return ForebayDataLayer(url, settings=Settings(**{**settings, **values}))

    return make


def drain(*arguments: str) -> Result:
    return CliRunner().invoke(main, ("drain", *arguments))


@contextlib.asynccontextmanager
async def daemon(folder: Path, url: str, address: str = "off") -> AsyncIterator[asyncio.subprocess.Process]:
    """`forebay drain DIR --watch`, ended with SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "forebay.cli", "drain", str(folder), "--watch", "--json"),
        stdout=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "FOREBAY_METRICS_ADDRESS": address,
            "FOREBAY_DATABASE_URL": url,
            "FOREBAY_CLOSE_TIMEOUT": "5",
            "FOREBAY_JOURNAL_KEEP": "0",
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with patience():
            await process.communicate()


def test_what_is_left_behind_is_written_out_once(migrated_url: str, folder: Path) -> None:
    thread_id = str(uuid.uuid4())
    values = [a_step(thread_id, output=str(number)) for number in range(50)]
    paths = [
        asyncio.run(leave_behind(folder, *map(step, values[first : first + 10])))
        for first in range(0, 50, 10)
    ]
    done = drain(str(folder), "--database-url", migrated_url, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {key: told[key] for key in ("journals", "changes", "written", "left")} == {
        "journals": 5,
        "changes": 50,
        "written": {"steps": 50},
        "left": [],
    }
    assert not any(path.exists() for path in paths)
    again = drain(str(folder), "--database-url", migrated_url)
    assert (again.exit_code, "0 changes of 0 journals" in again.output) == (0, True)


def test_a_journal_for_another_database_is_left_unless_told_otherwise(
    migrated_url: str, folder: Path
) -> None:
    path = asyncio.run(leave_behind(folder, step(a_step(str(uuid.uuid4()))), location="sqlite:///old.db"))
    done = drain(str(folder), "--database-url", migrated_url)
    assert (done.exit_code, f"Left: {path}" in done.stdout) == (1, True)
    done = drain(str(folder), "--database-url", migrated_url, "--any-database", "--json")
    assert (done.exit_code, json.loads(done.stdout)["changes"]) == (0, 1)


def test_a_database_that_is_not_there_is_told_at_once(folder: Path) -> None:
    asyncio.run(leave_behind(folder, step(a_step(str(uuid.uuid4())))))
    done = drain(str(folder), "--database-url", "postgresql://nobody@127.0.0.1:9/none")
    assert (done.exit_code, "can't be reached" in done.output) == (1, True)


async def test_a_daemon_writes_for_a_living_process(
    external: MakeLayer, migrated_url: str, folder: Path
) -> None:
    async with daemon(folder, migrated_url) as process:
        layer, thread_id = external(migrated_url), str(uuid.uuid4())
        steps = [a_step(thread_id, output=f"{number}") for number in range(20)]
        for number, values in enumerate(steps):
            await layer.create_step(values)
            await layer.update_step(values | {"output": f"{number}!"})
            stored = await layer.get_step(values["id"])
            assert stored is not None
            assert stored["output"] == f"{number}!", "it reads its own writes"
        await layer.delete_step(steps[-1]["id"])
        found = await layer.get_thread(thread_id)
        assert found is not None
        assert len(found["steps"]) == 19
        assert layer._engine.counts.handed_over == 41
        await layer.flush()
        assert layer._engine.inbox.oldest() is None
        await layer.close()
        assert accounted_for(layer)
        assert not list(folder.glob("*.journal")), "the database has it whole"
        process.send_signal(signal.SIGTERM)
        out, _ = await process.communicate()
        assert (process.returncode, json.loads(out)["changes"]) == (0, 41)


async def test_a_daemon_can_be_looked_at(external: MakeLayer, migrated_url: str, folder: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with daemon(folder, migrated_url, address), aiohttp.ClientSession(f"http://{address}") as client:
        layer = external(migrated_url)
        await layer.create_step(a_step(thread_id := str(uuid.uuid4())))
        assert await layer.get_thread(thread_id) is not None
        async with client.get("/metrics") as answer:
            assert 'forebay_rows_written_total{table="steps"} 1.0' in await answer.text()
        for path in ("/healthz", "/readyz"):
            async with client.get(path) as answer:
                assert answer.status == 200
        await layer.close()


async def test_a_killed_daemon_loses_nothing(
    external: MakeLayer, migrated_postgres_url: str, folder: Path
) -> None:
    layer, thread_id, count = external(migrated_postgres_url), str(uuid.uuid4()), 0
    for _ in range(3):
        async with daemon(folder, migrated_postgres_url) as process:
            for _ in range(10):
                await asyncio.gather(*(layer.create_step(a_step(thread_id)) for _ in range(20)))
                count += 20
                assert await count_of(layer, "steps") == count
            written = [layer.create_step(a_step(thread_id)) for _ in range(200)]
            killed = asyncio.get_running_loop().call_later(0.002, process.kill)
            await asyncio.gather(*written)
            count += 200
            killed.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    async with daemon(folder, migrated_postgres_url):
        await layer.flush()
        assert await count_of(layer, "steps") == count
        await layer.close()
    assert accounted_for(layer)


async def test_what_an_owner_left_is_written_out_by_the_daemon(
    external: MakeLayer, migrated_url: str, folder: Path
) -> None:
    layer, thread_id = external(migrated_url, close_timeout=0.2), str(uuid.uuid4())
    await asyncio.gather(*(layer.create_step(a_step(thread_id)) for _ in range(100)))
    await layer.close()
    (path,) = folder.glob("*.journal")
    async with daemon(folder, migrated_url):
        await gone(path)
        reader = external(migrated_url)
        assert await count_of(reader, "steps") == 100
        await reader.close()
    assert not list(folder.glob(f"{path.stem}*"))


async def test_what_an_owner_left_during_an_outage_goes_beneath_what_its_successor_wrote(
    migrated_postgres_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        drain_module, "_LOOK_FOR_JOURNALS", 0.0
    )  # the successor's is found after the next batch
    thread_id, step_id = str(uuid.uuid4()), str(uuid.uuid4())
    loop, settings = asyncio.get_running_loop(), Settings(journal_dir=folder, batch_max_bytes=2048)
    store, stop = Store(migrated_postgres_url, settings), asyncio.Event()
    await store.prepare()
    drain = Drain(folder, store, settings, Metrics(None))
    left = Journal(folder, loop, store.label, database_id=store.database_id, external=True)
    await left.append(1, step(a_step(thread_id)))
    watching = asyncio.create_task(drain.run(stop))
    await until(lambda: drain.changes == 1)
    outage = await asyncpg.connect(
        store.url.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    await outage.execute("BEGIN; LOCK TABLE steps IN EXCLUSIVE MODE")
    for seq in range(2, 12):
        await left.append(seq, step(a_step(thread_id, output="b" * 900)))
    await left.append(12, step(a_step(thread_id, id=step_id, output="old")))
    await left.close(remove=False)  # as kill -9 leaves it
    successor = Journal(folder, loop, store.label, database_id=store.database_id, external=True)
    await successor.append(1, step(a_step(thread_id, id=step_id, output="new")))
    await outage.execute("COMMIT")
    await until(lambda: drain.changes == 13)
    assert await outage.fetchval("SELECT output FROM steps WHERE id = $1", step_id) == "new"
    await outage.close()
    stop.set()
    await successor.close(remove=True)
    await watching
    await drain.close()


# An application's own rule that keeps a thread; SQLite does not look at foreign keys.
_KEPT = {
    "postgresql": (
        "CREATE TABLE bookmarks (thread_id uuid REFERENCES threads (id))",
        "INSERT INTO bookmarks VALUES ('{}')",
    ),
    "sqlite": (
        "CREATE TRIGGER kept BEFORE DELETE ON threads WHEN OLD.id = '{}' BEGIN SELECT RAISE(ABORT, 'kept'); END",
    ),
}


async def test_a_delete_that_the_database_refuses_is_no_success(
    external: MakeLayer, migrated_url: str, folder: Path
) -> None:
    layer, thread_id, free = external(migrated_url), str(uuid.uuid4()), str(uuid.uuid4())
    async with daemon(folder, migrated_url):
        await layer.create_step(a_step(thread_id))
        await layer.create_step(a_step(free))
        await layer.flush()
        for statement in _KEPT[migrated_url.partition(":")[0]]:
            await layer.execute_sql(statement.format(thread_id), {})
        with pytest.raises(RowError, match="dead-letters"):
            await layer.delete_thread(thread_id)
        await layer.delete_thread(free)
        await layer.delete_thread(free)
        assert (await layer.get_thread(thread_id) is None, await layer.get_thread(free)) == (False, None)
        await layer.close()


async def test_without_a_daemon_writes_are_taken_and_reads_say_so(
    external: MakeLayer, migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_writer, "_PATIENCE", 0.05)
    layer, thread_id = external(migrated_sqlite_url, close_timeout=0.2), str(uuid.uuid4())
    await layer.create_step(a_step(thread_id))
    with pytest.raises(TransientError, match=r"forebay drain .* --watch"):
        await layer.get_thread(thread_id)
    assert await layer.get_thread(str(uuid.uuid4())) is None, "of another thread nothing is waited for"
    oldest = layer._engine.inbox.oldest()
    assert oldest is not None, "nobody has written it"
    assert oldest < time.monotonic()
    await layer.close()


async def test_an_outage_is_told_through_the_daemon(
    external: MakeLayer, durable_postgres_server: PostgresServer, folder: Path
) -> None:
    url = durable_postgres_server.create_database()
    migrated = await asyncio.to_thread(CliRunner().invoke, main, ("migrate", "--database-url", url))
    assert migrated.exit_code == 0
    async with daemon(folder, url):
        layer, thread_id = external(url), str(uuid.uuid4())
        await layer.create_step(a_step(thread_id))
        assert await layer.get_thread(thread_id) is not None
        durable_postgres_server.crash()
        await layer.create_step(a_step(thread_id))
        with pytest.raises(TransientError, match="its log says why"):
            await layer.get_thread(thread_id)
        durable_postgres_server.start()
        await layer.flush()
        found = await layer.get_thread(thread_id)
        assert found is not None
        assert len(found["steps"]) == 2
        await layer.close()


async def test_an_attempt_that_failed_is_measured(
    durable_postgres_server: PostgresServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = durable_postgres_server.create_database()
    store = Store(url, Settings())
    await store.migrate()
    metrics = Metrics()
    draining, stop = Drain(folder, store, Settings(), metrics), asyncio.Event()
    running = asyncio.create_task(draining.run(stop))
    try:
        async with patience():
            await store.prepare()
            durable_postgres_server.crash()
            await leave_behind(folder, step(a_step(str(uuid.uuid4()))))
            failed = metrics.flush_duration.children["failed"]
            await until(lambda: sum(failed.counts) > 0)
    finally:
        durable_postgres_server.start()
        stop.set()
        await running
        await draining.close()


def test_external_needs_the_journal() -> None:
    with pytest.raises(SettingsError, match="FOREBAY_DURABILITY=journal"):
        Settings(writer="external", durability="memory")
