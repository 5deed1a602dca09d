"""After a change of storage: old contents are served and deleted, and `forebay blobs move` brings them over."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from chainlit.context import init_http_context
from chainlit.element import File
from click.testing import CliRunner, Result
from typing_extensions import override

from forebay import ForebayDataLayer, LocalStorageClient, Settings, SettingsError, StorageError
from forebay.attachments import mover as movers
from forebay.attachments.access import Access, access
from forebay.attachments.mover import Fate, Mover
from forebay.cli import main
from forebay.database.store import Store
from tests.integration.contract import a_thread, new_id
from tests.integration.test_s3 import bucket as bucket


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_STORAGE_DIR", str(tmp_path / "old"))
    monkeypatch.setenv("FOREBAY_JOURNAL_DIR", str(tmp_path / "journal"))


def _with_layer(url: str, act: Callable[[ForebayDataLayer], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        init_http_context()
        layer = ForebayDataLayer(url, settings=Settings(**settings))
        try:
            return await act(layer)
        finally:
            await layer.close()

    return asyncio.run(run())


async def _attach(layer: ForebayDataLayer, content: bytes = b"kept") -> File:
    element = File(thread_id=await a_thread(layer), name="f.txt", content=content, for_id=new_id())
    await layer.create_element(element)
    return element


def _three(url: str) -> list[File]:
    async def attach(layer: ForebayDataLayer) -> list[File]:
        return [await _attach(layer, b"kept %d" % number) for number in range(3)]

    made: list[File] = _with_layer(url, attach, storage="folder")
    return made


def _move(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["blobs", "move", "--database-url", url, *arguments])


def _in_bucket(bucket: Any) -> dict[str, bytes]:
    found = bucket.list_objects_v2(Bucket="attachments").get("Contents", ())
    keys = [entry["Key"] for entry in found if not entry["Key"].startswith("forebay-databases/")]
    return {key: bucket.get_object(Bucket="attachments", Key=key)["Body"].read() for key in keys}


def _in_folder(folder: Path) -> set[str]:
    return {file.object_key for file in LocalStorageClient(folder).stored()}


def test_old_contents_are_served_and_deleted(
    migrated_url: str, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = _three(migrated_url)
    monkeypatch.setenv("FOREBAY_FORMER_STORAGE", "folder")

    async def look(layer: ForebayDataLayer) -> tuple[str, str]:
        new = await _attach(layer, b"new")
        found = [await layer.get_element(one.thread_id, one.id) for one in (first, new)]
        await layer.delete_element(first.id, first.thread_id)
        await layer.delete_thread(new.thread_id)
        # Stored anew under its key: what the former storage has is nobody's any more.
        again = File(
            id=second.id, thread_id=second.thread_id, name="f.txt", content=b"anew", for_id=second.for_id
        )
        await layer.create_element(again)
        return str(found[0]["url"]), str(found[1]["url"])  # type: ignore[index]

    old_url, new_url = _with_layer(migrated_url, look)
    assert "/forebay/files/" in old_url
    assert "/attachments/" in new_url
    assert len(_in_folder(tmp_path / "old")) == 1
    assert [*_in_bucket(bucket).values()] == [b"anew"]


def test_contents_are_brought_over(
    migrated_url: str, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _three(migrated_url)
    left = f"unknown/{new_id()}/left"
    asyncio.run(LocalStorageClient().upload_file(left, b"nobody's"))
    monkeypatch.setenv("FOREBAY_FORMER_STORAGE", "folder")
    planned = json.loads(_move(migrated_url, "--dry-run", "--json").output)
    assert planned == {"to_move": 3, "bytes": 18, "unnamed": 1}
    assert _in_bucket(bucket) == {}
    assert _move(migrated_url).exit_code == 1  # nobody says yes
    done = _move(migrated_url, "--yes", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert (told["moved"], told["bytes"], told["left"]) == (3, 18, [])
    assert sorted(_in_bucket(bucket).values()) == [b"kept 0", b"kept 1", b"kept 2"]
    assert _in_folder(tmp_path / "old") == {left}
    assert [path.name for path in (tmp_path / "old").glob("moving-*")] == []
    assert "0 to be moved; 1 without a row stay." in _move(migrated_url, "--yes").output

    async def url_of(layer: ForebayDataLayer) -> str:
        rows = await layer.execute_sql(
            "SELECT url FROM elements WHERE CAST(id AS TEXT) = :id", {"id": made[0].id}
        )
        assert isinstance(rows, list)
        return str(rows[0]["url"])

    assert _with_layer(migrated_url, url_of).startswith("https://attachments.s3.")


def test_from_a_bucket_to_a_folder(
    migrated_sqlite_url: str, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_layer(migrated_sqlite_url, _attach)
    assert [*_in_bucket(bucket).values()] == [b"kept"]
    monkeypatch.setenv("FOREBAY_STORAGE", "folder")
    monkeypatch.setenv("FOREBAY_FORMER_STORAGE", "s3")
    assert "1 moved; 4 bytes moved." in _move(migrated_sqlite_url, "--keep", "--yes").output
    assert len(_in_bucket(bucket)) == 1
    assert "1 already there; 0 bytes moved." in _move(migrated_sqlite_url, "--yes").output
    assert (_in_bucket(bucket), len(_in_folder(tmp_path / "old"))) == ({}, 1)


def test_one_storage_by_two_names_is_refused(
    migrated_sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_FORMER_STORAGE", "folder")
    assert "is the storage that is in use" in _move(migrated_sqlite_url, "--yes").output
    with pytest.raises(SettingsError, match="FOREBAY_FORMER_STORAGE"):
        ForebayDataLayer(migrated_sqlite_url, settings=Settings())
    one, other = LocalStorageClient(tmp_path / "one"), LocalStorageClient(tmp_path / "other")
    (tmp_path / "one").mkdir()
    (tmp_path / "other").symlink_to(tmp_path / "one")

    async def try_it() -> None:
        store = Store(migrated_sqlite_url, Settings())
        with pytest.raises(StorageError, match="by another name"):
            await Mover(store, access(one), access(other)).require_two()
        await store.close()

    asyncio.run(try_it())


def test_a_former_storage_without_its_bucket_says_which_variable(
    migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BUCKET_NAME", "APP_AWS_REGION", "APP_AWS_ACCESS_KEY", "APP_AWS_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert "it names the storage" in _move(migrated_sqlite_url).output
    monkeypatch.setenv("FOREBAY_FORMER_STORAGE", "s3")
    assert "BUCKET_NAME: it is missing" in _move(migrated_sqlite_url).output
    monkeypatch.setenv("FOREBAY_FORMER_BUCKET_NAME", "old")
    monkeypatch.setenv("FOREBAY_FORMER_APP_AWS_ACCESS_KEY", "key")
    assert "APP_AWS_SECRET_KEY: it is missing" in _move(migrated_sqlite_url).output


class _Meanwhile(Access):
    """A folder that is done something to while it is read."""

    def __init__(self, client: LocalStorageClient, act: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(client)
        self._inner, self._act = access(client), act

    @override
    def __getattribute__(self, name: str) -> Any:
        if name in ("listed", "look", "delete", "marks", "add", "stored_url"):
            return getattr(object.__getattribute__(self, "_inner"), name)
        return object.__getattribute__(self, name)

    @override
    async def read(self, object_key: str, into: Path) -> None:
        await self._inner.read(object_key, into)
        await self._act(object_key)


@pytest.fixture
def moving(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a mover from one folder to another, while `act` is done with each object that is read."""
    made = _three(migrated_url)
    new = LocalStorageClient(tmp_path / "new")

    def run(act: Callable[[ForebayDataLayer, str, list[File]], Awaitable[None]]) -> movers.Tally:
        async def with_layer(layer: ForebayDataLayer) -> movers.Tally:
            async def at_once(key: str) -> None:
                await act(layer, key, made)

            store = Store(migrated_url, Settings())
            former = _Meanwhile(LocalStorageClient(tmp_path / "old"), at_once)
            try:
                return await Mover(store, access(new), former).move()
            finally:
                await store.close()

        monkeypatch.setenv("FOREBAY_FORMER_STORAGE_DIR", str(tmp_path / "old"))
        tally: movers.Tally = _with_layer(
            migrated_url, with_layer, storage="folder", storage_dir=tmp_path / "new", former_storage="folder"
        )
        return tally

    return run


