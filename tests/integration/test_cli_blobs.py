"""`forebay blobs orphans`: what no row names is found, and nothing else is ever deleted."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from chainlit.context import init_http_context
from chainlit.element import File
from click.testing import CliRunner, Result

from forebay import ForebayDataLayer, LocalStorageClient, Settings
from forebay.attachments.access import MARKS
from forebay.cli import main
from forebay.database.store import Store
from forebay.model import changes
from tests.integration.contract import a_thread, new_id
from tests.integration.test_s3 import bucket as bucket


def _run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, ["blobs", "orphans", *arguments], input=answer)


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_STORAGE_DIR", str(tmp_path / "files"))
    monkeypatch.setenv("FOREBAY_JOURNAL_DIR", str(tmp_path / "journal"))


def _attach(url: str) -> str:
    """An element with content; its object key."""

    async def attach() -> str:
        init_http_context()
        layer = ForebayDataLayer(url, settings=Settings())
        element = File(thread_id=await a_thread(layer), name="kept", content=b"kept", for_id=new_id())
        await layer.create_element(element)
        found = await layer.get_element(element.thread_id, element.id)
        await layer.close()
        assert found
        return str(found["objectKey"])

    return asyncio.run(attach())


def _store(*keys: str) -> None:
    async def store() -> None:
        for key in keys:
            await LocalStorageClient().upload_file(key, b"left")

    asyncio.run(store())


def _age(folder: Path) -> None:
    yesterday = time.time() - 25 * 3600
    for path in folder.rglob("*.json"):
        os.utime(path, (yesterday, yesterday))


def test_what_no_row_names_is_found_and_deleted(migrated_url: str, tmp_path: Path) -> None:
    kept = _attach(migrated_url)
    left = [f"unknown/{new_id()}/left", f"someone/{new_id()}", f"a/{kept.split('/')[1]}/another name"]
    _store(*left)
    _age(tmp_path / "files")
    young = f"unknown/{new_id()}/young"
    _store(young)
    shown = _run("--database-url", migrated_url, "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.output)
    assert sorted(one["key"] for one in found["orphans"]) == sorted(left)
    assert {one["bytes"] for one in found["orphans"]} == {4}
    assert found["deleted"] == 0
    done = _run("--database-url", migrated_url, "--delete", "--yes")
    assert "3 without a row, 12 bytes; 3 deleted." in done.output
    assert {file.object_key for file in LocalStorageClient().stored()} == {kept, young}
    assert "0 without a row" in _run("--database-url", migrated_url).output


def test_what_waits_for_its_upload_is_no_orphan(migrated_sqlite_url: str, tmp_path: Path) -> None:
    from forebay.attachments.spool import Note, Secured

    key = f"unknown/{new_id()}/waits"
    _store(key)
    _age(tmp_path / "files")
    secured = Secured(tmp_path / "journal", sync=False)
    path = secured.place()
    secured.write(b"left", path)
    secured.enter(path, Note(key, "text/plain", "[]"))
    assert "0 without a row" in _run("--database-url", migrated_sqlite_url, "--delete").output
    secured.remove(path)
    assert "1 without a row" in _run("--database-url", migrated_sqlite_url).output
    secured.close()


def test_a_bucket_may_hold_other_things(migrated_sqlite_url: str, bucket: Any) -> None:
    kept = _attach(migrated_sqlite_url)
    left = f"unknown/{new_id()}/left"
    for key in (left, "backup.tar", "folder/backup.tar", "a/b/c"):
        bucket.put_object(Bucket="attachments", Key=key, Body=b"x")
    done = _run("--database-url", migrated_sqlite_url, "--older-than", "0", "--delete", "--yes", "--json")
    assert json.loads(done.output) == {"orphans": [{"key": left, "bytes": 1}], "deleted": 1}
    keys = {entry["Key"] for entry in bucket.list_objects_v2(Bucket="attachments")["Contents"]}
    marks = {key for key in keys if key.startswith(MARKS)}
    assert (len(marks), keys - marks) == (1, {kept, "backup.tar", "folder/backup.tar", "a/b/c"})


def _rename(url: str, *keys: str) -> None:
    """Another layer has made the elements: their rows name these keys."""

    async def rename() -> None:
        store = Store(url, Settings())
        for key in keys:
            thread_id = new_id()
            await store.apply(
                [
                    changes.thread(thread_id),
                    changes.element({"id": new_id(), "threadId": thread_id, "name": "f"}),
                ]
            )
            typed = {"key": key, "id": thread_id}
            where = 'WHERE CAST("threadId" AS TEXT) = :id'
            await store.execute_sql(f'UPDATE elements SET "objectKey" = :key {where}', typed)
        await store.close()

    asyncio.run(rename())


def _keys() -> set[str]:
    return {file.object_key for file in LocalStorageClient().stored()}


def test_rows_are_asked_by_the_key_whatever_layer_made_it(migrated_url: str, tmp_path: Path) -> None:
    named = [
        f"threads/{new_id()}/files/{new_id()}",  # ChainlitDataLayer
        f"someone/{new_id()}/{new_id()}",  # DynamoDBDataLayer
        f"threads/{new_id()}/files/{new_id()}/" + "".join(new_id() for _ in range(100)),
        "no id at all",
        f"someone/{new_id().upper()}/na%me",
    ]
    left = [f"threads/{new_id()}/files/{new_id()}", f"x/{new_id()}/y"]
    _rename(migrated_url, *named)
    _store(*named, *left)
    _age(tmp_path / "files")
    found = json.loads(_run("--database-url", migrated_url, "--delete", "--yes", "--json").output)
    assert sorted(one["key"] for one in found["orphans"]) == sorted(left)
    assert _keys() == set(named)


def test_a_prefix_takes_any_key(migrated_url: str, tmp_path: Path) -> None:
    _rename(migrated_url, "old/named")
    _store("old/named", "old/left", "older", "new/left", f"old/{new_id()}")
    _age(tmp_path / "files")
    found = json.loads(_run("--database-url", migrated_url, "--prefix", "old/", "--json").output)
    assert len(found["orphans"]) == 2
    assert all(one["key"].startswith("old/") for one in found["orphans"])


def test_another_databases_storage_is_left_alone(
    migrated_url: str, migrated_sqlite_url: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    shutil.copy(migrated_sqlite_url.removeprefix("sqlite:///"), other)
    kept = _attach(migrated_url)
    _age(tmp_path / "files")
    for more in ((), ("--all",)):
        refused = _run("--database-url", f"sqlite:///{other}", "--delete", "--yes", *more)
        assert (refused.exit_code, "another" in refused.output or "other database" in refused.output) == (
            1,
            True,
        )
    assert _keys() == {kept}
    forgotten = ("--delete", "--yes", "--forget-others")
    refused = _run("--database-url", f"sqlite:///{other}", *forgotten)
    assert (refused.exit_code, "--all" in refused.output) == (1, True)
    assert _keys() == {kept}
    done = _run("--database-url", f"sqlite:///{other}", *forgotten, "--all")
    assert (done.exit_code, _keys()) == (0, set())


def test_a_bucket_of_two_databases_is_left_alone(
    migrated_sqlite_url: str, migrated_postgres_url: str, bucket: Any
) -> None:
    for url in (migrated_sqlite_url, migrated_postgres_url):
        _attach(url)
        assert _run("--database-url", url).exit_code == 0
    bucket.put_object(Bucket="attachments", Key=f"unknown/{new_id()}/left", Body=b"x")
    for url in (migrated_sqlite_url, migrated_postgres_url):
        assert _run("--database-url", url, "--older-than", "0", "--delete", "--yes").exit_code == 1
    keys = {entry["Key"] for entry in bucket.list_objects_v2(Bucket="attachments")["Contents"]}
    assert len([key for key in keys if not key.startswith(MARKS)]) == 3


def test_most_of_what_is_there_goes_only_with_all(migrated_url: str, tmp_path: Path) -> None:
    kept = _attach(migrated_url)
    _store(*(f"unknown/{new_id()}/left" for _ in range(11)))
    _age(tmp_path / "files")
    refused = _run("--database-url", migrated_url, "--delete", "--yes")
    assert (refused.exit_code, "11 of the 12" in refused.output, len(_keys())) == (1, True, 12)
    done = _run("--database-url", migrated_url, "--delete", "--yes", "--all")
    assert (done.exit_code, _keys()) == (0, {kept})


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("n\n", False), ("", False)])
def test_it_asks(migrated_sqlite_url: str, tmp_path: Path, answer: str, goes: bool) -> None:
    kept = _attach(migrated_sqlite_url)
    left = f"unknown/{new_id()}/left"
    _store(left)
    _age(tmp_path / "files")
    done = _run("--database-url", migrated_sqlite_url, "--delete", answer=answer)
    assert "Delete 1 objects, 4 bytes" in done.output
    assert (done.exit_code == 0, _keys() == {kept}) == (goes, goes)


def test_folders_that_are_left_empty_go(migrated_sqlite_url: str, tmp_path: Path) -> None:
    kept = _attach(migrated_sqlite_url)
    _store(f"unknown/{new_id()}/left")
    _age(tmp_path / "files")
    assert _run("--database-url", migrated_sqlite_url, "--delete", "--yes").exit_code == 0
    assert len([*(tmp_path / "files" / "objects").iterdir()]) == 1
    assert _keys() == {kept}


def test_no_storage_is_told(migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_STORAGE", "none")
    result = _run("--database-url", migrated_sqlite_url)
    assert (result.exit_code, "FOREBAY_STORAGE" in result.output) == (1, True)


def test_help_teaches() -> None:
    said = " ".join(_run("--help").output.split())
    for word in ("--delete", "FOREBAY_BLOBS_OLDER_THAN", "Example", "S3", "DATABASE_URL"):
        assert word in said
