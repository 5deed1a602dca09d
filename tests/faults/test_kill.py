"""`kill -9` at any instant: what was acknowledged is in the database, once and not backwards, after a restart."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from forebay import ForebayDataLayer, Settings
from tests.faults.load import a_seed, audited, repeated

_ROUNDS = int(os.environ.get("FOREBAY_TEST_KILL_ROUNDS", "10"))


def _work_until_killed(url: str, folder: Path, seconds: float) -> dict[str, int]:
    """The last acknowledged version of each step."""
    command = [sys.executable, "-m", "tests.faults.kill_worker", url, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        lines = [next(line for line in worker.stdout if line.startswith("ack"))]  # starts the clock
        killer = threading.Timer(seconds, lambda: os.kill(worker.pid, signal.SIGKILL))
        killer.start()
        lines += worker.stdout.readlines()
        killer.join()
    acknowledged: dict[str, int] = {}
    for line in lines:
        if line.startswith("ack") and line.endswith("\n"):  # the last may be cut off
            _, step_id, version = line.split()
            acknowledged[step_id] = int(version)
    return acknowledged


@pytest.mark.parametrize("number", range(_ROUNDS))
async def test_nothing_acknowledged_is_lost(number: int, migrated_postgres_url: str, tmp_path: Path) -> None:
    seed = a_seed()
    audit = await audited(migrated_postgres_url)
    acknowledged = _work_until_killed(migrated_postgres_url, tmp_path, random.Random(seed).uniform(0, 0.6))
    assert acknowledged
    layer = ForebayDataLayer(
        migrated_postgres_url, settings=Settings(durability="journal", journal_dir=tmp_path)
    )
    await layer.execute_sql("SELECT 1", {})  # runs after the recovery
    await layer.close()

    stored, applied = await audit.stored(), await audit.applied()
    assert {key: n for key, n in acknowledged.items() if stored.get(key, -1) < n} == {}, "lost"
    assert repeated(applied.values()) == [], "applied twice, or backwards"
    assert await audit.positions() != {}, "they stay for what may come late"
    assert list(tmp_path.iterdir()) == []
