"""The folder of content: whatever the key, the files stay in it, whole, and are told apart."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forebay import LocalStorageClient, StorageError
from forebay.attachments import folder

_ODD = (
    "../../x", "/etc/passwd", "a/../../b", "..", ".", "", "/", "a//b", "a\x00b", "CON", "nul.txt", "a" * 5000,
    "é", "e\u0301", "A", "a", "ﬁ", "\ud800", "\u202e", "a\\..\\b", "~/x", "%2e%2e/x", "a\nb", "😀/☂", "a/", "a",
)  # fmt: skip


@given(st.lists(st.text(st.characters(exclude_categories=[])), min_size=1, max_size=5, unique=True))
@example([*_ODD[:-1]])
def test_every_key_is_an_object_of_its_own_within_the_folder(keys: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        around = Path(name)
        client = LocalStorageClient(around / "files")
        for number, key in enumerate(keys):
            client._put(key, lambda path, n=number: path.write_bytes(b"%d" % n), "text/plain", True)  # type: ignore[misc]
        assert [path.name for path in around.iterdir()] == ["files"]
        found = {key: client.find(key) for key in keys}
        assert {key: file and file.path.read_bytes() for key, file in found.items()} == {
            key: b"%d" % number for number, key in enumerate(keys)
        }
        assert sorted(file.object_key for file in client.stored()) == sorted(keys)
        assert all(file and file.path.is_relative_to(around / "files") for file in found.values())
        for key in keys:
            client._delete(key)
        assert [path for path in around.rglob("*") if path.is_file()] == []


async def test_a_later_upload_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    client = LocalStorageClient(tmp_path)
    await client.upload_file("key", "text ☂", "text/plain")
    await client.upload_file("key", b"\x00\xff", "image/png")
    found = client.find("key")
    assert found
    assert (found.path.read_bytes(), found.mime, found.size) == (b"\x00\xff", "image/png", 2)
    assert len(_files(tmp_path)) == 2
    with pytest.raises(StorageError, match="may not be overwritten"):
        await client.upload_file("key", b"other", overwrite=False)
    assert found.path.read_bytes() == b"\x00\xff"
    assert len(_files(tmp_path)) == 2


async def test_a_file_is_taken_in_by_its_name_where_the_disk_allows(tmp_path: Path) -> None:
    client = LocalStorageClient(tmp_path / "files")
    source = tmp_path / "source"
    source.write_bytes(b"content")
    await client.upload_path("key", source, "text/plain")
    found = client.find("key")
    assert found
    assert found.path.samefile(source)
    source.unlink()
    assert found.path.read_bytes() == b"content"


async def test_where_it_does_not_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source = tmp_path / "source"
    source.write_bytes(b"content" * 1_000_000)
    client = LocalStorageClient(tmp_path / "files")
    await client.upload_path("key", source, "text/plain")
    found = client.find("key")
    assert found
    assert not found.path.samefile(source)
    assert found.path.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("when", ["content", "note"])
async def test_what_fails_half_way_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    client = LocalStorageClient(tmp_path)
    await client.upload_file("key", b"old")
    calls: list[int] = []

    def sync(_: object) -> None:
        calls.append(1)
        if len(calls) == ("content", "note").index(when) + 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "sync_file", sync)
    with pytest.raises(StorageError, match=r"No space left on device.*FOREBAY_STORAGE_DIR"):
        await client.upload_file("key", b"new")
    found = client.find("key")
    assert found
    assert found.path.read_bytes() == b"old"
    assert len(_files(tmp_path)) == 2


async def test_a_symlink_in_place_of_the_content_is_not_followed(tmp_path: Path) -> None:
    client = LocalStorageClient(tmp_path / "files")
    await client.upload_file("key", b"content")
    found = client.find("key")
    assert found
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    found.path.unlink()
    found.path.symlink_to(outside)
    assert client.find("key") is None
    assert [*client.stored()] == []


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", ".", "", "a/b"])
async def test_a_note_that_names_a_file_elsewhere_is_not_followed(tmp_path: Path, name: str) -> None:
    client = LocalStorageClient(tmp_path / "files")
    (tmp_path / "outside").write_bytes(b"secret")
    await client.upload_file("key", b"content")
    note = client._note("key")
    found = client.find("key")
    assert found
    note.write_text(note.read_text().replace(found.path.name, name))
    assert client.find("key") is None


async def test_deleting_what_is_not_there_is_no_failure(tmp_path: Path) -> None:
    assert await LocalStorageClient(tmp_path).delete_file("key") is True


async def test_the_folder_is_made_by_the_first_upload_for_its_owner_alone(tmp_path: Path) -> None:
    client = LocalStorageClient(tmp_path / "files")
    assert not client.folder.exists()
    await client.upload_file("key", b"content")
    assert stat.S_IMODE(client.folder.stat().st_mode) == 0o700


async def test_what_a_crash_left_half_written_is_swept_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = LocalStorageClient(tmp_path)
    await client.upload_file("key", b"content")
    found = client.find("key")
    assert found
    half = found.path.with_suffix(".0123456789abcdef")
    half.write_bytes(b"half")
    assert client.sweep() == 0, "it may be on its way"
    later = time.time() + 7200
    monkeypatch.setattr(time, "time", lambda: later)
    assert client.sweep() == 1
    assert not half.exists()
    assert found.path.exists()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_of_two_that_add_an_object_the_first_stays(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    sut = [LocalStorageClient(tmp_path / "files") for _ in range(2)]
    added = [
        await client.add_path("key", tmp_path / name, "text/plain")
        for client, name in zip(sut, ("first", "second"), strict=True)
    ]
    found = sut[0].find("key")
    assert (added, found and found.path.read_text()) == ([True, False], "first")
    assert len(_files(tmp_path / "files")) == 2


async def test_a_sweep_takes_empty_folders_from_under_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = LocalStorageClient(tmp_path)
    make, swept = folder._make_folder, iter([True])

    def make_and_sweep(path: Path, root: Path) -> None:
        make(path, root)
        if next(swept, False):
            client.sweep()

    monkeypatch.setattr(folder, "_make_folder", make_and_sweep)
    await client.upload_file("key", b"content")
    found = client.find("key")
    assert found
    assert found.path.read_bytes() == b"content"
    await client.delete_file("key")
    assert client.sweep() == 0
    assert [*(tmp_path / "objects").iterdir()] == []
