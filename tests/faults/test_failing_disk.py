"""A disk on which one call fails, whichever: what was acknowledged is kept, once, and nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
from collections import Counter
from pathlib import Path

import pytest
from chainlit.context import ChainlitContext
from chainlit.element import File

from forebay import ForebayError, LocalStorageClient
from tests.faults.load import LONG
from tests.faults.scripted import LOADS, Load, Script, hurry, leave_behind, new_ids, refuse_poison
from tests.integration.contract import until
from tests.support.failing_disk import FailingDisk
from tests.support.patience import patience


async def _uploaded(script: Script) -> None:
    """An element's file, which is put into the spool and then into the storage."""
    storage = LocalStorageClient(script.folder.with_name("storage"))
    source = script.database.with_suffix(".txt")
    source.write_bytes(b"content")
    async with script.layer(storage_provider=storage) as layer:
        element = File(thread_id=script.thread_id, name="f", path=str(source), for_id=new_ids()[0])
        creating = asyncio.create_task(layer.create_element(element))
        await until(lambda: creating.done() or script.has_trouble())
        script.mend()
        with contextlib.suppress(ForebayError):
            await creating
            script.elements.add(element.id)
        await layer.flush()


_ALL: dict[str, Load] = {**LOADS, "uploaded": _uploaded}


def _script(template: Path, folder: Path, place: Path) -> Script:
    """A script with a database and a folder of its own, in which may be what others have left."""
    database = place.with_suffix(".db")
    shutil.copy(template, database)
    if (folder / "left").exists():
        shutil.copytree(folder / "left", place / "journals", copy_function=shutil.copy2)
    return Script(database, place / "journals")


async def _what_is_wrong(script: Script, disk: FailingDisk, load: Load, *, mends_early: bool) -> list[str]:
    """After a load on a disk of which one call fails, when another process has gone on with what was left."""
    script.mends_early, script.mend, script.has_trouble = mends_early, disk.mend, lambda: len(disk.failed) > 1
    with pytest.MonkeyPatch.context() as patch, disk.in_use():
        script.hold_up(patch)
        async with patience():
            await load(script)
    await script.drain()
    if (script.folder / "uploads").exists():
        async with script.layer(
            storage_provider=LocalStorageClient(script.folder.with_name("storage"))
        ) as layer:
            await layer.start()
            await layer.get_thread(script.thread_id)
    left = {path.name for path in script.folder.glob("*")} - {"dead-letters.db", "uploads"}
    left |= {path.name for path in (script.folder / "uploads").glob("*")}
    return [*script.what_is_wrong(), *(f"left {name}" for name in left)]


# So many calls of a kind fail, each in a run of its own.
_MOST = {errno.EIO: 1000 if LONG else 2, errno.ENOSPC: 1000 if LONG else 1}
# Those that only look fail too where that is what a load does most.
_READS = ("adopted", "external", "own", "lane")


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("load", _ALL)
async def test_whichever_call_fails(
    chainlit_context: ChainlitContext,
    monkeypatch: pytest.MonkeyPatch,
    migrated_sqlite_url: str,
    memory_folder: Path,
    load: str,
    error: int,
) -> None:
    """Each kind of call that was seen, so also one that is new, a few times each."""
    hurry(monkeypatch)
    folder = memory_folder
    template = Path(migrated_sqlite_url.removeprefix("sqlite:///"))
    refuse_poison(template)
    left = leave_behind(folder / "left") if load == "adopted" else {}
    seen, tried = Counter[str](), set[tuple[str, int]]()
    todo: list[tuple[str, int]] = [("none", 1)]
    while todo:
        (kind, number), place = todo.pop(), folder / str(len(tried))
        tried.add((kind, number))
        disk = FailingDisk(place, kind, number, error, reads=load in _READS)
        script = _script(template, folder, place)
        script.acknowledged |= left
        wrong = await _what_is_wrong(script, disk, _ALL[load], mends_early=len(tried) % 2 == 0)
        assert not wrong, [each.kind for each in disk.failed]
        seen |= disk.kinds
        todo = [
            (kind, number)
            for kind, count in seen.items()
            for number in range(1, min(count, _MOST[error]) + 1)
            if (kind, number) not in tried
        ]
    assert len(tried) > 10, "its calls are not seen"
