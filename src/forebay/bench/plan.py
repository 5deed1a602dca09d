"""What is measured: the subjects, and how much of each on which scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from forebay.settings import Durability, WriterPlace

Kind = Literal["forebay", "sqlalchemy", "chainlit", "none", "copy", "batch", "encoded"]
Part = Literal["writes", "reads"]
PARTS: tuple[Part, ...] = ("writes", "reads")

FOREBAY, FOREBAY_MEMORY = "forebay, journal", "forebay, memory"
FOREBAY_COMMIT, FOREBAY_EXTERNAL = "forebay, commit", "forebay, external"
SQLALCHEMY, SQLALCHEMY_PLAIN = "SQLAlchemyDataLayer", "SQLAlchemyDataLayer, no index"
CHAINLIT = "ChainlitDataLayer"
NO_LAYER, COPY = "no data layer", "bare COPY"
BATCH, ENCODED = "batch statement", "batch statement, encoded before"
FOREBAY_READS = "forebay"


@dataclass(frozen=True)
class Subject:
    """Who is measured. `indexes`: whether SQLAlchemyDataLayer finds forebay's."""

    name: str
    kind: Kind
    durability: Durability = "journal"
    writer: WriterPlace = "embedded"
    indexes: bool = True

    @property
    def is_floor(self) -> bool:
        """Whether it is bare SQL, without sessions that write."""
        return self.kind in ("copy", "batch", "encoded")


WRITERS: tuple[Subject, ...] = (
    Subject(FOREBAY, "forebay"),
    Subject(FOREBAY_EXTERNAL, "forebay", writer="external"),
    Subject(FOREBAY_MEMORY, "forebay", "memory"),
    Subject(FOREBAY_COMMIT, "forebay", "commit"),
    Subject(SQLALCHEMY, "sqlalchemy"),
    Subject(CHAINLIT, "chainlit"),
    Subject(NO_LAYER, "none"),
    Subject(COPY, "copy"),
    Subject(BATCH, "batch"),
    Subject(ENCODED, "encoded"),
)
# Every write makes a new row there, so that writes and rows are one.
ROW_WRITERS: tuple[Subject, ...] = tuple(
    one for one in WRITERS if one.name in (FOREBAY, FOREBAY_MEMORY, BATCH)
)
# A load that is the same for all, whatever they can take.
STEADY: tuple[Subject, ...] = tuple(one for one in WRITERS if one.name in (FOREBAY, FOREBAY_EXTERNAL))
# A server that has little to do, and what is left of its cost without a layer.
LIGHT: tuple[Subject, ...] = tuple(
    one for one in WRITERS if one.name in (FOREBAY, FOREBAY_EXTERNAL, NO_LAYER)
)
# What a turn costs the database, where people take their time.
PACED: tuple[Subject, ...] = (
    Subject(FOREBAY, "forebay"),
    Subject(SQLALCHEMY_PLAIN, "sqlalchemy", indexes=False),
    Subject(CHAINLIT, "chainlit"),
)
READERS: tuple[Subject, ...] = (
    Subject(FOREBAY_READS, "forebay"),
    Subject(SQLALCHEMY, "sqlalchemy"),
    Subject(SQLALCHEMY_PLAIN, "sqlalchemy", indexes=False),
    Subject(CHAINLIT, "chainlit"),
)


@dataclass(frozen=True)
class Load:
    """Chats at once, and turns of each. `updates`: nine writes a turn into five rows, else five into five.

    With `rate` so many writes a second are begun for `seconds`, done or not; without, no turn is begun after `seconds`
    where they are not 0. `step_bytes`: an answer's length. `reader`: somebody opens a thread of 50 steps meanwhile,
    again and again, and afterwards. `pause`: seconds between two writes of a chat.
    """

    sessions: int = 200
    turns: int = 5
    updates: bool = True
    rate: int | None = None
    seconds: float = 0.0
    step_bytes: int = 520
    reader: bool = False
    pause: float = 0.0


