"""Chats that nobody has used for a while are deleted, as by their owner; and no others."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from chainlit.element import Text
from click.testing import CliRunner

from forebay import ForebayDataLayer, LocalStorageClient, Settings
from forebay.cli import main
from forebay.layer import purge
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, rows
from tests.support.storage import MemoryStorage

_YEAR = timedelta(days=365)


def _ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.000000Z")


async def _chat(layer: ForebayDataLayer, *, days: float, **values: object) -> str:
    """A thread whose newest step is so old."""
    owner = values.pop("user_id", None)
    thread_id = await a_thread(layer, user_id=owner)
    for age in (days + 100, days):
        await layer.create_step(a_step(thread_id, createdAt=_ago(age), **values))
    return thread_id


async def _left(layer: ForebayDataLayer) -> set[str]:
    return {str(row["id"]) for row in await rows(layer, "SELECT id FROM threads")}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "_AT_ONCE", 3)


async def test_what_is_old_goes_and_what_is_young_stays(layer: ForebayDataLayer) -> None:
    old = [await _chat(layer, days=400) for _ in range(7)]
    young = {await _chat(layer, days=300) for _ in range(4)}
    assert await layer.purge(_YEAR, dry_run=True) == 7
    assert await _left(layer) == {*old, *young}
    seen: list[int] = []
    assert await layer.purge(_YEAR, progress=seen.append) == 7
    assert await _left(layer) == young
    assert seen == [3, 6, 7]
    assert await layer.purge(_YEAR) == 0
    assert await rows(layer, "SELECT id FROM steps WHERE \"createdAt\" < '2000'") == []


async def test_what_is_queued_counts(layer: ForebayDataLayer) -> None:
    thread_id = await _chat(layer, days=400)
    await layer.create_step(a_step(thread_id, createdAt=_ago(0)))
    assert await layer.purge(_YEAR) == 0
    assert await _left(layer) == {thread_id}


async def test_what_is_deleted_stays_deleted(layer: ForebayDataLayer) -> None:
    thread_id = await _chat(layer, days=400)
    await layer.purge(_YEAR)
    await layer.create_step(a_step(thread_id))
    await layer.flush()
    assert await _left(layer) == set()


async def test_contents_go_too(layer: ForebayDataLayer, storage: MemoryStorage) -> None:
    thread_id = await _chat(layer, days=400)
    await layer.create_element(Text(thread_id=thread_id, for_id=thread_id, name="n", content="a content"))
    assert storage.files
    await layer.purge(_YEAR)
    assert not storage.files


async def test_by_when_it_was_begun(layer: ForebayDataLayer) -> None:
    thread_id = await _chat(layer, days=1)
    await layer.execute_sql(
        'UPDATE threads SET "createdAt" = :moment WHERE id = :id', {"moment": _ago(800), "id": thread_id}
    )
    assert await layer.purge(_YEAR) == 0
    assert await layer.purge(_YEAR, by="created") == 1


async def test_one_persons_nobodys_and_marked_ones(layer: ForebayDataLayer) -> None:
    ada, bob = await a_user(layer), await a_user(layer, identifier="bob")
    hers = await _chat(layer, days=400, user_id=ada.id)
    marked = await _chat(layer, days=400, user_id=ada.id, metadata={"favorite": True})
    not_marked = await _chat(layer, days=400, user_id=ada.id, metadata={"favorite": False})
    his = await _chat(layer, days=400, user_id=bob.id)
    nobodys = await _chat(layer, days=400)
    assert await layer.purge(_YEAR, without_owner=True) == 1
    assert await _left(layer) == {hers, marked, not_marked, his}
    assert nobodys not in await _left(layer)
    assert await layer.purge(_YEAR, user="ada", keep_favorites=True) == 2
    assert await _left(layer) == {marked, his}
    assert await layer.purge(_YEAR, user="nobody") == 0


async def test_rows_that_another_layer_wrote(layer: ForebayDataLayer) -> None:
    """Without a stored activity, with or without steps; who says no time at all stays."""
    thread_id = await _chat(layer, days=400)
    await layer.execute_sql('UPDATE threads SET "updatedAt" = NULL WHERE id = :id', {"id": thread_id})
    empty = await a_thread(layer)
    await layer.execute_sql('UPDATE threads SET "createdAt" = NULL WHERE id = :id', {"id": empty})
    assert await layer.purge(_YEAR) == 1
    assert await _left(layer) == {empty}


def _run(*words: str) -> dict[str, object]:
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.stdout)
    return found


async def test_the_command(layer: ForebayDataLayer, emptied_url: str) -> None:
    await _chat(layer, days=400)
    young = await _chat(layer, days=1)
    await layer.flush()
    words = ("purge", "--older-than", "52w", "--database-url", emptied_url, "--json")
    assert await asyncio.to_thread(_run, *words, "--dry-run") == {"threads": 1, "deleted": False}
    refused = await asyncio.to_thread(CliRunner().invoke, main, words)
    assert refused.exit_code == 1
    assert "--yes" in refused.output
    assert await asyncio.to_thread(_run, *words, "--yes") == {"threads": 1, "deleted": True}
    assert await _left(layer) == {young}
    wrong = await asyncio.to_thread(CliRunner().invoke, main, ("purge", "--older-than", "90"))
    assert wrong.exit_code == 2
    assert "90d" in wrong.output


@pytest.mark.parametrize("command", ["purge", "delete-user"])
async def test_a_storage_that_has_none_of_the_contents_is_another_one(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """To delete there what is elsewhere would be a success, and the contents would stay."""
    theirs = LocalStorageClient(tmp_path / "theirs")
    layer = make_layer(emptied_url, storage_provider=theirs, settings=Settings(journal_keep=0))
    thread_id = await _chat(layer, days=400, user_id=(await a_user(layer, "ada")).id)
    await layer.create_element(Text(thread_id=thread_id, for_id=thread_id, name="n", content="a content"))
    await layer.flush()
    whose = ["--older-than", "52w"] if command == "purge" else ["ada"]
    words = (command, *whose, "--database-url", emptied_url, "--yes")
    monkeypatch.setenv("FOREBAY_STORAGE", "folder")
    monkeypatch.setenv("FOREBAY_STORAGE_DIR", str(tmp_path / "others"))
    refused = await asyncio.to_thread(CliRunner().invoke, main, words)
    assert refused.exit_code == 1
    assert "--any-storage" in refused.output
    assert len(await _left(layer)) == 1
    assert len(list(theirs.stored())) == 1
    monkeypatch.setenv("FOREBAY_STORAGE_DIR", str(tmp_path / "theirs"))
    done = await asyncio.to_thread(CliRunner().invoke, main, words)
    assert done.exit_code == 0, done.output
    assert await _left(layer) == set()
    assert list(theirs.stored()) == []
