"""The end of a process: what was acknowledged is in the database or in the journal, within a container's grace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from chainlit.context import ChainlitContext

from forebay import ForebayDataLayer, Settings
from tests.integration.contract import a_step, accounted_for, locked, new_id
from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.patience import FOR_EVER, patience
from tests.support.postgres import PostgresServer
from tests.support.spells import QuietSpells

MakeLayer = Callable[..., ForebayDataLayer]

_APPS = Path(__file__).parent.parent / "e2e" / "apps"
# Whatever else a close could wait for takes longer than the tests wait.
_PATIENT = {"connect_timeout": FOR_EVER, "statement_timeout": FOR_EVER}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@pytest.fixture
def make_layer(folder: Path, chainlit_context: ChainlitContext) -> MakeLayer:
    def make(url: str, **values: Any) -> ForebayDataLayer:
        return ForebayDataLayer(url, settings=Settings(**{"journal_dir": folder, **values}))

    return make


async def _outputs(layer: ForebayDataLayer, thread_id: str) -> list[str]:
    thread = await layer.get_thread(thread_id)
    return [step["output"] for step in thread["steps"]] if thread else []


async def _write(layer: ForebayDataLayer, thread_id: str, first: int, last: int) -> None:
    for number in range(first, last):
        moment = f"2026-01-01T00:00:00.{number:06d}Z"
        await layer.create_step(a_step(thread_id, output=str(number), createdAt=moment))


def _left(text: str) -> tuple[int, Path]:
    """How many rows a close has left, and where."""
    said = re.search(r"closed with unwritten changes rows=(\d+) waiting=0 kept_in=(\S+\.journal) ", text)
    assert said is not None, text
    return int(said[1]), Path(said[2])


async def test_writes_are_taken_until_a_quiet_spell(
    make_layer: MakeLayer, migrated_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spells = QuietSpells(monkeypatch)
    layer, thread_id = make_layer(migrated_url, close_timeout=FOR_EVER), new_id()
    await _write(layer, thread_id, 0, 1)
    closing = asyncio.create_task(layer.close())
    for number in range(1, 6):
        spell = await spells.next()
        await _write(layer, thread_id, number, number + 1)
        spell.set()
    (await spells.next()).set()
    await closing
    spells.over()
    assert list(folder.iterdir()) == []
    after = make_layer(migrated_url)
    assert await _outputs(after, thread_id) == [str(number) for number in range(6)]
    await after.close()


@pytest.mark.parametrize("queue_max_bytes", [64 * 1024 * 1024, 16 * 1024], ids=["queued", "spilled"])
@pytest.mark.parametrize("outage", ["down", "stalled"])
async def test_a_database_that_does_not_answer_does_not_hold_a_close_up(
    make_layer: MakeLayer,
    durable_postgres_server: PostgresServer,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    outage: str,
    queue_max_bytes: int,
) -> None:
    url, thread_id = durable_postgres_server.create_database(), new_id()
    layer = make_layer(url, auto_migrate=True, close_timeout=0.2, queue_max_bytes=queue_max_bytes, **_PATIENT)
    await _write(layer, thread_id, 0, 10)
    await layer.flush()
    async with locked(url) if outage == "stalled" else contextlib.nullcontext():
        if outage == "down":
            durable_postgres_server.crash()
        await _write(layer, thread_id, 10, 50)
        async with patience():
            await layer.close()
    rows, path = _left(caplog.text)
    assert rows == 40 == layer._engine.inbox.pending
    assert accounted_for(layer)
    assert [path] == list(folder.glob("*.journal"))

    if outage == "down":
        durable_postgres_server.start()
    caplog.set_level(logging.WARNING)
    layer = make_layer(url)
    assert await _outputs(layer, thread_id) == [str(number) for number in range(50)]
    await layer.close()
    # A statement that waits at the server for the lock may get in afterwards, and is not written again then.
    recovered = re.search(rf"journal recovered changes=(\d+) journal={path.stem}", caplog.text)
    assert recovered is not None
    assert int(recovered[1]) <= 40 if outage == "stalled" else int(recovered[1]) == 40
    assert list(folder.glob("*.journal*")) == []


async def test_a_close_with_nothing_to_write_does_not_wait_for_the_database(
    make_layer: MakeLayer, migrated_postgres_url: str
) -> None:
    layer = make_layer(migrated_postgres_url, close_timeout=0.2, **_PATIENT)
    await _write(layer, new_id(), 0, 1)
    await layer.flush()
    other = await asyncpg.connect(migrated_postgres_url)
    async with other.transaction():
        await other.execute("LOCK TABLE forebay_checkpoints IN ACCESS EXCLUSIVE MODE")
        async with patience():
            await layer.close()
    await other.close()


async def test_a_locked_sqlite_file_does_not_hold_a_close_up(
    make_layer: MakeLayer, migrated_sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer, thread_id = make_layer(migrated_sqlite_url, close_timeout=0.2, **_PATIENT), new_id()
    await _write(layer, thread_id, 0, 1)
    await layer.flush()
    async with locked(migrated_sqlite_url):
        await _write(layer, thread_id, 1, 6)
        async with patience():
            await layer.close()
    assert _left(caplog.text)[0] == 5
    layer = make_layer(migrated_sqlite_url)
    assert await _outputs(layer, thread_id) == [str(number) for number in range(6)]
    await layer.close()


# ---- a real server, and a real SIGTERM


@dataclass(frozen=True)
class Kind:
    """How Chainlit is run."""

    command: tuple[str, ...] | None
    path: str

    def server(self, folder: Path, url: str) -> ChainlitServer:
        env = {"TEST_DATABASE_URL": url, "FOREBAY_CLOSE_TIMEOUT": "2", "FOREBAY_LINGER": "1"}
        env |= {f"FOREBAY_{name.upper()}": str(value) for name, value in _PATIENT.items()}
        return ChainlitServer(_APPS / "race.py", folder, env, self.command, path=f"{self.path}/")


_KINDS = {"run": Kind(None, ""), "mounted": Kind((str(_APPS / "mounted.py"), "{port}"), "/chat")}


async def _stop(server: ChainlitServer) -> None:
    """SIGTERM, while the people's websockets are open."""
    await asyncio.to_thread(server.stop)


