"""An element's content that another one has replaced is deleted; what an element names, never."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from chainlit.element import File

from forebay import ForebayDataLayer, Settings
from forebay.attachments import uploads
from forebay.database.checkpoint import Checkpoint, Position
from forebay.database.store import Store
from forebay.model import changes
from forebay.model.changes import Upsert
from forebay.model.schema import REPLACED
from forebay.pipeline import external_writer
from forebay.pipeline.drain import Drain
from forebay.telemetry.collector import Metrics
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_thread, new_id, rows
from tests.support.patience import FOR_EVER, PATIENCE, patience
from tests.support.storage import MemoryStorage


@pytest.fixture(autouse=True)
def _sweeps_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_SWEEP_EVERY", FOR_EVER)


async def _sweep(layer: ForebayDataLayer) -> None:
    await layer._attachments.collect()


async def _garbage(layer: ForebayDataLayer) -> set[str]:
    return {row["object_key"] for row in await rows(layer, "SELECT object_key FROM forebay_garbage")}


def _key(element_id: str, name: str) -> str:
    return f"unknown/{element_id}/{name}"


async def _store(
    layer: ForebayDataLayer, thread_id: str, element_id: str, name: str, content: str | None = None
) -> None:
    element = File(id=element_id, thread_id=thread_id, for_id=thread_id, name=name, content=content or name)
    await layer.create_element(element)


def _named(thread_id: str, element_id: str, name: str) -> Upsert:
    """The row as an upload would have it."""
    change = changes.element(
        {"id": element_id, "threadId": thread_id, "forId": thread_id, "name": name, "type": "file"}
    )
    return replace(change, row={**change.row, "objectKey": _key(element_id, name)})


async def test_a_content_that_is_replaced_goes(layer: ForebayDataLayer, storage: MemoryStorage) -> None:
    thread_id, element_id, other = await a_thread(layer), new_id(), new_id()
    await _store(layer, thread_id, other, "beside it")
    for name in ("old", "new"):
        await _store(layer, thread_id, element_id, name)
        await layer.flush()
    assert await _garbage(layer) == {_key(element_id, "old")}
    await _sweep(layer)
    assert set(storage.files) == {_key(element_id, "new"), _key(other, "beside it")}
    assert await _garbage(layer) == set()
    found = await layer.get_element(thread_id, element_id)
    assert found
    assert (found["name"], found["objectKey"]) == ("new", _key(element_id, "new"))


async def test_it_goes_by_itself(
    make_layer: MakeLayer, emptied_url: str, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_SWEEP_EVERY", 0.02)
    layer = make_layer(emptied_url)
    thread_id, element_id = await a_thread(layer), new_id()
    for name in ("old", "new"):
        await _store(layer, thread_id, element_id, name)
        await layer.flush()
    await _until(lambda: set(storage.files) == {_key(element_id, "new")})
    await _until_no(_garbage, layer)


async def _until(true: Callable[[], bool]) -> None:
    async with patience():
        while not true():  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)


async def _until_no(ask: Callable[[ForebayDataLayer], Awaitable[set[str]]], layer: ForebayDataLayer) -> None:
    async with patience():
        while await ask(layer):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.01)


async def test_the_same_key_again_is_in_use(layer: ForebayDataLayer, storage: MemoryStorage) -> None:
    """Another content under one key takes the place of the first; and who goes back to a name has it again."""
    thread_id, element_id = await a_thread(layer), new_id()
    await _store(layer, thread_id, element_id, "name", "first")
    await _store(layer, thread_id, element_id, "name", "second")
    await layer.flush()
    assert await _garbage(layer) == set()
    for name in ("another", "name"):
        await _store(layer, thread_id, element_id, name, f"as {name}")
        await layer.flush()
    assert await _garbage(layer) == {_key(element_id, "another"), _key(element_id, "name")}
    await _sweep(layer)
    assert storage.files == {_key(element_id, "name"): b"as name"}
    assert await _garbage(layer) == set()


@pytest.mark.parametrize("late", [False, True])
async def test_a_content_that_no_row_has_ever_named_goes_too(
    layer: ForebayDataLayer, storage: MemoryStorage, *, late: bool
) -> None:
    """Those were queued when the batch left: they are one change by then."""
    thread_id, element_id = await a_thread(layer), new_id()
    await layer.flush()
    folded = reduce(changes.fold, [_named(thread_id, element_id, name) for name in "abac"])
    storage.files = {_key(element_id, name): "content" for name in "abc"}
    await layer._store.apply([folded], late=late)
    assert await _garbage(layer) == {_key(element_id, "a"), _key(element_id, "b")}
    await _sweep(layer)
    assert set(storage.files) == {_key(element_id, "c")}


@pytest.mark.parametrize("way", ["late", "with a checkpoint", "apart", "late, apart, with a checkpoint"])
async def test_whoever_writes_it(layer: ForebayDataLayer, way: str) -> None:
    """The writer, a lane, a recovery, the daemon, a dead letter that is retried."""
    thread_id, element_id, store = await a_thread(layer), new_id(), layer._store
    journal_id = new_id()
    await layer.flush()
    for number, name in enumerate(("old", "new")):
        checkpoint = None
        if "checkpoint" in way:
            checkpoint = Checkpoint(journal_id, Position(number, number), Position(number + 1, number + 1))
        change = _named(thread_id, element_id, name)
        await store.apply([change], checkpoint, late="late" in way, apart="apart" in way)
    assert await _garbage(layer) == {_key(element_id, "old")}


async def test_what_was_in_already_makes_nothing_garbage(layer: ForebayDataLayer) -> None:
    """The answer was lost, and the batch is written again: what it names is the newest still."""
    thread_id, element_id, store = await a_thread(layer), new_id(), layer._store
    await layer.flush()
    change, step = _named(thread_id, element_id, "new"), Checkpoint(new_id(), Position(), Position(1, 1))
    for _ in range(2):
        await store.apply([change], step)
    assert await _garbage(layer) == set()


async def test_an_older_change_makes_no_newer_content_garbage(layer: ForebayDataLayer) -> None:
    """It is its own that nobody will ever name."""
    thread_id, element_id, store = await a_thread(layer), new_id(), layer._store
    await layer.flush()
    older, newer = (_named(thread_id, element_id, name) for name in ("older", "newer"))
    await store.apply([newer])
    await store.apply([older], late=True)
    assert await _garbage(layer) == {_key(element_id, "older")}
    (row,) = await rows(layer, 'SELECT "objectKey" FROM elements')
    assert row["objectKey"] == _key(element_id, "newer")


@pytest.mark.parametrize("why", ["its thread was deleted", "it is another thread's"])
@pytest.mark.parametrize("late", [False, True])
async def test_the_content_of_a_row_that_is_left_out_goes(
    layer: ForebayDataLayer, why: str, *, late: bool
) -> None:
    thread_id, other_id, element_id, store = (
        await a_thread(layer),
        await a_thread(layer),
        new_id(),
        layer._store,
    )
    await layer.flush()
    change = _named(thread_id, element_id, "left out")
    if why == "its thread was deleted":
        await layer.delete_thread(thread_id)
    else:
        await store.apply([_named(other_id, element_id, "hers")])
    await store.apply([change], late=late)
    await layer.flush()
    noted = await _garbage(layer)
    assert _key(element_id, "left out") in noted
    await _sweep(layer)
    assert await _garbage(layer) == set()
    if why != "its thread was deleted":
        (row,) = await rows(layer, 'SELECT "objectKey" FROM elements')
        assert row["objectKey"] == _key(element_id, "hers")


async def test_a_row_without_content_replaces_none(layer: ForebayDataLayer) -> None:
    """As when a storage takes longer: the row comes first."""
    thread_id, element_id, store = await a_thread(layer), new_id(), layer._store
    await layer.flush()
    await store.apply([_named(thread_id, element_id, "content")])
    for late in (False, True):
        change = _named(thread_id, element_id, "renamed")
        del change.row["objectKey"]
        await store.apply([change], late=late)
    assert await _garbage(layer) == set()


async def test_with_an_external_writer(
    make_layer: MakeLayer,
    emptied_url: str,
    storage: MemoryStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has no storage: the process that the elements come from deletes what it has noted."""
    monkeypatch.setattr(external_writer, "_PATIENCE", PATIENCE)
    folder, stop = tmp_path / "journals", asyncio.Event()
    settings = Settings(writer="external", durability="journal", journal_dir=folder)
    layer = make_layer(emptied_url, settings=settings)
    drain = Drain(folder, Store(emptied_url, settings), settings, Metrics())
    running = asyncio.create_task(drain.run(stop))
    try:
        thread_id, element_id = await a_thread(layer), new_id()
        for name in ("old", "new"):
            await _store(layer, thread_id, element_id, name)
            await layer.flush()
        assert await _garbage(layer) == {_key(element_id, "old")}
        await _sweep(layer)
        assert set(storage.files) == {_key(element_id, "new")}
        await layer.close()
    finally:
        stop.set()
        async with patience():
            await running
        await drain.close()


def test_what_a_fold_replaces_goes_through_the_journal() -> None:
    folded = changes.fold(_named("t", "e", "a"), _named("t", "e", "b"))
    (again,) = changes.decode(changes.encode([folded]))
    assert isinstance(again, Upsert)
    third: Any = changes.fold(again, _named("t", "e", "c"))
    assert third.row[REPLACED] == [_key("e", "a"), _key("e", "b")]
    assert json.loads(changes.encode([third]))[0][3]["objectKey"] == _key("e", "c")
