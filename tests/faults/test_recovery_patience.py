"""A long journal that a process before this one left: reads wait for it once, not each of them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from forebay import Settings
from forebay.database.store import Store
from forebay.journal.journal import Journal
from forebay.model import changes
from forebay.pipeline.pipeline import Pipeline
from forebay.telemetry.collector import Metrics
from tests.support.patience import patience


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_reads_wait_for_a_long_recovery_once_a_process(
    migrated_sqlite_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(journal_dir=tmp_path / "journals", close_timeout=1)
    store, clock = Store(migrated_sqlite_url, settings), _Clock()
    thread_id = str(uuid.uuid4())
    before = Journal(settings.journal_dir, asyncio.get_running_loop(), store.location)
    await before.append(1, changes.step({"id": str(uuid.uuid4()), "threadId": thread_id}))
    await before.close(remove=False)

    go_on, apply = asyncio.Event(), store.apply

    async def slow(*arguments: Any, **options: Any) -> Any:
        await go_on.wait()
        return await apply(*arguments, **options)

    monkeypatch.setattr(store, "apply", slow)
    waits: list[float] = []
    wait: Callable[..., Any] = asyncio.wait

    async def noted(things: Any, *, timeout: float | None = None, **options: Any) -> Any:
        if timeout is not None:
            waits.append(timeout)
            clock.now += timeout
            timeout = 0
        return await wait(things, timeout=timeout, **options)

    monkeypatch.setattr("forebay.pipeline.barrier.asyncio.wait", noted)
    process = Pipeline(settings, store, Metrics(), clock)
    for _ in range(5):
        await process.barrier.settle(thread_id)
    assert waits == [5.0]

    go_on.set()
    assert process.recovery is not None
    async with patience():
        await process.recovery.done_once.wait()
    await process.close()
