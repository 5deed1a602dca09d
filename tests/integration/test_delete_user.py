"""Who is deleted is gone: rows, contents, journals, dead letters, uploads; and what comes for them later stays out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chainlit.element import Text
from chainlit.types import Feedback
from chainlit.user import PersistedUser, User
from click.testing import CliRunner

from forebay import ForebayDataLayer, Settings
from forebay.cli import main
from forebay.database.snapshot import Chosen
from forebay.errors import DeletionIncomplete, RowError, TransientError
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.side_journal import SideJournal
from forebay.layer import deletion, purge
from forebay.model import changes
from forebay.model.changes import Change, Claimant, Delete
from forebay.transfer.bring import bring_export
from forebay.transfer.take import take
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, dead_letters, how_many, new_id, rows
from tests.support.patience import FOR_EVER, patience
from tests.support.sessions import in_session
from tests.support.storage import MemoryStorage

MARK = "wisteria"


@pytest.fixture(autouse=True)
def _looked_for_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "_LOOK", 0.05)


@pytest.fixture
def name() -> str:
    """A login name of the test's own: what is noted of it stays in a database that tests share."""
    return f"{MARK}-{new_id()}"


def _without_a_journal(make_layer: MakeLayer, url: str, **values: Any) -> ForebayDataLayer:
    return make_layer(url, settings=Settings(durability="memory", **values))


@pytest.fixture
def app(make_layer: MakeLayer, emptied_url: str) -> ForebayDataLayer:
    """Of the process that people chat with."""
    return _without_a_journal(make_layer, emptied_url)


@pytest.fixture
def job(make_layer: MakeLayer, emptied_url: str) -> ForebayDataLayer:
    """Of the process that deletes."""
    return _without_a_journal(make_layer, emptied_url, journal_keep=0)


async def _chat(layer: ForebayDataLayer, user: PersistedUser) -> str:
    """A thread with something of each kind in it."""
    thread_id = new_id()
    with in_session(spoken=True, thread_id=thread_id, user=user):
        await layer.update_thread(thread_id, name=MARK, user_id=user.id, metadata={"k": MARK}, tags=[MARK])
        step = a_step(thread_id, name=user.identifier, input=MARK, output=MARK)
        await layer.create_step(step)
        await layer.create_step(a_step(thread_id, parentId=step["id"], output=MARK))
        await layer.create_element(Text(thread_id=thread_id, for_id=step["id"], name=MARK, content=MARK))
    await layer.upsert_feedback(Feedback(forId=step["id"], value=1, threadId=thread_id, comment=MARK))
    return thread_id


async def _found(layer: ForebayDataLayer, text: str = MARK) -> list[str]:
    """The tables with a row that has this text in any column."""
    found = []
    names = "users", "threads", "steps", "elements", "feedbacks", "forebay_deleted", "forebay_tombstones"
    for table in (*names, "forebay_garbage"):
        if any(text in str(row) for row in await rows(layer, f"SELECT * FROM {table}")):
            found.append(table)
    return found


def _on_disk(folder: Path, text: str = MARK) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return [path for path in files if text.encode() in path.read_bytes()]


async def test_all_of_a_person_goes_and_nobody_elses(
    app: ForebayDataLayer, job: ForebayDataLayer, storage: MemoryStorage, name: str
) -> None:
    ada, bob = await a_user(app, name, mark=MARK), await a_user(app, f"bob {name[-5:]}")
    for _ in range(3):
        await _chat(app, ada)
    his = await a_thread(app, user_id=bob.id)
    await app.create_element(Text(thread_id=his, for_id=his, name="n", content="his"))
    await app.flush()
    assert await _found(app) == ["users", "threads", "steps", "elements", "feedbacks"]
    expected = {"users": 1, "threads": 3, "steps": 6, "elements": 3, "feedbacks": 3}
    assert (await job.delete_user(name, dry_run=True)).rows == expected
    assert len(await _found(app)) == 5
    assert (await job.delete_user(name)).rows == expected
    assert await _found(app) == []
    assert list(storage.files.values()) == [b"his"]
    assert [str(row["id"]) for row in await rows(app, "SELECT id FROM threads")] == [his]
    again = await job.delete_user(name)
    assert again.known
    assert not any(again.rows.values())
    assert not (await job.delete_user(new_id())).known


async def test_a_thread_that_has_a_persons_name_alone_is_theirs(app: ForebayDataLayer, name: str) -> None:
    """As where the row was deleted by hand, with tables whose threads stay then."""
    ada = await a_user(app, name)
    thread_id = await _chat(app, ada)
    await app.execute_sql('UPDATE threads SET "userId" = NULL WHERE id = :id', {"id": thread_id})
    assert (await app.delete_user(name)).rows["threads"] == 1
    assert await _found(app) == []