def test_what_a_chat_deletes_meanwhile_stays_deleted(moving: Callable[..., Any], tmp_path: Path) -> None:
    async def delete(layer: ForebayDataLayer, key: str, made: list[File]) -> None:
        element = next(one for one in made if one.id in key)
        await layer.delete_thread(element.thread_id)

    assert moving(delete).fates == {Fate.DELETED: 3}
    assert _in_folder(tmp_path / "new") | _in_folder(tmp_path / "old") == set()


def test_what_a_chat_stores_meanwhile_stays(moving: Callable[..., Any], tmp_path: Path) -> None:
    async def store(layer: ForebayDataLayer, key: str, made: list[File]) -> None:
        one = next(one for one in made if one.id in key)
        await layer.create_element(
            File(id=one.id, thread_id=one.thread_id, name="f.txt", content=b"newer", for_id=one.for_id)
        )

    tally = moving(store)
    assert tally.fates == {Fate.DIFFERS: 3}
    assert {file.path.read_bytes() for file in LocalStorageClient(tmp_path / "new").stored()} == {b"newer"}
    assert _in_folder(tmp_path / "old") == set()  # who stored has deleted it


def test_another_mover_may_be_quicker(moving: Callable[..., Any], tmp_path: Path) -> None:
    async def move(_: ForebayDataLayer, key: str, made: list[File]) -> None:
        old, new = LocalStorageClient(tmp_path / "old"), LocalStorageClient(tmp_path / "new")
        found = old.find(key)
        assert found is not None
        await new.add_path(key, found.path, found.mime)
        await old.delete_file(key)

    assert moving(move).fates == {Fate.WAS_THERE: 3}
    assert len(_in_folder(tmp_path / "new")) == 3


