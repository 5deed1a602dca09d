"""Chats as a file, and back: what comes out is what went in, on both databases."""

from __future__ import annotations

import json
import sqlite3
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chainlit.element import Text
from chainlit.types import Feedback
from click.testing import CliRunner, Result

from forebay import ForebayDataLayer, LocalStorageClient, Settings
from forebay.attachments.access import access
from forebay.cli import main
from forebay.database.snapshot import Chosen
from forebay.database.store import Store
from forebay.transfer import lines
from forebay.transfer.bring import Brought, bring_export
from forebay.transfer.take import Contents, take
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, stored_thread
from tests.support.postgres import PostgresServer


def _nothing(*_: object) -> None:
    """No progress to be seen."""


async def _export(url: str, path: Path, chosen: Chosen | None = None, **arguments: Any) -> dict[str, int]:
    store = Store(url, Settings())
    try:
        with path.open("wb") as into:
            return (await take(store, into, chosen or Chosen(), progress=_nothing, **arguments)).rows
    finally:
        await store.close()


async def _import(url: str, path: Path, *arguments: Any) -> Brought:
    store = Store(url, Settings(auto_migrate=True))
    try:
        return await bring_export(store, path, _nothing, *arguments)
    finally:
        await store.close()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_text().splitlines())


async def _fill(layer: ForebayDataLayer) -> str:
    """Everything that a row may have; the thread's id."""
    user = await a_user(layer)
    thread_id = await a_thread(
        layer, user_id=user.id, name="Ünïcode 🦄", tags=["a", "b"], metadata={"b": 1, "a": {"z": 1, "y": 2.5}}
    )
    step = a_step(thread_id, output="x" * 200_000, metadata={"favorite": True}, generation={"tokens": 3})
    await layer.create_step(step)
    await layer.create_step(
        a_step(thread_id, parentId=step["id"], newKey={"of": "a later release"}, tags=["t"])
    )
    await layer.upsert_feedback(Feedback(forId=step["id"], value=1, comment="good", threadId=thread_id))
    await layer.create_element(
        Text(thread_id=thread_id, for_id=step["id"], name="notes.txt", content="the notes")
    )
    await a_thread(layer, name=None)  # nobody's, and empty
    await layer.flush()
    return thread_id


async def test_it_goes_to_the_other_database_and_comes_back_the_same(
    postgres_server: PostgresServer, make_layer: MakeLayer, emptied_url: str, tmp_path: Path
) -> None:
    layer = make_layer(emptied_url)
    thread_id = await _fill(layer)
    there = f"sqlite:///{tmp_path / 'there.db'}"
    back = postgres_server.create_database()
    files = [tmp_path / name for name in ("first", "second", "third")]
    counts = await _export(emptied_url, files[0])
    assert counts == {"user": 1, "thread": 2, "step": 2, "feedback": 1, "element": 1}
    for target, before, after in ((there, files[0], files[1]), (back, files[1], files[2])):
        assert (await _import(target, before)).rows == counts
        assert await _export(target, after) == counts
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    copy = make_layer(there)
    there_too, here = await stored_thread(copy, thread_id), await stored_thread(layer, thread_id)
    for element in (*(there_too["elements"] or ()), *(here["elements"] or ())):
        del element["url"]  # signed anew each time
    assert there_too == here