async def _answers(url: str, folder: Path) -> set[str]:
    """The answers that the next process finds."""
    layer = ForebayDataLayer(url, settings=Settings(journal_dir=folder / ".forebay"))
    found = await layer.execute_sql("SELECT output FROM steps WHERE type = 'assistant_message'", {})
    assert isinstance(found, list)
    await layer.close()
    return {row["output"] for row in found}


@pytest.mark.parametrize("kind", _KINDS)
async def test_a_server_ends_in_time_and_loses_nothing(
    chainlit_context: ChainlitContext, durable_postgres_server: PostgresServer, tmp_path: Path, kind: str
) -> None:
    """With the database there, and then, in its second life, without."""
    url = await _own_database(durable_postgres_server)
    server = _KINDS[kind].server(tmp_path, url)
    async with patience():
        with server:
            async with ChainlitClient(server.url, path=_KINDS[kind].path) as client:
                said = {(await client.say(f"up {turn}"))["output"] for turn in range(3)}
                await _stop(server)
            assert list((tmp_path / ".forebay").glob("*.journal")) == []
            assert "unwritten" not in server.log
            assert await _answers(url, tmp_path) == said

            await asyncio.to_thread(server.start)
            async with ChainlitClient(server.url, path=_KINDS[kind].path) as client:
                said |= {(await client.say("up again"))["output"]}
                await asyncio.to_thread(durable_postgres_server.stop, "immediate")
                said |= {(await client.say(f"down {turn}"))["output"] for turn in range(3)}
                await _stop(server)
        rows, path = _left(server.log)
        assert rows >= 15, "three turns of five steps each"
        assert path.exists()
        await asyncio.to_thread(durable_postgres_server.start)
        assert await _answers(url, tmp_path) == said
        assert list((tmp_path / ".forebay").glob("*.journal*")) == []


async def _own_database(server: PostgresServer) -> str:
    url = server.create_database()
    layer = ForebayDataLayer(url, settings=Settings(auto_migrate=True, durability="memory"))
    await layer.execute_sql("SELECT 1", {})
    await layer.close()
    return url