@pytest.mark.parametrize("is_told", [True, False], ids=["who it is", "an id alone"])
async def test_what_open_sessions_write_is_dropped(
    app: ForebayDataLayer, job: ForebayDataLayer, storage: MemoryStorage, name: str, is_told: bool
) -> None:
    ada = await a_user(app, name)
    old = await _chat(app, ada)
    await app.flush()
    await job.delete_user(name)
    await app.update_step(a_step(old, output=MARK))
    new = new_id()
    with in_session(spoken=True, thread_id=new, user=ada if is_told else None):
        await app.create_step(a_step(new, output=MARK))  # before its thread is anybody's
        await app.flush()
        await app.create_step(a_step(new, output=MARK))
        app._people.forget(name)
        await app.update_thread(new, name=MARK, user_id=ada.id)
        await app.create_element(Text(thread_id=new, for_id=new, name=MARK, content=MARK))
        await app.flush()
        await app.create_step(a_step(new, output=MARK))
        await app.flush()
    assert await _found(app) == []
    assert not storage.files
    assert await how_many(app, "threads") == await how_many(app, "users") == 0
    assert dead_letters(app) == 0
    counts = app._engine.counts.dropped
    assert counts["deleted_user"] == 1
    assert counts["deleted_thread"] >= 3


async def test_who_logs_in_afterwards_is_somebody_new(
    app: ForebayDataLayer, job: ForebayDataLayer, name: str
) -> None:
    before = await a_user(app, name, role="admin")
    await job.delete_user(name)
    after = await a_user(app, name)
    assert after.id != before.id
    assert after.metadata == {}
    thread_id = await _chat(app, after)
    await app.flush()
    assert await app.get_thread_author(thread_id) == name
    assert await how_many(app, "threads") == 1


async def test_a_thread_of_somebody_else_stays_whoever_is_named_as_its_owner(
    app: ForebayDataLayer, job: ForebayDataLayer, name: str
) -> None:
    ada, bob = await a_user(app, name), await a_user(app, f"bob {name[-5:]}")
    his = await a_thread(app, user_id=bob.id)
    await app.flush()
    await job.delete_user(name)
    with in_session(spoken=True, thread_id=his, user=ada):
        await app.update_thread(his, user_id=ada.id)
    await app.update_thread(his, name="his", user_id=ada.id)
    await app.flush()
    (found,) = await rows(app, 'SELECT name, "userId" FROM threads')
    assert (found["name"], str(found["userId"])) == ("his", bob.id)
    assert dead_letters(app) == 0


