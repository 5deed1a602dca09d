"""What comes late, from a journal, a dead letter or another process: never over what is newer, never back to life."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from chainlit.context import ChainlitContext
from click.testing import CliRunner, Result

from forebay import ForebayDataLayer, Settings
from forebay.cli import main
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.journal import Journal
from forebay.model.changes import Change, Delete, element, step, thread
from forebay.pipeline import recovery
from tests.integration.contract import accounted_for
from tests.support.patience import patience

MakeLayer = Callable[..., ForebayDataLayer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journals"


@pytest.fixture
async def make_layer(folder: Path, chainlit_context: ChainlitContext) -> AsyncIterator[MakeLayer]:
    made: list[ForebayDataLayer] = []

    def make(url: str, **values: Any) -> ForebayDataLayer:
        made.append(ForebayDataLayer(url, settings=Settings(**{"journal_dir": folder, **values})))
        return made[-1]

    yield make
    for layer in made:
        await layer.close()
        assert accounted_for(layer), repr(layer)


async def leave_behind(folder: Path, *changes: Change, location: str = "") -> Path:
    """A journal whose process is gone."""
    journal = Journal(folder, asyncio.get_running_loop(), location)
    await asyncio.gather(*(journal.append(seq, change) for seq, change in enumerate(changes, 1)))
    await journal.close(remove=False)
    return journal.path


async def gone(path: Path) -> None:
    """Return when the file is no longer there."""
    async with patience():
        while path.exists():  # noqa: ASYNC110 - another process removes it
            await asyncio.sleep(0.01)


def a_step(thread_id: str, **values: Any) -> Any:
    return {"id": str(uuid.uuid4()), "threadId": thread_id, "name": "n", "type": "run", **values}


async def count_of(layer: ForebayDataLayer, table: str) -> int:
    rows: Any = await layer.execute_sql(f"SELECT count(*) AS n FROM {table}", {})
    return int(rows[0]["n"])


async def test_a_thread_that_another_process_has_deleted_stays_deleted(
    make_layer: MakeLayer, migrated_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    here, there, thread_id = make_layer(migrated_url), make_layer(migrated_url), str(uuid.uuid4())
    await here.create_step(a_step(thread_id))
    await here.flush()
    await there.delete_thread(thread_id)
    late = a_step(thread_id)
    await here.create_step(late)
    await here.create_step(a_step(other := str(uuid.uuid4())))
    await here.flush()
    assert await here.get_thread(thread_id) is None
    assert await here.get_step(late["id"]) is None
    assert await here.get_thread(other) is not None, "its neighbour in the batch is written"
    assert here._engine.counts.dropped == {"deleted_thread": 1}
    await here.create_step(a_step(thread_id))
    assert here._engine.inbox.pending == 0, "the process has learnt it"
    assert "its thread was deleted" in caplog.text


async def test_a_journal_does_not_bring_a_deleted_thread_back(
    make_layer: MakeLayer, migrated_url: str, folder: Path, tmp_path: Path
) -> None:
    thread_id, other = str(uuid.uuid4()), str(uuid.uuid4())
    await leave_behind(
        folder, thread(thread_id, "ghost"), step(a_step(thread_id)), step(a_step(other, output="kept"))
    )
    elsewhere = make_layer(migrated_url, journal_dir=tmp_path / "elsewhere")
    await elsewhere.delete_thread(thread_id)
    layer = make_layer(migrated_url)
    assert await layer.get_thread(thread_id) is None
    kept = await layer.get_thread(other)
    assert kept is not None
    assert [stored["output"] for stored in kept["steps"]] == ["kept"]
    assert layer._engine.counts.dropped == {"deleted_thread": 2}


async def test_a_delete_in_a_journal_is_done_as_well(
    make_layer: MakeLayer, migrated_url: str, folder: Path
) -> None:
    thread_id = str(uuid.uuid4())
    await leave_behind(folder, step(a_step(thread_id)), Delete("threads", thread_id, thread_id))
    layer = make_layer(migrated_url)
    assert await layer.get_thread(thread_id) is None
    assert await count_of(layer, "steps") == 0
    assert await count_of(layer, "forebay_tombstones") == 1


async def test_what_is_newer_in_the_database_stays_and_gaps_are_filled(
    make_layer: MakeLayer, migrated_url: str, folder: Path, tmp_path: Path
) -> None:
    thread_id = str(uuid.uuid4())
    values = a_step(thread_id)
    old_step = step({**values, "output": "old", "language": "python", "icon": "old", "colour": "red"})
    old_thread = thread(thread_id, "old", metadata={"a": "old", "b": "old"})
    newer = make_layer(migrated_url, journal_dir=tmp_path / "elsewhere")
    await newer.update_step(values | {"output": "new", "icon": "new"})
    await newer.update_thread(thread_id, "new", metadata={"a": "new"}, tags=["new"])
    await newer.close()
    await leave_behind(folder, old_thread, old_step)
    layer = make_layer(migrated_url)
    found = await layer.get_thread(thread_id)
    assert found is not None
    assert (found["name"], found["tags"], found["metadata"]) == ("new", ["new"], {"a": "new", "b": "old"})
    (stored,) = found["steps"]
    assert (stored["output"], stored["language"]) == ("new", "python")
    assert (stored["icon"], stored["colour"]) == ("new", "red")  # type: ignore[typeddict-item]


async def test_what_is_older_in_the_database_is_overwritten_in_order(
    make_layer: MakeLayer, migrated_url: str, folder: Path, tmp_path: Path
) -> None:
    values = a_step(str(uuid.uuid4()))
    older = make_layer(migrated_url, journal_dir=tmp_path / "elsewhere")
    await older.update_step(values | {"output": "first"})
    await older.close()
    await leave_behind(
        folder, *(step({**values, "output": output}) for output in ("second", "third", "fourth"))
    )
    layer = make_layer(migrated_url)
    stored = await layer.get_step(values["id"])
    assert stored is not None
    assert stored["output"] == "fourth"


async def test_a_journal_is_adopted_while_the_layer_runs(
    make_layer: MakeLayer, migrated_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "INTERVAL", 0.02)
    layer, values = make_layer(migrated_url, journal_keep=0), a_step(str(uuid.uuid4()))
    assert await layer.get_step(values["id"]) is None
    path = await leave_behind(folder, step(values))
    await gone(path)
    assert await layer.get_step(values["id"]) is not None
    assert layer._engine.counts.replayed == 1


async def test_new_changes_go_between_those_of_a_long_journal(
    make_layer: MakeLayer, migrated_url: str, folder: Path
) -> None:
    thread_id, count = str(uuid.uuid4()), 3000
    await leave_behind(
        folder, *(step(a_step(thread_id, output=f"{number} " + "x" * 1000)) for number in range(count))
    )
    layer = make_layer(migrated_url, linger=0)
    await layer.create_step(a_step(str(uuid.uuid4())))
    await layer.flush()
    assert layer._engine.counts.replayed < count, "it did not wait for the journal's end"
    found = await layer.get_thread(thread_id)
    assert found is not None
    assert len(found["steps"]) == count, "a read does"


async def test_a_journal_of_another_database_is_left_alone(
    make_layer: MakeLayer, migrated_url: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = a_step(str(uuid.uuid4()))
    path = await leave_behind(folder, step(values), location="sqlite:///another.db")
    layer = make_layer(migrated_url)
    assert await layer.get_step(values["id"]) is None
    assert path.exists()
    assert "it is for sqlite:///another.db" in caplog.text


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


async def test_an_old_letter_never_overwrites_a_newer_value(
    make_layer: MakeLayer, migrated_postgres_url: str, folder: Path
) -> None:
    connection = await asyncpg.connect(migrated_postgres_url)
    await connection.execute("ALTER TABLE steps ADD CONSTRAINT picky CHECK (name <> 'bad')")
    layer, values = make_layer(migrated_postgres_url), a_step(str(uuid.uuid4()), name="bad")
    await layer.create_step(values | {"output": "old", "language": "python"})
    await layer.flush()
    await layer.update_step({"id": values["id"], "threadId": values["threadId"], "output": "new"})
    await layer.flush()
    where = ["--journal-dir", str(folder)]
    listed = json.loads((await asyncio.to_thread(command, "dead-letters", "list", "--json", *where)).output)
    assert [(letter["row_id"], letter["sqlstate"]) for letter in listed] == [(values["id"], "23514")]
    shown = json.loads((await asyncio.to_thread(command, "dead-letters", "show", "1", *where)).output)
    assert shown["values"]["output"] == "old"
    retry = ("dead-letters", "retry", "--all", "--json", "--database-url", migrated_postgres_url, *where)
    again = await asyncio.to_thread(command, *retry)
    assert (again.exit_code, json.loads(again.output)["refused"]) == (1, [1])
    await connection.execute("ALTER TABLE steps DROP CONSTRAINT picky")
    mended = await asyncio.to_thread(command, *retry)
    assert (mended.exit_code, json.loads(mended.output)["written"]) == (0, [1])
    assert DeadLetters(folder).count() == 0
    stored = await layer.get_step(values["id"])
    assert stored is not None
    assert (stored["name"], stored["output"], stored["language"]) == ("bad", "new", "python")
    await connection.close()


async def test_elements_of_a_journal_come_in_the_order_in_which_they_were_sent(
    make_layer: MakeLayer, folder: Path, migrated_url: str
) -> None:
    thread_id = str(uuid.uuid4())
    row = {"threadId": thread_id, "forId": str(uuid.uuid4())}
    made = [element({**row, "id": str(uuid.uuid4()), "name": str(number)}) for number in range(12)]
    again = element({**row, "id": made[0].key, "name": "0!"})
    await leave_behind(folder, *made[:6])
    await leave_behind(folder, *made[6:])
    layer = make_layer(migrated_url)
    await layer._engine.intake.write(again)  # the newest, and what was sent first
    thread = await layer.get_thread(thread_id)
    assert thread is not None
    names = [each["name"] for each in thread["elements"] or ()]
    assert names == ["0!", *map(str, range(1, 12))]


async def test_a_letter_of_a_deleted_thread_is_forgotten(
    make_layer: MakeLayer, migrated_postgres_url: str, folder: Path
) -> None:
    connection = await asyncpg.connect(migrated_postgres_url)
    await connection.execute("ALTER TABLE steps ADD CONSTRAINT picky CHECK (name <> 'bad')")
    layer, thread_id = make_layer(migrated_postgres_url), str(uuid.uuid4())
    await layer.create_step(a_step(thread_id, name="bad"))
    await layer.flush()
    await layer.delete_thread(thread_id)
    await connection.execute("ALTER TABLE steps DROP CONSTRAINT picky")
    url = ("--database-url", migrated_postgres_url, "--journal-dir", str(folder))
    done = await asyncio.to_thread(command, "dead-letters", "retry", "1", "--json", *url)
    assert json.loads(done.output) == {"written": [], "thread_deleted": [1], "refused": []}
    assert await count_of(layer, "steps") == 0
    await connection.close()


@pytest.mark.parametrize("names", [(), ("1", "--all")])
def test_retry_and_discard_want_ids_or_all(names: tuple[str, ...], tmp_path: Path) -> None:
    for action in ("retry", "discard"):
        refused = command("dead-letters", action, *names, "--journal-dir", str(tmp_path))
        assert refused.exit_code == 2
        assert "--all" in refused.output


def test_a_letter_that_is_not_there_is_told(tmp_path: Path) -> None:
    refused = command("dead-letters", "show", "7", "--journal-dir", str(tmp_path))
    assert (refused.exit_code, "there is no letter 7" in refused.output) == (1, True)
    assert "no dead letters" in command("dead-letters", "list", "--journal-dir", str(tmp_path)).output


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("n\n", False), ("", False)])
def test_discarding_all_asks_first(answer: str, goes: bool, tmp_path: Path) -> None:
    from forebay.errors import RowError

    letters = DeadLetters(tmp_path)
    letters.keep("sqlite:///x.db", step(a_step("t")), RowError("refused"))
    named = ["dead-letters", "discard", "--all", "--journal-dir", str(tmp_path)]
    done = CliRunner().invoke(main, named, input=answer)
    assert (done.exit_code == 0, letters.count() == 0) == (goes, goes)
    assert command(*named, "--yes").exit_code == 0
    assert letters.count() == 0


def test_a_discarded_letter_is_gone(tmp_path: Path) -> None:
    from forebay.errors import RowError

    letters = DeadLetters(tmp_path)
    for number in range(3):
        letters.keep("sqlite:///x.db", step(a_step("t", id=str(number))), RowError("refused"))
    letters.keep("sqlite:///x.db", letters.find()[0].change, RowError("refused again"))
    assert letters.count() == 3, "a letter that comes again is the same"
    done = command("dead-letters", "discard", "1", "3", "--json", "--journal-dir", str(tmp_path))
    assert json.loads(done.output) == {"discarded": [1, 3]}
    assert [letter.row_id for letter in letters.find()] == ["1"]
