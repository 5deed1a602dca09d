"""The machine loses its power at any instant: what was acknowledged is on the disk, and comes back once."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from chainlit.context import ChainlitContext

from forebay.journal.dead_letters import FILE_NAME, DeadLetters
from tests.faults.load import repeated
from tests.faults.scripted import (
    LOADS,
    Script,
    Versions,
    applied,
    audit,
    drained,
    hurry,
    leave_behind,
    refuse_poison,
    stored,
)
from tests.support.failing_disk import Mirror, Tree, lay_out
from tests.support.patience import patience


@dataclass(frozen=True, slots=True)
class _Instant:
    """What is left when the power fails then, and what was acknowledged before."""

    call: str
    tree: Tree
    database: bytes
    acknowledged: Versions
    poison: set[str]


class _Recorder:
    """Notes each instant at which something else would be left than at the one before."""

    def __init__(self, script: Script) -> None:
        self.instants: list[_Instant] = []
        self._script = script
        self._connection = sqlite3.connect(script.database, check_same_thread=False)
        self._version = -1
        self._database = b""

    def note(self, call: str, tree: Tree) -> None:
        # In this order: what is acknowledged now is there in what is looked at afterwards.
        acknowledged, poison = {**self._script.acknowledged}, {*self._script.poison}
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version, self._database = version, self._connection.serialize()
        instant = _Instant(call, tree, self._database, acknowledged, poison)
        if not self.instants or replace(self.instants[-1], call=call) != instant:
            self.instants.append(instant)

    def close(self) -> None:
        self._connection.close()


async def _wrong_after(instant: _Instant, database: Path, place: Path) -> list[str]:
    """What is not as promised when another process has gone on with what is left."""
    folder = place / "journals"
    lay_out(instant.tree, place)
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(instant.database)
    if folder.exists():
        await drained(f"sqlite:///{database}", folder)
    there = stored(database)
    wrong = [f"lost {key} {n}" for key, n in instant.acknowledged.items() if there.get(key, -1) < n]
    wrong += [f"twice or backwards {versions}" for versions in repeated(applied(database))]
    letters = {letter.row_id for letter in DeadLetters(folder).find()}
    wrong += [f"no letter {key}" for key in instant.poison - letters]
    wrong += [f"left {path.name}" for path in folder.glob("*") if not path.name.startswith(FILE_NAME)]
    shutil.rmtree(place)
    return wrong


@pytest.mark.parametrize("loses_names", [True, False], ids=["names need a sync", "names stay"])
@pytest.mark.parametrize("load", LOADS)
async def test_at_each_instant(
    chainlit_context: ChainlitContext,
    monkeypatch: pytest.MonkeyPatch,
    migrated_sqlite_url: str,
    memory_folder: Path,
    load: str,
    loses_names: bool,
) -> None:
    """A name may need a sync of its folder to outlive it, or may be there at once, before what is in the file."""
    hurry(monkeypatch)
    database, place = memory_folder / "database.db", memory_folder / "disk"
    shutil.copy(migrated_sqlite_url.removeprefix("sqlite:///"), database)
    refuse_poison(database)
    audit(database)
    place.mkdir()
    script = Script(database, place / "journals")
    if load == "adopted":
        script.acknowledged |= leave_behind(script.folder)
    recorder = _Recorder(script)
    mirror = Mirror(place, recorder.note, loses_names=loses_names, trusted=FILE_NAME)
    with pytest.MonkeyPatch.context() as patch, mirror.in_use():
        script.hold_up(patch)
        async with patience():
            await LOADS[load](script)
    recorder.close()
    assert len(recorder.instants) > 10
    for number, instant in enumerate(recorder.instants):
        assert not await _wrong_after(instant, database, memory_folder / str(number)), (number, instant.call)
