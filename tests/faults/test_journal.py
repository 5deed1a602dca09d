"""The journal in use: outages longer than the memory, limits, damage, and who may take whose."""

from __future__ import annotations

import asyncio
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from chainlit.context import ChainlitContext

from forebay import ForebayDataLayer, QueueFull, Settings, TransientError
from forebay.errors import JournalError, told
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.journal import Journal
from forebay.journal.log import Log
from forebay.journal.log_format import About
from forebay.journal.log_reader import Reader, segments_of
from forebay.journal.orphan import adopt
from forebay.model import changes
from forebay.model.changes import step
from tests.support.patience import PATIENCE
from tests.support.postgres import PostgresServer

MakeLayer = Callable[..., ForebayDataLayer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@pytest.fixture
def make_layer(folder: Path, chainlit_context: ChainlitContext) -> MakeLayer:
    def make(url: str, **values: Any) -> ForebayDataLayer:
        settings = {
            "durability": "journal",
            "journal_dir": folder,
            "auto_migrate": True,
            "close_timeout": 0.5,
        }
        return ForebayDataLayer(url, settings=Settings(**{**settings, **values}))

    return make


def _step(thread_id: str, number: int, size: int = 0) -> Any:
    moment = f"2026-01-01T00:00:00.{number:06d}Z"
    values = {"id": str(uuid.uuid4()), "threadId": thread_id, "name": "n", "type": "run", "createdAt": moment}
    return {**values, "output": f"{number} " + "x" * size}


async def _numbers(layer: ForebayDataLayer, thread_id: str) -> list[int]:
    thread = await layer.get_thread(thread_id)
    assert thread is not None
    return [int(stored["output"].split()[0]) for stored in thread["steps"]]


def _balanced(layer: ForebayDataLayer) -> bool:
    return layer._engine.counts.pending == layer._engine.inbox.pending


async def _leave_behind(folder: Path, thread_id: str, count: int) -> Path:
    """A journal whose owner has gone, with `count` steps in it."""
    journal = Journal(folder, asyncio.get_running_loop())
    for number in range(count):
        await journal.append(number + 1, step(_step(thread_id, number)))
    await journal.close(remove=False)
    return journal.path


async def test_a_write_returns_once_it_is_on_disk(
    make_layer: MakeLayer, migrated_url: str, folder: Path
) -> None:
    layer, thread_id = make_layer(migrated_url, linger=10), str(uuid.uuid4())
    await layer.create_step(_step(thread_id, 0))
    (path,) = folder.glob("*.journal")
    (group,) = Reader(path).read(0, 10, 1)
    assert (group.first_seq, group.last_seq) == (1, 1)
    (segment,) = segments_of(path)
    assert stat.S_IMODE(segment.stat().st_mode) == 0o600
    assert {stat.S_IMODE(each.stat().st_mode) for each in (path, folder)} == {0o700}
    assert adopt(folder) is None, "a journal that is in use is nobody else's"
    assert await _numbers(layer, thread_id) == [0]
    await layer.close()
    assert list(folder.iterdir()) == [], "a journal that the database has whole is removed"


async def test_what_was_left_behind_is_read_before_anything_else(
    make_layer: MakeLayer, migrated_url: str, folder: Path
) -> None:
    thread_id = str(uuid.uuid4())
    await _leave_behind(folder, thread_id, 5)
    layer = make_layer(migrated_url)
    assert await _numbers(layer, thread_id) == [0, 1, 2, 3, 4]
    assert layer._engine.counts.replayed == 5
    assert _balanced(layer)
    await layer.close()
    assert list(folder.iterdir()) == []


async def test_what_the_database_has_already_is_not_written_again(
    make_layer: MakeLayer, migrated_url: str, folder: Path
) -> None:
    thread_id = str(uuid.uuid4())
    path = await _leave_behind(folder, thread_id, 5)
    layer = make_layer(migrated_url, durability="memory", journal_dir=folder / "elsewhere")
    await layer.execute_sql(
        "INSERT INTO forebay_checkpoints (journal_id, applied_seq) VALUES (:id, 3)", {"id": path.stem}
    )
    await layer.close()
    layer = make_layer(migrated_url)
    assert await _numbers(layer, thread_id) == [3, 4]
    found = await layer.execute_sql("SELECT journal_id, applied_seq FROM forebay_checkpoints", {})
    assert found == [{"journal_id": path.stem, "applied_seq": 5}], "it stays for what may come late"
    await layer.close()


async def test_two_that_start_at_once_share_what_was_left(
    make_layer: MakeLayer, migrated_postgres_url: str, folder: Path
) -> None:
    thread_ids = [str(uuid.uuid4()) for _ in range(6)]
    for thread_id in thread_ids:
        await _leave_behind(folder, thread_id, 3)
    layers = [make_layer(migrated_postgres_url) for _ in range(2)]
    await asyncio.gather(*(layer.execute_sql("SELECT 1", {}) for layer in layers))
    assert [await _numbers(layers[0], thread_id) for thread_id in thread_ids] == [[0, 1, 2]] * 6
    assert sum(layer._engine.counts.replayed for layer in layers) == 18
    for layer in layers:
        await layer.close()


async def test_an_outage_costs_disk_and_not_memory(
    make_layer: MakeLayer, durable_postgres_server: PostgresServer, folder: Path
) -> None:
    url, thread_id, limit = durable_postgres_server.create_database(), str(uuid.uuid4()), 64 * 1024
    layer = make_layer(url, queue_max_bytes=limit, close_timeout=20)
    await layer.update_thread(thread_id, name="Through the outage")
    await layer.flush()
    durable_postgres_server.crash()
    for number in range(1000):
        await layer.create_step(_step(thread_id, number, size=500))
        assert layer._engine.inbox.size <= limit
    with pytest.raises(TransientError):
        await layer.get_thread(thread_id)
    assert layer._engine.counts.spilled > 800
    durable_postgres_server.start()
    await layer.flush()
    assert await _numbers(layer, thread_id) == list(range(1000))
    assert _balanced(layer)
    assert layer._engine.counts.pending == 0
    await layer.close()
    assert list(folder.iterdir()) == []


async def test_what_a_close_leaves_is_written_by_the_next_process(
    make_layer: MakeLayer, durable_postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    url, thread_id = durable_postgres_server.create_database(), str(uuid.uuid4())
    layer = make_layer(url)
    await layer.execute_sql("SELECT 1", {})
    durable_postgres_server.crash()
    for number in range(3):
        await layer.create_step(_step(thread_id, number))
    await layer.close()
    assert "closed with unwritten changes rows=3" in caplog.text
    assert ".journal" in caplog.text
    durable_postgres_server.start()
    layer = make_layer(url)
    assert await _numbers(layer, thread_id) == [0, 1, 2]
    await layer.close()


async def test_a_full_journal_refuses_and_says_so(
    make_layer: MakeLayer, durable_postgres_server: PostgresServer
) -> None:
    url, thread_id = durable_postgres_server.create_database(), str(uuid.uuid4())
    mebibyte = 1024 * 1024
    layer = make_layer(
        url, queue_max_bytes=64 * 1024, journal_max_bytes=mebibyte, queue_timeout=0, close_timeout=20
    )
    await layer.execute_sql("SELECT 1", {})
    durable_postgres_server.crash()
    written = await asyncio.gather(
        *(layer.create_step(_step(thread_id, number, size=10_000)) for number in range(110)),
        return_exceptions=True,
    )
    taken = written.index(next(error for error in written if error is not None))
    assert 50 < taken < 110
    assert {type(error) for error in written[taken:]} == {QueueFull}
    assert layer._engine.counts.refused["queue_full"] == 110 - taken
    durable_postgres_server.start()
    await layer.flush()
    assert await _numbers(layer, thread_id) == list(range(taken))
    assert _balanced(layer)
    await layer.close()


async def test_what_was_spilled_and_can_not_be_read_back_is_counted_and_told(
    make_layer: MakeLayer,
    durable_postgres_server: PostgresServer,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    layer = make_layer(durable_postgres_server.create_database(), queue_max_bytes=64 * 1024)
    thread_id = str(uuid.uuid4())
    await layer.create_step(_step(thread_id, 0))
    await layer.flush()
    durable_postgres_server.crash()
    for number in range(1, 20):
        await layer.create_step(_step(thread_id, number, size=10_000))
    assert layer._engine.inbox.spilled > 5
    paths = segments_of(next(folder.glob("*.journal")))
    (segment,) = (path for path in paths if b'"15 xxx' in path.read_bytes())
    content = segment.read_bytes()
    at = content.index(b'"15 xxx')
    segment.write_bytes(content[:at] + b'"51' + content[at + 3 :])
    durable_postgres_server.start()
    await layer.flush()
    assert await _numbers(layer, thread_id) == [number for number in range(20) if number != 15]
    assert "journal damaged changes=1" in caplog.text
    assert layer._engine.counts.dropped == {"journal": 1}
    assert _balanced(layer)
    await layer.close()


async def test_a_journal_of_another_release_is_left_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = await _leave_behind(folder, str(uuid.uuid4()), 1)
    shutil.rmtree(path)
    Log(path, About(99, path.stem, "")).close()
    assert adopt(folder) is None
    assert "another release" in caplog.text
    assert path.exists()


async def test_a_folder_that_cannot_be_written_is_a_clear_error(
    make_layer: MakeLayer, migrated_url: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    layer = make_layer(migrated_url, journal_dir=tmp_path / "file" / "journals")
    with pytest.raises(JournalError, match="FOREBAY_JOURNAL_DIR") as refused:
        await layer.update_thread(str(uuid.uuid4()), name="x")
    # Chainlit shows a feedback's error to whoever chats; the log has where it was.
    assert str(tmp_path) not in str(refused.value)
    assert str(tmp_path) in told(refused.value)
    assert await layer.get_thread(str(uuid.uuid4())) is None, "reading needs no journal"
    await layer.close()


async def test_a_bad_row_among_good_ones_passes_through_the_journal(
    make_layer: MakeLayer, migrated_postgres_url: str, folder: Path
) -> None:
    layer, thread_id = make_layer(migrated_postgres_url), str(uuid.uuid4())
    steps = [_step(thread_id, number) for number in range(200)]
    # As a release before may have journaled it: by the door, nothing of the kind gets in.
    bad = changes.step({**steps.pop(77), "id": "no uuid"})
    await asyncio.gather(*(layer.create_step(values) for values in steps), layer._engine.intake.write(bad))
    await layer.flush()
    assert await _numbers(layer, thread_id) == [number for number in range(200) if number != 77]
    assert layer._engine.counts.dead_lettered.total() == 1
    assert _balanced(layer)
    await layer.close()
    (letter,) = DeadLetters(folder).find()
    assert (letter.table, letter.row_id, letter.sqlstate) == ("steps", "no uuid", "22P02")
    assert [path.name for path in folder.iterdir()] == ["dead-letters.db"]


async def test_a_commit_whose_answer_was_lost_is_not_repeated(
    make_layer: MakeLayer, migrated_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncpg.connect(migrated_postgres_url)
    await connection.execute(
        "CREATE TABLE audit (id UUID); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NULL; END $$;"
        " CREATE TRIGGER note AFTER INSERT OR UPDATE ON steps FOR EACH ROW EXECUTE FUNCTION note()"
    )
    layer, thread_id = make_layer(migrated_postgres_url), str(uuid.uuid4())
    apply, lost = layer._store.apply, 0

    async def apply_and_lose_the_answer(*arguments: Any, **options: Any) -> Any:
        nonlocal lost
        answer = await apply(*arguments, **options)
        if lost == 0:
            lost += 1
            raise TransientError("the connection is lost")
        return answer

    monkeypatch.setattr(layer._store, "apply", apply_and_lose_the_answer)
    await layer.create_step(_step(thread_id, 0))
    await layer.flush()
    assert (lost, await connection.fetchval("SELECT count(*) FROM audit")) == (1, 1)
    await layer.close()
    await connection.close()


async def test_a_disk_that_does_not_give_back_what_was_spilled_ends_nothing(
    make_layer: MakeLayer, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, thread_id = make_layer(migrated_url, queue_max_bytes=20_000, linger=0.001), str(uuid.uuid4())
    read, failures = Journal.read, 2

    async def failing(journal: Journal, after_seq: int, max_bytes: int) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise JournalError("a journal can't be read (Input/output error)")
        return await read(journal, after_seq, max_bytes)

    monkeypatch.setattr(Journal, "read", failing)
    await asyncio.gather(*(layer.create_step(_step(thread_id, number, 1000)) for number in range(60)))
    await asyncio.wait_for(layer._engine.barrier.flush(), PATIENCE)
    assert failures == 0
    assert not layer._engine.ended
    assert await _numbers(layer, thread_id) == list(range(60))
    assert _balanced(layer)
    await layer.close()
