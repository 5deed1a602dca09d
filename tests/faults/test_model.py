"""The engine against a plain dictionary, with the database's answers held, released, refused and lost in any order.

The event loop and its clock are stepped, so that an example does the same each time. The store, its database
and the journal are real; what the test decides is when a call to the database goes through and how it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import random
import shutil
import sqlite3
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar
from unittest.mock import patch

import asyncpg
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from forebay import Settings
from forebay.database.checkpoint import Checkpoint
from forebay.database.store import LeftOut, Store
from forebay.errors import LayerClosed, QueueFull, RowError, TransientError
from forebay.journal import journal
from forebay.journal.journal import Journal
from forebay.layer import dicts
from forebay.model import changes, schema
from forebay.model.changes import Change, Delete, Upsert
from forebay.pipeline.pipeline import Pipeline
from forebay.pipeline.queue import Inbox
from forebay.primitives import backoff
from forebay.settings import Durability
from forebay.telemetry.collector import Metrics
from tests.support.examples import examples
from tests.support.postgres import run_apart
from tests.support.stepped_loop import SteppedLoop

_T = TypeVar("_T")

# Ids by the names that they have here.
IDS = {
    name: str(uuid.uuid5(uuid.NAMESPACE_OID, name))
    for name in ("t0", "t1", "t0-s0", "t0-s1", "t1-s0", "t1-s1")
}
NAMES = {key: name for name, key in IDS.items()}
THREADS = ("t0", "t1")
STEPS = {"t0-s0": "t0", "t0-s1": "t0", "t1-s0": "t1", "t1-s1": "t1"}
REFUSED = "t1-s1"  # the database refuses this row

_QUEUE_BYTES = 4 * 1024  # five changes or so
_JOURNAL_BYTES = 2 * 1024  # ten, as JSON is smaller than what holds it in memory
# So long after its first read, a process's reads cease to wait for what was left before; see the pipeline.
_RECOVERY_PATIENCE = 5.0

# A step's output is the number of its write, so a smaller one must never take a greater one's place.
_BACKWARDS = (
    "CREATE TRIGGER backwards AFTER UPDATE ON steps {row} WHEN"
    " (CAST(NEW.output AS INTEGER) < CAST(OLD.output AS INTEGER)) {action};"
)
_AUDIT = {
    "sqlite": "CREATE TABLE backwards (id TEXT, stored TEXT, came TEXT);"
    + _BACKWARDS.format(
        row="", action="BEGIN INSERT INTO backwards VALUES (NEW.id, OLD.output, NEW.output); END"
    ),
    "postgresql": "CREATE TABLE backwards (id TEXT, stored TEXT, came TEXT);"
    "CREATE FUNCTION backwards() RETURNS trigger LANGUAGE plpgsql AS $$"
    " BEGIN INSERT INTO backwards VALUES (NEW.id, OLD.output, NEW.output); RETURN NULL; END $$;"
    + _BACKWARDS.format(row="FOR EACH ROW", action="EXECUTE FUNCTION backwards()"),
}
_EMPTIED = (
    *(table.name for table in schema.WRITE_ORDER),
    *("forebay_checkpoints", "forebay_tombstones", "forebay_deleted", "forebay_garbage", "backwards"),
)


# ---- the dictionary


class State:
    """What the database should hold."""

    def __init__(self) -> None:
        self.threads: dict[str, dict[str, Any]] = {}
        self.steps: dict[str, dict[str, Any]] = {}
        self.feedbacks: dict[str, int] = {}  # by step
        self.deleted: set[str] = set()

    def after(self, log: Sequence[Op]) -> State:
        """The state when these have been done."""
        state = copy.deepcopy(self)
        for op in log:
            op.effect(state)
        return state

    def write_step(self, key: str, values: dict[str, Any]) -> None:
        if key != REFUSED and self._touch(STEPS[key]):
            self.steps[key] = {**self.steps.get(key, {}), **values}

    def rate(self, key: str, value: int) -> None:
        if self._touch(STEPS[key]):
            self.feedbacks[key] = value

    def change_thread(self, key: str, name: str | None, metadata: dict[str, Any]) -> None:
        if not self._touch(key):
            return
        thread = self.threads[key]
        thread["name"] = name or thread["name"]
        thread["metadata"] = {k: v for k, v in {**thread["metadata"], **metadata}.items() if v is not None}

    def delete_step(self, key: str) -> None:
        self.steps.pop(key, None)
        self.feedbacks.pop(key, None)  # also one that came before its step

    def delete_thread(self, key: str) -> None:
        self.threads.pop(key, None)
        self.deleted.add(key)
        for step, thread in STEPS.items():
            if thread == key:
                self.steps.pop(step, None)
                self.feedbacks.pop(step, None)

    def _touch(self, thread: str) -> bool:
        """A row brings its thread with it, unless that was deleted."""
        if thread in self.deleted:
            return False
        self.threads.setdefault(thread, {"name": None, "metadata": {}})
        return True

    def view(self, key: str) -> Any:
        """What a reader of the thread should see."""
        if key not in self.threads:
            return None
        steps = {
            step: (values["output"], values["name"], self.feedbacks.get(step))
            for step, values in self.steps.items()
            if STEPS[step] == key
        }
        return {**self.threads[key], "steps": steps}


def _viewed(document: dict[str, Any] | None) -> Any:
    """The same of what the database gives."""
    if document is None:
        return None
    thread = dicts.thread(document)
    steps = {
        NAMES.get(step["id"], step["id"]): (
            step["output"],
            step["name"],
            step["feedback"] and step["feedback"]["value"],
        )
        for step in thread["steps"]
    }
    return {"name": thread["name"], "metadata": thread["metadata"], "steps": steps}


# ---- the database, and the calls of the engine


@dataclass(eq=False)
class Held:
    """A call to the database that waits for the test."""

    verdict: asyncio.Future[Verdict]
    writes: bool


Verdict = Literal["pass", "fail", "lose"]


class GatedStore(Store):
    """A store whose every call waits for a verdict: it goes through, fails before, or its answer is lost."""

    def __init__(self, url: str, settings: Settings) -> None:
        super().__init__(url, settings)
        self.held: list[Held] = []
        self.always: Verdict | None = None
        self.locked: set[str] = set()  # threads that somebody holds
        self.running = 0

    @override
    async def apply(
        self,
        changes: Sequence[Change],
        checkpoint: Checkpoint | None = None,
        *,
        late: bool = False,
        share: float = 1.0,
        apart: bool = False,
    ) -> frozenset[str | LeftOut]:
        def act() -> Awaitable[frozenset[str | LeftOut]]:
            if self.locked & {_thread_of(change) for change in changes}:
                raise TransientError("somebody holds its thread", sqlstate="55P03")
            if any(isinstance(change, Upsert) and NAMES.get(change.key) == REFUSED for change in changes):
                raise RowError("this row is refused", sqlstate="22000")
            return super(GatedStore, self).apply(changes, checkpoint, late=late, share=share, apart=apart)

        return await self._gated(act, writes=True)

    @override
    async def read(self, statement: Any, **parameters: Any) -> Any:
        return await self._gated(lambda: super(GatedStore, self).read(statement, **parameters))

    @override
    async def write(self, statement: Any, **parameters: Any) -> Any:
        return await self._gated(lambda: super(GatedStore, self).write(statement, **parameters))

    @override
    async def prepare(self) -> None:
        # Before a read or a write, and alone: who finds a journal asks first which database this is.
        self.running += 1
        try:
            await super().prepare()
        finally:
            self.running -= 1

    @override
    async def close(self) -> None:
        self.running += 1
        try:
            await super().close()
        finally:
            self.running -= 1

    def decide(self, verdict: Verdict) -> None:
        """This one for all from now on."""
        self.always = verdict
        for held in self.held:
            _answer(held, verdict)

    async def _gated(self, act: Callable[[], Awaitable[_T]], *, writes: bool = False) -> _T:
        verdict = self.always or await self._wait(writes)
        if verdict == "fail":
            raise TransientError("the test says no")
        self.running += 1
        try:
            answer = await act()
        finally:
            self.running -= 1
        if verdict == "lose":
            raise TransientError("the answer is lost")
        return answer

    async def _wait(self, writes: bool) -> Verdict:
        held = Held(asyncio.get_running_loop().create_future(), writes)
        self.held.append(held)
        try:
            return await held.verdict
        finally:
            self.held.remove(held)


def _thread_of(change: Change) -> str | None:
    return NAMES.get(change.thread_id) if change.thread_id else STEPS.get(NAMES.get(change.key, ""))


def _answer(held: Held, verdict: Verdict) -> None:
    if not held.verdict.done():
        held.verdict.set_result(verdict)


@dataclass(eq=False)
class Op:
    """A write: what it does to the state. `survives`: whether it does so once it is acknowledged."""

    effect: Callable[[State], None]
    survives: bool
    acknowledged: bool = False


@dataclass(eq=False)
class Call:
    """A call that is under way. `accepted`: how many writes had been accepted when it began."""

    task: asyncio.Task[Any]
    accepted: int
    began: float
    op: Op | None = None
    thread: str | None = None
    flush: bool = False
    recovered: bool = False  # whether what was left before was written when it began


@dataclass
class Life:
    """One process: an engine, and what it was told in the order of the calls.

    The first `engine.inbox.accepted_seq` of `log` are accepted, the others stand at the door.
    """

    store: GatedStore
    engine: Pipeline
    log: list[Op] = field(default_factory=list)
    flushed: int = 0
    first_read: float | None = None

    @property
    def recovered(self) -> bool:
        """Whether what was left before is written."""
        recovery = self.engine.recovery
        return recovery is not None and recovery.done_once.is_set()

    @property
    def accepted(self) -> int:
        return self.engine.inbox.accepted_seq

    @property
    def safe(self) -> int:
        """How many of the log survive whatever happens."""
        safe = [number for number, op in enumerate(self.log, 1) if op.acknowledged and op.survives]
        return max(self.flushed, *safe, 0)

    @property
    def unjournaled(self) -> frozenset[int]:
        """Which of the log wait for their commit, as the journal had no room for them."""
        return frozenset(seq for seq, _, _ in self.engine.intake._commits._waiters._heap)

    def survivors(self, first: int) -> Iterator[list[Op]]:
        """What a crash may leave: so many at least, and what the journal had no room for as far as it was written."""
        missing = self.unjournaled
        for number in range(first, self.accepted + 1):
            for written in {0, *missing}:
                yield [
                    op for seq, op in enumerate(self.log[:number], 1) if seq <= written or seq not in missing
                ]


class Database(ABC):
    """Where an example's rows go."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def prepare(self, folder: Path) -> str:
        """The URL of one that is empty, but for its tables. `folder` is the example's own."""

    @abstractmethod
    def backwards(self) -> list[Any]:
        """The updates that have taken a newer output away."""


