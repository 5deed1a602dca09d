"""Short loads that touch every file of a journal, and what must be true whatever its disk did meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from forebay import ForebayDataLayer, ForebayError, Settings
from forebay.database import error_codes
from forebay.database.checkpoint import Checkpoint
from forebay.database.store import Store
from forebay.errors import JournalError, TransientError
from forebay.journal import journals, log
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.side_journal import SideJournal
from forebay.model import changes
from forebay.model.changes import Change, Upsert
from forebay.pipeline import drain as drain_module
from forebay.pipeline import lanes, letterbox, pipeline, recovery
from forebay.pipeline.drain import Drain
from forebay.telemetry.collector import Metrics
from tests.faults.load import versioned
from tests.faults.test_poison import _POISON, _TRIGGERS
from tests.integration.contract import accounted_for, until

Versions = dict[str, int]


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Small segments, and short waits where something is tried again."""
    patch.setattr(log, "SEGMENT_BYTES", 3000)
    patch.setattr(log, "_RESERVED_BYTES", 4096)
    patch.setattr(journals, "_FIRST_RETRY", 0.01)
    patch.setattr(journals, "_LAST_RETRY", 0.02)
    patch.setattr(drain_module, "_LOOK_FOR_JOURNALS", 0.01)
    patch.setattr(drain_module, "_LOOK_FOR_OWNER", 0.01)
    patch.setattr(recovery, "INTERVAL", 0.01)
    patch.setattr(pipeline, "_QUIET_SPELL", 0.001)
    patch.setattr(letterbox, "_BACKOFF", (0.001, 0.01))
    patch.setattr(lanes, "_LOCK_BACKOFF", (0.001, 0.01))
    patch.setattr(lanes, "_SLOW_BACKOFF", (0.01, 0.01))


def refuse_poison(path: Path) -> None:
    """Have a SQLite file refuse steps of a certain name."""
    with sqlite3.connect(path) as connection:
        for statement in _TRIGGERS["sqlite"]:
            connection.execute(statement)
    connection.close()


def audit(path: Path) -> None:
    """Have a SQLite file note each version of a step that is ever in it, in the order in which it came."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE audit (number INTEGER PRIMARY KEY, id TEXT, output TEXT)")
        for event in ("INSERT", "UPDATE"):
            connection.execute(
                f"CREATE TRIGGER note_{event} AFTER {event} ON steps"
                " BEGIN INSERT INTO audit (id, output) VALUES (NEW.id, NEW.output); END"
            )
    connection.close()


def applied(path: Path) -> list[list[int]]:
    """Of each step, the versions that were noted."""
    noted: dict[str, list[int]] = {}
    with sqlite3.connect(path) as connection:
        for step_id, output in connection.execute("SELECT id, output FROM audit ORDER BY number"):
            noted.setdefault(step_id, []).append(int(output.split()[0]))
    connection.close()
    return [*noted.values()]


class Script:
    """What one process writes, of some steps in two threads, and what it was told of that."""

    def __init__(self, database: Path, folder: Path) -> None:
        self.url = f"sqlite:///{database}"
        self.database, self.folder = database, folder
        self.acknowledged: Versions = {}
        self.poison: set[str] = set()
        self.elements: set[str] = set()
        self.refused: dict[tuple[str, int], ForebayError] = {}
        self.thread_id, self.held_id = str(uuid.uuid4()), str(uuid.uuid4())
        self.is_held = False
        # What the load says of its disk: it works from now on, in the middle already, and whether it does not.
        self.mend: Callable[[], None] = lambda: None
        self.mends_early = False
        self.has_trouble: Callable[[], bool] = lambda: False

    def settings(self, **values: Any) -> Settings:
        given = {"durability": "journal", "journal_dir": self.folder, "journal_keep": 0, "close_timeout": 5}
        return Settings(**{**given, **values})

    @asynccontextmanager
    async def layer(self, **values: Any) -> AsyncIterator[ForebayDataLayer]:
        """A process's layer, closed at its end."""
        provider = values.pop("storage_provider", None)
        layer = ForebayDataLayer(self.url, storage_provider=provider, settings=self.settings(**values))
        try:
            yield layer
        finally:
            await layer.close()

    async def write(
        self, layer: ForebayDataLayer, step_id: str, version: int, *, held: bool = False, poison: bool = False
    ) -> None:
        thread_id = self.held_id if held else self.thread_id
        step = versioned(step_id, thread_id, version, size=600)
        if poison:
            step["name"] = _POISON
        try:
            await layer.update_step(step)
        except ForebayError as error:
            self.refused[step_id, version] = error
        else:
            if poison:
                self.poison.add(step_id)
            else:
                self.acknowledged[step_id] = version

    def stored(self) -> Versions:
        """The version of each step in the database."""
        return stored(self.database)

    def letters(self) -> set[str]:
        """The rows that are dead letters."""
        return {letter.row_id for letter in DeadLetters(self.folder).find()}

    def what_is_wrong(self) -> list[str]:
        """What was promised of the changes and is not so."""
        there, letters = self.stored(), self.letters()
        wrong = [f"lost {key} {n}" for key, n in self.acknowledged.items() if there.get(key) != n]
        wrong += [f"made though refused {key} {n}" for key, n in self.refused if there.get(key) == n]
        wrong += [f"no letter {key}" for key in self.poison - letters]
        wrong += [f"no element {key}" for key in self.elements - elements(self.database)]
        return wrong

    async def drain(self) -> None:
        """What a next process does, in the simplest of its forms."""
        await drained(self.url, self.folder)

    def hold_up(self, patch: pytest.MonkeyPatch) -> None:
        """While `is_held`, the database holds one thread up, as one does of which somebody has locked a row."""
        apply = Store.apply

        async def held(
            store: Store, changes: Sequence[Change], checkpoint: Checkpoint | None = None, **values: Any
        ) -> Any:
            if self.is_held and any(
                isinstance(change, Upsert) and change.thread_id == self.held_id for change in changes
            ):
                raise TransientError("somebody holds a row", sqlstate=error_codes.LOCKED)
            return await apply(store, changes, checkpoint, **values)

        patch.setattr(Store, "apply", held)