async def test_a_second_import_changes_nothing_and_what_is_newer_stays(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path
) -> None:
    layer = make_layer(emptied_url)
    thread_id = await _fill(layer)
    await _export(emptied_url, tmp_path / "before")
    step = (await stored_thread(layer, thread_id))["steps"][1]
    await layer.update_step({**step, "output": "newer"})
    await layer.update_thread(thread_id, name="renamed")
    await layer.flush()
    await _export(emptied_url, tmp_path / "newer")
    brought = await _import(emptied_url, tmp_path / "before")
    assert not brought.refused
    await _export(emptied_url, tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == (tmp_path / "newer").read_bytes()


async def test_what_was_deleted_stays_deleted(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path
) -> None:
    layer = make_layer(emptied_url)
    thread_id = await _fill(layer)
    await _export(emptied_url, tmp_path / "before")
    await layer.delete_thread(thread_id)
    brought = await _import(emptied_url, tmp_path / "before")
    assert brought.deleted == {"thread": 1, "step": 2, "feedback": 1, "element": 1}
    assert await layer.get_thread(thread_id) is None


async def test_one_persons_chats_one_chat_and_those_of_late(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path
) -> None:
    layer = make_layer(emptied_url)
    thread_id = await _fill(layer)
    other = await a_user(layer, identifier="bob")
    late_id = await a_thread(layer, user_id=other.id)
    await layer.create_step(a_step(late_id, createdAt="2031-02-03T04:05:06.000000Z"))
    await layer.flush()
    counts = await _export(emptied_url, tmp_path / "ada", Chosen(identifier="ada"))
    assert counts == {"user": 1, "thread": 1, "step": 2, "feedback": 1, "element": 1}
    assert not any("bob" in str(row) for row in _rows(tmp_path / "ada"))
    assert (await _export(emptied_url, tmp_path / "one", Chosen(thread_ids=(thread_id,))))["step"] == 2
    counts = await _export(emptied_url, tmp_path / "late", Chosen(since="2031-01-01T00:00:00"))
    assert (counts["thread"], counts["step"], counts["user"]) == (1, 1, 1)


async def test_people_are_known_by_their_login_names(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path
) -> None:
    layer = make_layer(emptied_url)
    thread_id = await _fill(layer)
    await _export(emptied_url, tmp_path / "file")
    target = f"sqlite:///{tmp_path / 'there.db'}"
    there = make_layer(target)
    known = await a_user(there)  # ada, under another id
    await _import(target, tmp_path / "file")
    found = await stored_thread(there, thread_id)
    assert (found["userId"], found["userIdentifier"]) == (known.id, "ada")


async def test_somebody_elses_id_is_not_taken(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path
) -> None:
    layer = make_layer(emptied_url)
    thread_id = await _fill(layer)
    await _export(emptied_url, tmp_path / "file")
    ada = await layer.get_user("ada")
    assert ada is not None
    target = f"sqlite:///{tmp_path / 'there.db'}"
    there = make_layer(target)
    await there.execute_sql(
        "INSERT INTO users (id, identifier, metadata) VALUES (:id, 'eve', '{}')", {"id": ada.id}
    )
    await _import(target, tmp_path / "file")
    assert (await stored_thread(there, thread_id))["userIdentifier"] == "ada"
    assert await there.get_thread_author(thread_id) == "ada"


async def test_ids_that_postgresql_does_not_take_become_others_always_the_same(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path
) -> None:
    source = f"sqlite:///{tmp_path / 'source.db'}"
    layer = make_layer(source)
    await layer.update_thread("thread-7", name="seven")
    await layer.create_step(a_step("thread-7", id="step-1"))
    await layer.create_step(a_step("thread-7", id="step-2", parentId="step-1"))
    await layer.flush()
    await _export(source, tmp_path / "file")
    for _ in range(2):
        brought = await _import(emptied_url, tmp_path / "file")
        assert (brought.rows["step"], brought.refused.total()) == (2, 0)
    await _export(emptied_url, tmp_path / "there")
    rows = [row for row in _rows(tmp_path / "there") if row["kind"] == "step"]
    assert len(rows) == 2
    parents = {row["id"]: row.get("parentId") for row in rows}
    assert set(parents.values()) - {None} <= parents.keys()


async def test_contents_go_along(make_layer: MakeLayer, emptied_url: str, tmp_path: Path) -> None:
    here, there = LocalStorageClient(tmp_path / "here"), LocalStorageClient(tmp_path / "new")
    layer = make_layer(emptied_url, storage_provider=here)
    await _fill(layer)
    await _export(emptied_url, tmp_path / "file", contents=Contents(access(here), tmp_path / "files"))
    (key,) = [row["objectKey"] for row in _rows(tmp_path / "file") if row["kind"] == "element"]
    assert (tmp_path / "files" / key).read_bytes() == b"the notes"
    target = f"sqlite:///{tmp_path / 'there.db'}"
    brought = await _import(target, tmp_path / "file", access(there), tmp_path / "files")
    assert brought.files == 1
    assert await access(there).look(key) is not None


async def test_a_key_of_another_layer_leads_out_of_no_folder(tmp_path: Path) -> None:
    sut = Contents(access(LocalStorageClient(tmp_path / "storage")), tmp_path / "files")
    assert not await sut.take("../../outside")
    assert not (tmp_path.parent / "outside").exists()


_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "without its last line": lambda whole: b"".join(whole.splitlines(keepends=True)[:-1]),
    "a line less": lambda whole: b"".join(
        [line for n, line in enumerate(whole.splitlines(keepends=True)) if n != 1]
    ),
    "changed": lambda whole: whole.replace(b"answer", b"anxwer", 1),
    "no export": lambda _whole: b"{}\n",
    "empty": lambda _whole: b"",
    "more behind it": lambda whole: whole + whole.splitlines(keepends=True)[1],
    "newer": lambda whole: whole.replace(b'"version":1', b'"version":2', 1),
}


@pytest.mark.parametrize("what", _DAMAGES)
async def test_a_damaged_file_is_refused_before_anything_is_written(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path, what: str
) -> None:
    layer = make_layer(emptied_url)
    thread_id = await a_thread(layer)
    await layer.create_step(a_step(thread_id, output="answer"))
    await layer.flush()
    await _export(emptied_url, tmp_path / "file")
    target = f"sqlite:///{tmp_path / 'there.db'}"
    path = tmp_path / "damaged"
    path.write_bytes(_DAMAGES[what]((tmp_path / "file").read_bytes()))
    with pytest.raises(lines.DamagedExport):
        await _import(target, path)
    assert (await _export(target, tmp_path / "there"))["thread"] == 0


def _run(*words: str) -> Result:
    return CliRunner().invoke(main, words, catch_exceptions=False)


def test_the_commands(tmp_path: Path) -> None:
    url, there, file = f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'b.db'}", tmp_path / "file"
    assert _run("migrate", "--database-url", url).exit_code == 0
    key = str(uuid.uuid4())
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute(
            """INSERT INTO threads (id, name, "createdAt", metadata, "forebayWrittenAt")
            VALUES (?, 'a chat', '2026', '{}', 7)""",
            (key,),
        )
    done = _run("export", str(file), "--database-url", url, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["rows"]["thread"] == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "1 threads" in _run("import", str(file), "--dry-run").output
    assert "seconds, 1 megabytes" in _run("import", str(file), "--dry-run").output
    done = _run("import", str(file), "--database-url", there, "--json")
    assert json.loads(done.output)["rows"] == {"thread": 1}, done.output
    piped = _run("export", "-", "--database-url", there)
    assert key in piped.stdout
    assert piped.stdout.encode() == file.read_bytes()
    file.write_text("{}\n")
    refused = _run("import", str(file), "--database-url", there)
    assert refused.exit_code == 1
    assert "line 1 is no line of an export" in refused.output
