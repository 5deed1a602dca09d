"""`forebay blobs orphans`: what no row names is found, and nothing else is ever deleted."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from chainlit.context import init_http_context
from chainlit.element import File
from click.testing import CliRunner, Result

from forebay import ForebayDataLayer, LocalStorageClient, Settings
from forebay.cli import main
from tests.integration.contract import a_thread, new_id
from tests.integration.test_s3 import bucket as bucket


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["blobs", "orphans", *arguments])


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
    done = _run("--database-url", migrated_url, "--delete")
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
    done = _run("--database-url", migrated_sqlite_url, "--older-than", "0", "--delete", "--json")
    assert json.loads(done.output) == {"orphans": [{"key": left, "bytes": 1}], "deleted": 1}
    keys = {entry["Key"] for entry in bucket.list_objects_v2(Bucket="attachments")["Contents"]}
    assert keys == {kept, "backup.tar", "folder/backup.tar", "a/b/c"}


def test_no_storage_is_told(migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_STORAGE", "none")
    result = _run("--database-url", migrated_sqlite_url)
    assert (result.exit_code, "FOREBAY_STORAGE" in result.output) == (1, True)


def test_help_teaches() -> None:
    said = " ".join(_run("--help").output.split())
    for word in ("--delete", "FOREBAY_BLOBS_OLDER_THAN", "Example", "S3", "DATABASE_URL"):
        assert word in said