def stored(database: Path) -> Versions:
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT id, output FROM steps").fetchall()
    connection.close()
    return {row[0]: int(row[1].split()[0]) for row in rows}


def elements(database: Path) -> set[str]:
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT id FROM elements").fetchall()
    connection.close()
    return {row[0] for row in rows}


async def drained(url: str, folder: Path) -> Drain:
    """Write out the journals in a folder."""
    settings = Settings(journal_dir=folder)
    drain = Drain(folder, Store(url, settings), settings, Metrics())
    try:
        await drain.run()
    finally:
        await drain.close()
    assert not drain.parked
    return drain


@asynccontextmanager
async def watched(script: Script) -> AsyncIterator[Drain]:
    """While a daemon writes out the journals in the folder."""
    settings, stop = script.settings(), asyncio.Event()
    drain = Drain(script.folder, Store(script.url, settings), settings, Metrics())
    watching = asyncio.create_task(drain.run(stop))
    try:
        yield drain
    finally:
        stop.set()
        await watching
        await drain.close()


# ---- the loads


def new_ids(count: int = 3) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


async def _write_on(
    script: Script, layer: ForebayDataLayer, steps: list[str], versions: range, **values: bool
) -> None:
    for version in versions:
        await asyncio.gather(*(script.write(layer, step_id, version, **values) for step_id in steps))


async def own(script: Script) -> None:
    """A process's journal: begun, appended to over some segments, trimmed, and removed."""
    async with script.layer() as layer:
        steps = new_ids()
        await _write_on(script, layer, steps, range(3))
        await layer.flush()
        await _write_on(script, layer, steps, range(3, 6))
        if script.mends_early:
            script.mend()
            await script.write(layer, steps[0], 6)
            assert script.acknowledged[steps[0]] == 6
        await layer.flush()
        assert accounted_for(layer)


async def letter(script: Script) -> None:
    """A row that the database refuses."""
    async with script.layer() as layer:
        await layer.flush()
        await script.write(layer, new_ids()[0], 0, poison=True)
        await script.write(layer, new_ids()[0], 0)
        await layer.flush()
        script.mend()
        await until(lambda: not layer._engine.letterbox.changes)
        assert accounted_for(layer)


async def lane(script: Script) -> None:
    """A thread that the database holds up for a while."""
    async with script.layer() as layer:
        steps, others, engine = new_ids(2), new_ids(2), layer._engine
        script.is_held = True
        writing = asyncio.gather(
            _write_on(script, layer, steps, range(4), held=True), _write_on(script, layer, others, range(4))
        )
        # Where its place can't be made, all wait; where the journal can't, there is nothing to be held up.
        await until(lambda: bool(engine.lanes.open or engine.failure or script.has_trouble()))
        if script.mends_early:
            script.mend()
            await writing
            await until(lambda: bool(engine.lanes.open) or not engine.inbox.pending)
        script.is_held = False
        await writing
        await layer.flush()
        assert accounted_for(layer)


async def external(script: Script) -> None:
    """A journal that a daemon writes out."""
    async with watched(script), script.layer(writer="external") as layer:
        steps = new_ids()
        await _write_on(script, layer, steps, range(6))
        script.mend()  # where it is full, none can be taken over
        await layer.flush()


async def adopted(script: Script) -> None:
    """Journals that were left behind are taken by a process that starts."""
    async with script.layer() as layer:
        with contextlib.suppress(JournalError):
            await layer.start()
        await _write_on(script, layer, new_ids(1), range(2))
        await layer.flush()
        script.mend()
        await until(lambda: not [*script.folder.glob("*.journal")][1:])
        assert accounted_for(layer)


Load = Callable[[Script], Awaitable[None]]
LOADS: dict[str, Load] = {
    "own": own,
    "letter": letter,
    "lane": lane,
    "external": external,
    "adopted": adopted,
}


def leave_behind(folder: Path) -> dict[str, int]:
    """Journals of which nobody is the owner any more; what is in them."""
    steps: dict[str, int] = {}
    for _ in range(2):
        journal = SideJournal(folder, "", None)
        for number in range(4):
            step_id = new_ids()[0]
            journal.append(number + 1, [changes.step(versioned(step_id, new_ids()[0], 0, size=600))])
            steps[step_id] = 0
        journal.release()
    return steps