def test_what_was_not_read_whole_stays_and_is_told(moving: Callable[..., Any], tmp_path: Path) -> None:
    async def shorten(_: ForebayDataLayer, key: str, made: list[File]) -> None:
        for path in (tmp_path / "old").glob("moving-*/*"):  # a second name of what is stored, which stays
            path.unlink()
            path.write_bytes(b"ke")

    tally = moving(shorten)
    assert (tally.fates, {*tally.why.values()}) == (
        {Fate.FAILED: 3},
        {"it was not read whole, or has changed meanwhile"},
    )
    assert _in_folder(tmp_path / "new") == set()
    old = {file.path.read_bytes() for file in LocalStorageClient(tmp_path / "old").stored()}
    assert old == {b"kept 0", b"kept 1", b"kept 2"}


def test_what_a_process_still_stores_in_the_former_storage_stays(
    moving: Callable[..., Any], tmp_path: Path
) -> None:
    async def store(_: ForebayDataLayer, key: str, made: list[File]) -> None:
        await LocalStorageClient(tmp_path / "old").upload_file(key, b"newer")

    tally = moving(store)
    assert tally.fates == {Fate.FAILED: 3}
    assert all("a process still stores there" in why for why in tally.why.values())
    assert {file.path.read_bytes() for file in LocalStorageClient(tmp_path / "old").stored()} == {b"newer"}


def test_what_can_not_be_stored_stays_and_is_told(moving: Callable[..., Any], tmp_path: Path) -> None:
    async def in_the_way(_: ForebayDataLayer, key: str, made: list[File]) -> None:
        note = LocalStorageClient(tmp_path / "new")._note(key)
        note.parent.parent.mkdir(parents=True, exist_ok=True)
        note.parent.write_text("in the way")

    tally = moving(in_the_way)
    assert tally.fates == {Fate.FAILED: 3}
    assert not tally.is_complete
    assert len(_in_folder(tmp_path / "old")) == 3


def test_a_move_that_is_killed_goes_on_and_loses_nothing(
    migrated_sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {b"kept %d" % number * 500 for number in range(30)}

    async def attach(layer: ForebayDataLayer) -> None:
        await asyncio.gather(*(_attach(layer, content) for content in contents))

    _with_layer(migrated_sqlite_url, attach, storage="folder")
    for name, value in {"STORAGE_DIR": "new", "FORMER_STORAGE_DIR": "old"}.items():
        monkeypatch.setenv(f"FOREBAY_{name}", str(tmp_path / value))
    monkeypatch.setenv("FOREBAY_STORAGE", "folder")
    monkeypatch.setenv("FOREBAY_FORMER_STORAGE", "folder")
    command = [
        sys.executable,
        "-m",
        "forebay",
        "blobs",
        "move",
        "--yes",
        "--database-url",
        migrated_sqlite_url,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(_in_folder(tmp_path / "new")) < 6:
        time.sleep(0.001)
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)  # 0: it was done before this process had its turn
    found = [
        *LocalStorageClient(tmp_path / "old").stored(),
        *LocalStorageClient(tmp_path / "new").stored(),
    ]
    assert {file.path.read_bytes() for file in found} == contents
    done = _move(migrated_sqlite_url, "--yes", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["left"] == []
    moved = [file.path.read_bytes() for file in LocalStorageClient(tmp_path / "new").stored()]
    assert len(moved) == len(contents)
    assert {*moved} == contents
    assert _in_folder(tmp_path / "old") == set()