@dataclass(frozen=True)
class Reading:
    """One kind of read: of threads of `size` steps, or of somebody who has `size` threads."""

    operation: Literal["get_thread", "first page", "tenth page", "search"]
    size: int

    @property
    def name(self) -> str:
        """As it is called in results."""
        return f"{self.operation}, {self.size:,} {'steps' if self.operation == 'get_thread' else 'threads'}"


@dataclass(frozen=True)
class Scale:
    """How much is measured. `turns` and `peer_turns` make forebay and its peers write for about as long.

    `owned`: how many threads the readers have; `others`: steps of everybody else in the tables. A kind of read is
    repeated `repeats` times, or for `budget` seconds; one that takes longer than `limit` seconds is ended.
    """

    name: str
    rounds: int
    sessions: int
    turns: int
    peer_turns: int
    steady_rate: int
    steady_seconds: float
    light_rate: int
    light_seconds: float
    paced_turns: int
    owned: tuple[int, ...]
    others: int
    repeats: int
    budget: float
    limit: float

    def load(self, subject: Subject, *, updates: bool = True) -> Load:
        """What a subject writes."""
        is_peer = subject.kind in ("sqlalchemy", "chainlit")
        return Load(self.sessions, self.peer_turns if is_peer else self.turns, updates)

    @property
    def steady(self) -> Load:
        """What is written at a steady rate."""
        return Load(self.sessions, rate=self.steady_rate, seconds=self.steady_seconds)

    @property
    def light(self) -> Load:
        """The same of fewer people, as most servers have them."""
        return Load(min(self.sessions, _LIGHT_SESSIONS), rate=self.light_rate, seconds=self.light_seconds)

    @property
    def paced(self) -> Load:
        """What people write who read and think."""
        return Load(min(self.sessions, _PACED_SESSIONS), self.paced_turns, pause=_PAUSE)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What is read."""
        threads = tuple(Reading("get_thread", size) for size in THREAD_SIZES)
        lists = tuple(
            Reading(operation, size)
            for size in self.owned
            for operation in ("first page", "tenth page", "search")
            if not (operation == "tenth page" and size < PAGE * 10)
        )
        return threads + lists


_LIGHT_SESSIONS, _PACED_SESSIONS, _PAUSE = 50, 20, 0.3
THREAD_SIZES = (20, 50, 500)
PAGE = 20  # as Chainlit's sidebar asks for

QUICK = Scale(
    "quick", rounds=1, sessions=200, turns=10, peer_turns=2, steady_rate=10_000, steady_seconds=2,
    light_rate=1000, light_seconds=3, paced_turns=1, owned=(50, 1000), others=50_000, repeats=30, budget=0.5, limit=5,
)  # fmt: skip
NORMAL = replace(
    QUICK,
    name="normal",
    rounds=3,
    turns=20,
    peer_turns=3,
    steady_seconds=4,
    light_seconds=5,
    paced_turns=2,
    repeats=100,
    limit=10,
)
FULL = Scale(
    "full", rounds=3, sessions=200, turns=40, peer_turns=5, steady_rate=10_000, steady_seconds=8,
    light_rate=1000, light_seconds=10, paced_turns=4, owned=(50, 1000, 50_000), others=1_000_000,
    repeats=200, budget=2.0, limit=20,
)  # fmt: skip
TINY = Scale(
    "tiny", rounds=1, sessions=3, turns=2, peer_turns=1, steady_rate=200, steady_seconds=0.3,
    light_rate=50, light_seconds=0.3, paced_turns=1, owned=(50,), others=200, repeats=2, budget=0.2, limit=20,
)  # fmt: skip
SCALES: dict[str, Scale] = {scale.name: scale for scale in (QUICK, NORMAL, FULL, TINY)}


def subject_of(values: dict[str, Any]) -> Subject:
    """A subject, as `asdict` took it apart."""
    return Subject(**values)
