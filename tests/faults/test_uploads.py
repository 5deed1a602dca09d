"""kill -9 while elements are stored: what was acknowledged or secured is there afterwards, row and content."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from chainlit.element import ElementDict

from forebay import ForebayDataLayer, LocalStorageClient, Settings
from tests.faults.upload_worker import THREAD

_ROUNDS = int(os.environ.get("FOREBAY_TEST_KILL_ROUNDS", "3"))


def _work(url: str, folder: Path, when: str, seconds: float | None = None) -> tuple[list[str], list[str]]:
    """The elements whose calls had begun, and those whose calls had returned."""
    command = [sys.executable, "-m", "tests.faults.upload_worker", url, str(folder), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        lines = [next(line for line in worker.stdout if line.startswith("begun"))]  # starts the clock
        killer = threading.Timer(
            30 if seconds is None else seconds, lambda: os.kill(worker.pid, signal.SIGKILL)
        )
        killer.start()
        lines += worker.stdout.readlines()
        killer.cancel()
        assert worker.wait() == -signal.SIGKILL
    said = [line.split() for line in lines if line.endswith("\n")]
    return [key for word, key in said if word == "begun"], [key for word, key in said if word == "ack"]


async def _recovered(url: str, folder: Path) -> dict[str, ElementDict]:
    """What the next process finds; its content is checked."""
    storage = LocalStorageClient(folder / "files")
    settings = Settings(durability="journal", journal_dir=folder / "journal")
    layer = ForebayDataLayer(url, storage_provider=storage, settings=settings)
    thread = await layer.get_thread(THREAD)
    assert thread
    for element in thread["elements"] or ():
        file = storage.find(str(element["objectKey"]))
        assert file
        assert file.path.read_bytes() == element["id"].encode() * 1000
    keys = {file.object_key for file in storage.stored()}
    assert keys == {element["objectKey"] for element in thread["elements"] or ()}, "content without a row"
    await layer.close()
    assert [*(folder / "journal" / "uploads").iterdir()] == []
    return {element["id"]: element for element in thread["elements"] or ()}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_kill_around_an_upload(migrated_sqlite_url: str, tmp_path: Path, when: str) -> None:
    begun, acknowledged = _work(migrated_sqlite_url, tmp_path, when)
    assert acknowledged == []
    found = await _recovered(migrated_sqlite_url, tmp_path)
    assert found, "its upload had begun, so it was secured"
    assert found.keys() <= set(begun)


@pytest.mark.parametrize("number", range(_ROUNDS))
async def test_a_kill_at_any_time(number: int, migrated_postgres_url: str, tmp_path: Path) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")  # noqa: T201 - to try a failure again
    begun, acknowledged = _work(
        migrated_postgres_url, tmp_path, "never", random.Random(seed).uniform(0.05, 0.5)
    )
    found = await _recovered(migrated_postgres_url, tmp_path)
    assert set(acknowledged) <= found.keys() <= set(begun)
