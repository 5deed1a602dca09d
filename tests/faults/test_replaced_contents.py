"""kill -9 while an element's content is replaced: the old one goes, the newest one stays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from chainlit.context import ChainlitContext

from forebay import ForebayDataLayer, LocalStorageClient, Settings
from forebay.attachments import uploads
from tests.faults.replace_worker import ELEMENT, THREAD, an_element
from tests.support.patience import patience


@pytest.fixture(autouse=True)
def _sweeps_often(monkeypatch: pytest.MonkeyPatch, chainlit_context: ChainlitContext) -> None:
    monkeypatch.setattr(uploads, "_SWEEP_EVERY", 0.02)


async def _work(url: str, folder: Path, when: str, content: str = "") -> None:
    """A process that ends by kill -9."""
    command = [sys.executable, "-m", "tests.faults.replace_worker", url, str(folder), when]
    environment = {**os.environ, "CONTENT": content}
    done = await asyncio.to_thread(subprocess.run, command, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


def _layer(url: str, folder: Path) -> tuple[ForebayDataLayer, LocalStorageClient]:
    storage = LocalStorageClient(folder / "files")
    settings = Settings(durability="journal", journal_dir=folder / "journal")
    return ForebayDataLayer(url, storage_provider=storage, settings=settings), storage


async def _stored(storage: LocalStorageClient, expected: dict[str, bytes]) -> None:
    """Return when the storage has these contents, by their names, and no others."""

    def look() -> dict[str, bytes]:
        return {file.object_key.split("/")[-1]: file.path.read_bytes() for file in storage.stored()}

    async with patience():
        while look() != expected:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("when", ["stored", "acknowledged"])
async def test_a_kill_before_the_old_content_is_deleted(migrated_url: str, tmp_path: Path, when: str) -> None:
    await _work(migrated_url, tmp_path, when)
    layer, storage = _layer(migrated_url, tmp_path)
    try:
        found = await layer.get_element(THREAD, ELEMENT)
        assert found
        assert found["name"] == "new"
        await _stored(storage, {"new": b"new"})
    finally:
        await layer.close()


@pytest.mark.parametrize("name", ["older", "name"])
async def test_what_a_killed_process_left_is_older_than_what_came_since(
    migrated_url: str, tmp_path: Path, name: str
) -> None:
    """Whichever process goes on with it. Under the same name, it would take the newer content's place."""
    await _work(migrated_url, tmp_path, "uploading", f"{name} older")
    settings = Settings(durability="journal", journal_dir=tmp_path / "another machine")
    newer = ForebayDataLayer(
        migrated_url, storage_provider=LocalStorageClient(tmp_path / "files"), settings=settings
    )
    await newer.create_element(an_element("name", "newer"))
    await newer.flush()
    await newer.close()
    after, storage = _layer(migrated_url, tmp_path)
    try:
        await after.get_thread(THREAD)  # it goes on with what was left
        async with patience():
            while after._engine.counts.uploads_pending:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.02)
        found = await after.get_element(THREAD, ELEMENT)
        assert found
        assert found["name"] == "name"
        await _stored(storage, {"name": b"newer"})
    finally:
        await after.close()
    assert [*(tmp_path / "journal" / "uploads").iterdir()] == []