class SqliteFile(Database):
    """A copy of a file."""

    @override
    def prepare(self, folder: Path) -> str:
        self._file = folder / "forebay.db"
        shutil.copy(self.url.removeprefix("sqlite:///"), self._file)
        with closing(sqlite3.connect(self._file)) as connection:
            connection.executescript(_AUDIT["sqlite"])
        return f"sqlite:///{self._file}"

    @override
    def backwards(self) -> list[Any]:
        with closing(sqlite3.connect(self._file)) as connection:
            return connection.execute("SELECT * FROM backwards").fetchall()


class Postgres(Database):
    """One database, emptied before each example."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._run(_AUDIT["postgresql"])

    @override
    def prepare(self, folder: Path) -> str:
        self._run(f"TRUNCATE {', '.join(_EMPTIED)} CASCADE")
        return self.url

    @override
    def backwards(self) -> list[Any]:
        return self._run("SELECT * FROM backwards")

    def _run(self, statement: str) -> list[Any]:
        async def run() -> list[Any]:
            connection = await asyncpg.connect(self.url)
            try:
                if not statement.startswith("SELECT"):
                    await connection.execute(statement)
                    return []
                return list(await connection.fetch(statement))
            finally:
                await connection.close()

        return run_apart(run)


class _Even(random.Random):
    """No jitter: an example does the same each time."""

    @override
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class EngineModel(RuleBasedStateMachine):
    """Random operations. `states` are what the database may hold beneath the present life's log.

    There is one of them, until a crash leaves it open how much of what was not acknowledged has survived.
    """

    durability: ClassVar[Durability]
    database: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="forebay-model-", dir=_memory_disk()))
        self._url = self.database.prepare(self._folder)
        self._loop = SteppedLoop(self._is_busy)
        self._reading = 0
        self._patches = contextlib.ExitStack()
        self._patches.enter_context(patch.object(Journal, "read", self._counted(Journal.read)))
        self._patches.enter_context(patch.object(backoff, "SystemRandom", _Even))
        self._number = 0
        self._calls: list[Call] = []
        self.states = [State()]
        self._life = self._start()

    def _counted(self, read: Any) -> Any:
        """The journal's thread is waited for while it reads."""

        async def counted(*arguments: Any) -> Any:
            self._reading += 1
            try:
                return await read(*arguments)
            finally:
                self._reading -= 1

        return counted

    def _is_busy(self) -> bool:
        own = self._life.engine.journal
        return self._life.store.running > 0 or self._reading > 0 or (own is not None and not own.is_quiet)

    def _start(self) -> Life:
        settings = Settings(
            durability=self.durability,
            journal_dir=self._journals,
            queue_max_bytes=_QUEUE_BYTES,
            batch_max_rows=3,
            queue_timeout=30,
            close_timeout=20,
        ).model_copy(update={"journal_max_bytes": _JOURNAL_BYTES})  # below what an operator may set
        store = GatedStore(self._url, settings)
        return Life(store, Pipeline(settings, store, Metrics(), clock=self._loop.time))

    @property
    def _journals(self) -> Path:
        return self._folder / "journals"

    @property
    def _beside(self) -> bool:
        """Whether the journals of earlier lives are perhaps not written out yet."""
        engine = self._life.engine
        own = {lane.log.id for lane in engine.lanes.open.values()}
        if engine.journal is not None:
            own.add(engine.journal.id)
        kept = {each.journal.id for each in engine.kept._kept}  # are written out
        return any(path.stem not in own | kept for path in self._journals.glob("*.journal"))

    # ---- calls

    def _step(self, seconds: float = 0.0) -> None:
        """Run until all stands still, and look at what came to its end."""
        self._loop.run(seconds)
        assert self._loop.errors == []
        for call in [call for call in self._calls if call.task.done()]:
            self._calls.remove(call)
            self._check(call)

    def _check(self, call: Call) -> None:
        error = asyncio.CancelledError() if call.task.cancelled() else call.task.exception()
        if call.op is not None:
            self._check_write(call.op, call.task, error)
        elif error is not None:
            assert isinstance(error, TransientError | LayerClosed | asyncio.CancelledError), error
        elif call.flush:
            assert self._life.engine.inbox.applied_seq >= call.accepted
            self._life.flushed = max(self._life.flushed, call.accepted)
        else:
            self._check_read(call)

    def _check_write(self, op: Op, task: asyncio.Task[bool], error: BaseException | None) -> None:
        log = self._life.log
        if error is None and not task.result():
            log.remove(op)  # its thread is deleted, so it has no place in the queue
        elif error is None:
            op.acknowledged = True
        elif isinstance(error, QueueFull):
            log.remove(op)
        elif isinstance(error, LayerClosed | asyncio.CancelledError):
            if log.index(op) >= self._life.accepted:
                log.remove(op)
        else:
            assert isinstance(error, RowError), error

    def _check_read(self, call: Call) -> None:
        assert call.thread is not None
        assert self._life.first_read is not None
        if not call.recovered and self._loop.time() - self._life.first_read >= _RECOVERY_PATIENCE:
            return
        self._see(call.thread, call.task.result(), call.accepted)

    def _see(self, thread: str, seen: Any, first: int) -> None:
        """The view of a thread after at least so many writes, and no more than are accepted."""
        log, may_be = self._life.log, range(first, self._life.accepted + 1)
        known = [[state.after(log[:number]).view(thread) for number in may_be] for state in self.states]
        assert any(seen in views for views in known), f"{thread} is {seen}, and should be one of {known}"
        self.states = [state for state, views in zip(self.states, known, strict=True) if seen in views]

    def _write(self, change: Change, effect: Callable[[State], None], *, committed: bool = False) -> None:
        op = Op(effect, survives=committed or self.durability != "memory")
        self._life.log.append(op)
        call = self._life.engine.intake.write(change, committed=committed)
        self._begin(Call(self._loop.create_task(call), self._life.accepted, self._loop.time(), op))

    def _begin(self, call: Call) -> None:
        self._calls.append(call)
        self._step()

    async def _read(self, thread: str) -> Any:
        engine = self._life.engine
        await engine.barrier.settle(IDS[thread])
        return _viewed(await engine.barrier.read(self._life.store.statements.thread, id=IDS[thread]))

    # ---- rules: what Chainlit does

    @rule(key=st.sampled_from([*STEPS]), name=st.sampled_from("abc"), size=st.sampled_from([0, 600]))
    def write_step(self, key: str, name: str, size: int) -> None:
        self._number += 1
        output = str(self._number)
        values = {"name": name, "output": output, "input": "x" * size}
        row = {"id": IDS[key], "threadId": IDS[STEPS[key]], "type": "run", "showInput": "true", **values}
        self._write(changes.step(row), lambda state: state.write_step(key, values))

    @rule(key=st.sampled_from([*STEPS]), value=st.sampled_from([0, 1]))
    def rate(self, key: str, value: int) -> None:
        feedback_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"feedback on {key}"))
        row = {"id": feedback_id, "forId": IDS[key], "threadId": IDS[STEPS[key]], "value": value}
        self._write(changes.feedback(row), lambda state: state.rate(key, value))

    @rule(
        key=st.sampled_from(THREADS),
        name=st.none() | st.sampled_from("abc"),
        metadata=st.dictionaries(st.sampled_from("pq"), st.none() | st.integers(0, 3), max_size=2),
    )
    def change_thread(self, key: str, name: str | None, metadata: dict[str, Any]) -> None:
        change = changes.thread(IDS[key], name, None, metadata)
        self._write(change, lambda state: state.change_thread(key, name, metadata))

    @rule(key=st.sampled_from([*STEPS]))
    def delete_step(self, key: str) -> None:
        self._write(Delete("steps", IDS[key]), lambda state: state.delete_step(key), committed=True)

    @rule(key=st.sampled_from(THREADS))
    def delete_thread(self, key: str) -> None:
        self._write(
            Delete("threads", IDS[key], IDS[key]), lambda state: state.delete_thread(key), committed=True
        )

    @rule(key=st.sampled_from(THREADS))
    def read_thread(self, key: str) -> None:
        life = self._life
        if life.first_read is None:
            life.first_read = self._loop.time()
        task = self._loop.create_task(self._read(key))
        self._begin(Call(task, life.accepted, self._loop.time(), thread=key, recovered=life.recovered))

    @rule()
    def flush(self) -> None:
        task = self._loop.create_task(self._life.engine.barrier.flush())
        self._begin(Call(task, self._life.accepted, self._loop.time(), flush=True))

    @precondition(lambda self: bool(self._calls))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call = self._calls[data.draw(st.integers(0, len(self._calls) - 1), "call")]
        call.task.cancel()
        self._step()

    # ---- rules: what the database does, and time

    @precondition(lambda self: bool(self._life.store.held))
    @rule(data=st.data(), verdict=st.sampled_from(["pass", "pass", "pass", "fail", "lose"]))
    def answer(self, data: st.DataObject, verdict: Verdict) -> None:
        held = self._life.store.held
        _answer(held[data.draw(st.integers(0, len(held) - 1), "held")], verdict)
        self._step()

    @rule()
    def database_works(self) -> None:
        """For a while, so that what is queued now gets through."""
        self._life.store.decide("pass")
        self._step(0.1)
        self._life.store.always = None

    @rule(key=st.sampled_from(THREADS))
    def a_thread_is_held_up(self, key: str) -> None:
        self._life.store.locked.add(key)

    @rule()
    def nobody_holds_a_thread(self) -> None:
        self._life.store.locked.clear()

    @rule(seconds=st.sampled_from([0.01, 0.01, 1.0, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self._step(seconds)

    # ---- rules: the process ends, and another one starts

    @property
    def _keeps_an_order(self) -> bool:
        """Whether what survives is what came first: what is parked in memory alone is lost before what others wrote."""
        return self.durability == "journal" or not self._life.engine.lanes.open

    @precondition(lambda self: bool(self._life.log) and self._keeps_an_order)
    @rule()
    def crash(self) -> None:
        survived = [*self._life.survivors(self._life.safe)]
        self._kill()
        self._leave(survived)

    @precondition(lambda self: bool(self._life.log) and self._keeps_an_order)
    @rule(verdict=st.sampled_from(["pass", "fail"]))
    def close(self, verdict: Verdict) -> None:
        life = self._life
        if self.durability != "journal":
            life.store.locked.clear()
        life.store.decide(verdict)
        self._step()
        # What the journal had no room for is acknowledged by its commit, and in memory alone until then.
        is_journaled = self.durability == "journal" and not life.unjournaled
        survived = [*life.survivors(life.safe)]
        self._loop.complete(life.engine.close(), seconds=60.0)
        self._step()
        assert self._calls == [], "whoever waited is told"
        assert self._loop.complete(_other_tasks()) == set()
        everything = verdict == "pass" or is_journaled
        self._leave([life.log[: life.accepted]] if everything else survived)

    def _kill(self) -> None:
        """What is left of a process that has gone: its files, without its locks."""
        life = self._life
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run()
        self._calls.clear()
        if life.engine.journal is not None:
            self._loop.complete(life.engine.journal.close(remove=False))
        if life.engine.recovery is not None:
            life.engine.recovery.release()
        life.engine.kept._leave(held=True)
        self._loop.complete(life.engine.lanes.close(LayerClosed("killed")))
        self._loop.complete(life.store.close())

    def _leave(self, survived: Sequence[Sequence[Op]]) -> None:
        """These of this life's writes may have survived; the next one begins."""
        after = [state.after(log) for state in self.states for log in survived]
        self.states = list({repr(vars(state)): state for state in after}.values())
        self._life = self._start()

    # ---- what always holds

    @invariant()
    def is_bounded(self) -> None:
        inbox = self._life.engine.inbox
        # What is read back is measured as it is in the journal, where it is smaller.
        most = _QUEUE_BYTES * (3 if self._life.engine.counts.spilled else 1)
        assert inbox.size <= most + self._life.engine.lanes.size, repr(inbox)
        assert inbox.waiting_size <= _QUEUE_BYTES
        assert inbox.pending or inbox.size == (
            0 if self.durability == "journal" else self._life.engine.lanes.size
        )
        assert inbox.waiting or inbox.waiting_size == 0

    @invariant()
    def is_accounted_for(self) -> None:
        engine, store = self._life.engine, self._life.store
        # The rows of a batch are settled one by one, and what is replayed is in no queue.
        is_at_rest = not any(lane.failure for lane in engine.lanes.open.values())
        if is_at_rest and engine.failure is None and not any(held.writes for held in store.held):
            assert engine.counts.pending == engine.inbox.pending + engine.lanes.changes, (
                f"{engine.counts} {engine.inbox}"
            )
        assert engine.inbox.applied_seq <= engine.inbox.accepted_seq
        assert len(self._life.log) == self._life.accepted + engine.inbox.waiting, repr(engine.inbox)

    @precondition(lambda self: isinstance(self.database, SqliteFile))  # elsewhere it takes a connection
    @invariant()
    def never_goes_backwards(self) -> None:
        assert self.database.backwards() == []

    @override
    def teardown(self) -> None:
        try:
            self._check_the_end()
        finally:
            self._patches.close()
            self._kill()
            self._loop.close()
            shutil.rmtree(self._folder)

    def _check_the_end(self) -> None:
        """When the database answers again, it gets everything, and no journal is left."""
        life = self._life
        life.store.locked.clear()
        life.store.decide("pass")
        reading = self._loop.create_task(life.engine.barrier.settle(None))  # starts what was never used
        self._step(60.0)
        reading.cancel()
        self._loop.complete(life.engine.barrier.flush(), seconds=60.0)
        self._step()
        assert self._calls == []
        assert not self._beside, "every journal of an earlier life is written out"
        for thread in THREADS:
            self._see(thread, self._loop.complete(self._read(thread), seconds=1.0), life.accepted)
        self.is_accounted_for()
        self.never_goes_backwards()
        assert life.engine.counts.pending == 0
        self._loop.complete(life.engine.close(), seconds=1.0)
        assert [*self._journals.glob("*.journal*")] == []


async def _other_tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def _memory_disk() -> str | None:
    """Where syncing costs nothing; what is tested here is not whether the disk keeps its word."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture(autouse=True)
def _no_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a loop that is stepped through, no time goes by in which a group could gather."""
    monkeypatch.setattr(journal, "_LINGER", 0.0)


def _model(url: str, durability: Durability) -> type[EngineModel]:
    database = SqliteFile(url) if url.startswith("sqlite") else Postgres(url)
    return type("Model", (EngineModel,), {"durability": durability, "database": database})


@pytest.mark.parametrize("durability", ["memory", "journal", "commit"])
def test_the_engine_does_what_a_dictionary_does(migrated_url: str, durability: Durability) -> None:
    machine = _model(migrated_url, durability)
    # An example is a hundred times as long as that of another property, and on PostgreSQL longer.
    count = examples(16, long=2000) if migrated_url.startswith("sqlite") else examples(4, long=400)
    run_state_machine_as_test(
        machine, settings=hypothesis_settings(max_examples=count, stateful_step_count=40)
    )


# What the model has found once: the rules in their order.
_Rule = tuple[str, dict[str, Any]]
FOUND: dict[str, list[_Rule]] = {
    "the thread of what is parked is known only afterwards": [
        ("a_thread_is_held_up", {"key": "t1"}),
        ("delete_step", {"key": "t1-s0"}),
        ("write_step", {"key": "t1-s0", "name": "a", "size": 0}),
        ("read_thread", {"key": "t1"}),
        ("read_thread", {"key": "t1"}),
        ("database_works", {}),
    ],
    "a feedback comes late, whose step was deleted before it came": [
        ("rate", {"key": "t1-s0", "value": 0}),
        ("crash", {}),
        ("delete_step", {"key": "t1-s0"}),
        ("write_step", {"key": "t1-s0", "name": "b", "size": 0}),
        ("database_works", {}),
        ("read_thread", {"key": "t1"}),
    ],
    "a feedback came, and then its step was deleted before it came": [
        ("rate", {"key": "t1-s0", "value": 0}),
        ("flush", {}),
        ("database_works", {}),
        ("delete_step", {"key": "t1-s0"}),
        ("write_step", {"key": "t1-s0", "name": "b", "size": 0}),
        ("database_works", {}),
        ("read_thread", {"key": "t1"}),
    ],
    "what waits by itself comes from several journals, the newest first": [
        ("rate", {"key": "t0-s0", "value": 0}),
        ("crash", {}),
        ("write_step", {"key": "t0-s1", "name": "a", "size": 0}),
        ("crash", {}),
        ("write_step", {"key": "t0-s1", "name": "a", "size": 0}),
        ("flush", {}),
        ("a_thread_is_held_up", {"key": "t0"}),
        ("database_works", {}),
        ("crash", {}),
    ],
    "the journal has room for what comes after what it had none for": [
        ("database_works", {}),
        ("change_thread", {"key": "t0", "name": None, "metadata": {}}),
        ("write_step", {"key": "t0-s0", "name": "a", "size": 600}),
        ("write_step", {"key": "t0-s0", "name": "a", "size": 600}),
        ("change_thread", {"key": "t0", "name": None, "metadata": {}}),
        ("crash", {}),
    ],
}


@pytest.mark.parametrize("durability", ["memory", "journal", "commit"])
@pytest.mark.parametrize("found", FOUND)
def test_what_was_found_once(migrated_url: str, found: str, durability: Durability) -> None:
    machine = _model(migrated_url, durability)()
    try:
        for name, arguments in FOUND[found]:
            getattr(machine, name)(**arguments)
    finally:
        machine.teardown()


# ---- what is left out above


async def test_what_is_read_back_stays_within_the_queues_bytes(
    migrated_sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 64 * 1024
    settings = Settings(journal_dir=tmp_path / "journals", queue_max_bytes=limit)
    store = GatedStore(migrated_sqlite_url, settings)
    engine = Pipeline(settings, store, Metrics())
    sizes = []
    refill = Inbox.refill

    def watched(inbox: Inbox, *arguments: Any) -> None:
        refill(inbox, *arguments)
        sizes.append(inbox.size)

    monkeypatch.setattr(Inbox, "refill", watched)
    for number in range(1000):
        row = {"id": str(number), "threadId": "t", "name": "n", "type": "run", "output": str(number)}
        await engine.intake.write(changes.step(row))
    store.decide("pass")
    await engine.barrier.flush()
    await engine.close()
    assert len(sizes) > 800
    assert max(sizes) <= limit


def _row(**values: Any) -> Upsert:
    return changes.step({"id": _STEP, "threadId": _THREAD, "type": "run", **values})


_THREAD, _STEP = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
_Made = Callable[[], Change]
_LATE: dict[str, tuple[_Made, _Made, _Made]] = {
    # what is stored, what a journal holds, and what is written before that is replayed
    "part of a row": (
        lambda: _row(name="old", output="old"),
        lambda: _row(name="new"),
        lambda: _row(output="new"),
    ),
    "a key that goes": (
        lambda: changes.thread(_THREAD, None, None, {"gone": 1}),
        lambda: changes.thread(_THREAD, None, None, {"gone": None}),
        lambda: changes.thread(_THREAD, None, None, {"other": 1}),
    ),
    "a step that goes and comes back": (
        lambda: _row(name="old", output="old"),
        lambda: Delete("steps", _STEP, _THREAD),
        lambda: _row(name="new", output="new"),
    ),
}


@pytest.mark.parametrize("case", _LATE)
async def test_a_late_change_has_its_place_beneath_a_newer_one(
    migrated_url: str, case: str, tmp_path: Path
) -> None:
    stored, journaled, newer = (make() for make in _LATE[case])
    views = []
    for order in (
        [(stored, False), (newer, False), (journaled, True)],
        [(stored, False), (journaled, False), (newer, False)],
    ):
        store = Store(migrated_url, Settings(journal_dir=tmp_path))
        await store.execute_sql("DELETE FROM threads", {})
        await store.execute_sql("DELETE FROM steps", {})
        for change, late in order:
            await store.apply([change], late=late)
        views.append(_viewed(await store.read(store.statements.thread, id=_THREAD)))
        await store.close()
    late_view, usual_view = views
    assert late_view == usual_view