async def test_who_logs_in_meanwhile_is_somebody_new_at_once(
    app: ForebayDataLayer, job: ForebayDataLayer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await a_user(app, name)
    for _ in range(3):
        await _chat(app, before)
    await app.flush()
    logins = [asyncio.create_task(a_user(app, name)) for _ in range(5)]
    new: list[str] = []

    async def meanwhile(*arguments: Any, **named: Any) -> int:
        user = await a_user(app, name)
        new.extend((user.id, await _chat(app, user)))
        await app.flush()
        return await purge.delete_all(*arguments, **named)

    monkeypatch.setattr(deletion, "delete_all", meanwhile)
    await job.delete_user(name)
    user_id, thread_id = new
    assert {user.id for user in await asyncio.gather(*logins)} <= {before.id, user_id}
    (found,) = await rows(app, 'SELECT id, "userId", "userIdentifier" FROM threads')
    assert (str(found["id"]), str(found["userId"]), found["userIdentifier"]) == (thread_id, user_id, name)
    assert (await a_user(app, name)).id == user_id != before.id
    assert await how_many(app, "users") == 1


async def test_a_login_in_an_outage_does_not_outlive_a_deletion(
    app: ForebayDataLayer, job: ForebayDataLayer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await a_user(app, name)

    async def away(*_: Any, **__: Any) -> None:
        raise TransientError("away")

    with monkeypatch.context() as outage:
        outage.setattr(app._barrier, "write_now", away)
        known = await app.create_user(User(identifier=name, metadata={"role": "admin"}))
        assert known is not None
        assert known.id == ada.id
    await job.delete_user(name)
    assert await app.get_user(name) is None
    assert (await a_user(app, name)).metadata == {}


def _left_behind(layer: ForebayDataLayer, *found: Change) -> None:
    """A journal of a process that has ended."""
    journal = SideJournal(layer.settings.journal_dir, layer._store.label, layer._store.database_id)
    journal.append(1, found)
    journal.release()


async def test_journals_that_were_left_behind(
    app: ForebayDataLayer, job: ForebayDataLayer, name: str
) -> None:
    ada = await a_user(app, name)
    known = await _chat(app, ada)
    await app.flush()
    unknown, claimed = new_id(), new_id()
    _left_behind(
        app,
        changes.step(a_step(known, output=MARK)),
        changes.step(a_step(unknown, output=MARK)),
        changes.thread(unknown, MARK, ada.id, owner=Claimant(name)),
        changes.thread(claimed, MARK, claimant=Claimant(name)),
        changes.step(a_step(claimed, output=MARK)),
    )
    folder = app.settings.journal_dir
    assert _on_disk(folder)
    await job.delete_user(name)
    assert await _found(app) == []
    assert _on_disk(folder) == []
    assert await how_many(app, "users") == await how_many(app, "threads") == 0


async def test_a_claim_that_comes_late_is_of_before_the_deletion(
    app: ForebayDataLayer, job: ForebayDataLayer, name: str
) -> None:
    await a_user(app, name)
    before = changes.thread(new_id(), MARK, claimant=Claimant(name))
    await job.delete_user(name)
    after = changes.thread(new_id(), "b", claimant=Claimant(name))
    await app._store.apply([before, after], late=True)
    assert [str(row["id"]) for row in await rows(app, "SELECT id FROM threads")] == [after.key]
    assert await how_many(app, "users") == 1


async def test_a_running_process_lets_go_of_its_journal_before_it_is_done(
    make_layer: MakeLayer, migrated_sqlite_url: str, name: str
) -> None:
    app = make_layer(migrated_sqlite_url, settings=Settings(journal_keep=3600))
    job = _without_a_journal(make_layer, migrated_sqlite_url, journal_keep=0)
    ada = await a_user(app, name)
    await _chat(app, ada)
    await app.flush()
    folder = app.settings.journal_dir
    assert _on_disk(folder)
    await app.delete_thread(await a_thread(app))  # whose delete is kept as long, and holds nothing
    with pytest.raises(DeletionIncomplete, match="journals, of running processes"):
        await job.delete_user(name, patience=0)
    assert await _found(app) == []
    deleting = asyncio.create_task(job.delete_user(name, patience=FOR_EVER))
    await asyncio.sleep(0.2)
    assert not deleting.done()
    await app.close()  # which takes its journal along
    async with patience():
        await deleting
    assert _on_disk(folder) == []


async def test_uploads_that_were_left_behind(
    make_layer: MakeLayer, emptied_url: str, storage: MemoryStorage, name: str
) -> None:
    app = _without_a_journal(make_layer, emptied_url, upload_timeout=0.1, close_timeout=0.1)
    storage.failing.add("upload_file")
    await _chat(app, await a_user(app, name))
    await app.flush()
    await app.close()
    folder = app.settings.journal_dir
    assert _on_disk(folder)
    storage.failing.clear()
    job = _without_a_journal(make_layer, emptied_url, journal_keep=0)
    await job.delete_user(name, patience=FOR_EVER)
    assert await _found(job) == []
    assert _on_disk(folder) == []
    assert not storage.files


async def test_dead_letters_of_the_person(app: ForebayDataLayer, job: ForebayDataLayer, name: str) -> None:
    ada, bob = await a_user(app, name), await a_user(app, f"bob {name[-5:]}")
    known, his = await _chat(app, ada), await a_thread(app, user_id=bob.id)
    await app.flush()
    letters = DeadLetters(app.settings.journal_dir)
    of_bob = changes.step(a_step(his, output="his"))
    for change in (
        changes.step(a_step(known, output=MARK)),
        Delete("steps", new_id(), known),
        changes.thread(new_id(), MARK, ada.id),
        changes.thread(new_id(), MARK, claimant=Claimant(name)),
        of_bob,
    ):
        letters.keep(app._store.label, change, RowError("no"), app._store.database_id)
    letters.keep("elsewhere", changes.step(a_step(known)), RowError("no"), "another one")
    assert (await job.delete_user(name)).letters == 4
    assert next(letter.row_id for letter in letters.find()) == of_bob.key
    assert len(letters.find()) == 2
    assert _on_disk(app.settings.journal_dir) == []


async def test_what_the_database_refuses_of_a_deleted_chat_is_no_letter(
    make_layer: MakeLayer, emptied_postgres_url: str, name: str
) -> None:
    app = _without_a_journal(make_layer, emptied_postgres_url)
    job = _without_a_journal(make_layer, emptied_postgres_url, journal_keep=0)
    hers, his = await _chat(app, await a_user(app, name)), await a_thread(app)
    await app.flush()
    await job.delete_user(name)
    for thread_id in (hers, his):
        step = changes.step(a_step(thread_id, output=MARK if thread_id == hers else "his"))
        step.row["indent"] = 2**40  # which no row can have, whosever it is
        await app._submit(step)
    await app.flush()
    (letter,) = DeadLetters(app.settings.journal_dir).find()
    assert letter.change.thread_id == his
    assert dead_letters(app) == 1
    assert app._engine.counts.dropped["deleted_thread"] == 1


async def test_a_storage_that_fails_is_told_and_gone_on_with(
    app: ForebayDataLayer, job: ForebayDataLayer, storage: MemoryStorage, name: str
) -> None:
    await _chat(app, await a_user(app, name))
    await app.flush()
    storage.failing.add("delete_file")
    with pytest.raises(DeletionIncomplete, match="the storage has not deleted: 1"):
        await job.delete_user(name, patience=0)
    assert storage.files
    assert await _found(app) == ["forebay_garbage"]  # the key says what the file was called
    with pytest.raises(DeletionIncomplete):
        await job.delete_user(name, patience=0)
    storage.failing.clear()
    await job.delete_user(name)
    assert await _found(app) == []
    assert not storage.files


async def test_a_deletion_that_was_ended_is_gone_on_with(
    app: ForebayDataLayer, job: ForebayDataLayer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await _chat(app, await a_user(app, name))
    await app.flush()
    with monkeypatch.context() as broken:
        broken.setattr(deletion, "delete_all", _raise(TransientError("ended")))
        with pytest.raises(TransientError):
            await job.delete_user(name)
    assert await _found(app, name) == ["threads", "steps"]  # and nobody of that name is there
    assert (await job.delete_user(name)).known
    assert await _found(app) == []
    assert await how_many(app, "users") == 0


def _raise(error: Exception) -> Callable[..., Awaitable[None]]:
    async def raising(*_: Any, **__: Any) -> None:
        raise error

    return raising


async def test_an_export_of_before_does_not_bring_them_back(
    app: ForebayDataLayer, job: ForebayDataLayer, name: str, tmp_path: Path
) -> None:
    await _chat(app, await a_user(app, name))
    await app.flush()
    with (tmp_path / "before").open("wb") as into:
        await take(app._store, into, Chosen(), progress=lambda _done, _all: None)
    lines = (tmp_path / "before").read_text().splitlines()
    assert len(lines) > 6
    await job.delete_user(name)
    # Also a thread that is noted nowhere, as where its note has been cleared away.
    await app.execute_sql("DELETE FROM forebay_tombstones", {})
    await app.execute_sql("DELETE FROM forebay_deleted WHERE kind = 'threads'", {})
    brought = await bring_export(app._store, tmp_path / "before", lambda _done, _all: None)
    assert brought.deleted["user"] == brought.deleted["thread"] == 1
    assert not brought.rows
    await app._attachments.collect()
    assert await _found(app) == []


async def test_tables_without_the_owners_foreign_key(
    make_layer: MakeLayer, migrated_postgres_url: str, name: str
) -> None:
    make = partial(_without_a_journal, make_layer, migrated_postgres_url)
    before = make()
    for table, key in (("threads", "threads_userId_fkey"),):
        await before.execute_sql(f'ALTER TABLE {table} DROP CONSTRAINT "{key}"', {})
    app, job = make(), make(journal_keep=0)
    ada = await a_user(app, name)
    await _chat(app, ada)
    await app.flush()
    await job.delete_user(name)
    await _chat(app, ada)
    await app.flush()
    assert await _found(app) == []
    assert dead_letters(app) == 0
    await _chat(app, await a_user(app, name))
    await app.flush()
    assert await how_many(app, "threads") == 1


# ---- the command


async def _run(*words: str) -> Any:
    return await asyncio.to_thread(CliRunner().invoke, main, ["delete-user", *words])


async def test_the_command(
    app: ForebayDataLayer, emptied_url: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_STORAGE", "none")  # contents are in this process's memory
    await _chat(app, await a_user(app, name))
    await app.flush()
    _left_behind(app, changes.step(a_step(new_id(), output="nobody's")))
    words = (name, "--database-url", emptied_url, "--json")
    looked = await _run(*words, "--dry-run")
    assert looked.exit_code == 0, looked.output
    assert json.loads(looked.stdout) == {
        "rows": {"users": 1, "threads": 1, "steps": 2, "elements": 1, "feedbacks": 1},
        "letters": 0,
        "damaged": [],
        "deleted": False,
    }
    refused = await _run(*words)
    assert refused.exit_code == 1
    assert "--yes" in refused.output
    export = tmp_path / "theirs.jsonl"
    left = await _run(*words, "--export", str(export), "--yes", "--wait", "0")
    assert left.exit_code == 1
    assert "the storage has not deleted: 1" in left.output
    assert name in export.read_text()
    await app._attachments.collect()
    told = await _run(name, "--database-url", emptied_url, "--yes")
    assert told.exit_code == 0, told.output
    assert "Out of reach: backups" in told.output
    assert await _found(app) == []
    unknown = await _run("nobody", "--database-url", emptied_url, "--yes")
    assert unknown.exit_code == 1
    assert "nobody has this login" in unknown.output
    assert (await _run(name, "--files", str(tmp_path), "--database-url", emptied_url)).exit_code == 2
