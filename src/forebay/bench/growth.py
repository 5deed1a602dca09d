"""How writes and reads fare as things grow: the tables, the chats at once, a step's size, the network's distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from forebay.bench import seed
from forebay.bench.plan import CHAINLIT, FOREBAY, SQLALCHEMY, WRITERS, Kind, Load, Subject
from forebay.bench.postgres import PostgresServer
from forebay.bench.proxy import DelayingProxy
from forebay.bench.report import Runs, Saved
from forebay.bench.run import Bench, Tell

Axis = Literal["steps", "sessions", "size", "distance"]
AXES: tuple[Axis, ...] = ("steps", "sessions", "size", "distance")
AXIS_NAMES = {
    "steps": "steps in the tables",
    "sessions": "chats at once",
    "size": "an answer's length, bytes",
    "distance": "round trip to the database, ms",
}
SUBJECTS: tuple[Subject, ...] = tuple(one for one in WRITERS if one.name in (FOREBAY, CHAINLIT, SQLALCHEMY))
_FEW_SESSIONS = 20  # where steps are large
_STEPS_A_THREAD = 20


@dataclass(frozen=True)
class GrowthScale:
    """Where each axis is measured: steps in the tables, chats at once, an answer's bytes, milliseconds of a round trip.

    A load goes on for `seconds`, and for as long as its last turns take; after `limit` seconds it is ended. Large steps
    are written up to `max_bytes` in all.
    """

    name: str
    steps: tuple[int, ...]
    sessions: tuple[int, ...]
    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    usual_sessions: int
    seconds: float
    limit: float
    max_bytes: int

    @property
    def points(self) -> int:
        """How many measurements that is, at most."""
        return len(SUBJECTS) * sum(map(len, (self.steps, self.sessions, self.sizes, self.distances)))


_FULL_STEPS = (0, 50_000, 500_000, 5_000_000)
GROWTH_SCALES: dict[str, GrowthScale] = {
    scale.name: scale
    for scale in (
        GrowthScale("tiny", (0, 1000), (2,), (10_000,), (5,), 2, 0.2, 30, 10**6),
        GrowthScale(
            "quick", (0, 50_000), (10, 200), (100, 10_000, 1_000_000), (0, 5), 100, 1, 15, 4 * 10**7
        ),
        GrowthScale(
            "normal", (0, 50_000, 500_000), (10, 100, 1000), (100, 10_000, 1_000_000), (0, 5, 50),
            100, 2, 30, 10**8,
        ),
        GrowthScale(
            "full", _FULL_STEPS, (10, 50, 200, 1000, 5000), (100, 1000, 10_000, 100_000, 1_000_000), (0, 5, 50),
            100, 3, 60, 10**8,
        ),
    )
}  # fmt: skip


@dataclass
class Growth(Saved):
    """By axis, by subject, a result at each point in turn: `at` says where, and `over_s` that it was ended."""

    about: dict[str, str] = field(default_factory=dict)
    scale: dict[str, object] = field(default_factory=dict)
    command: str = "forebay bench --growth"
    axes: dict[str, Runs] = field(default_factory=dict)

    def line(self, axis: str, subject: str, figure: str) -> list[tuple[float, float]]:
        """The points of a figure along an axis, as far as they were measured."""
        found = self.axes.get(axis, {}).get(subject, ())
        return [
            (at, value)
            for result in found
            if (at := result.get("at")) is not None and (value := result.get(figure)) is not None
        ]

    @property
    def lost(self) -> int:
        """Steps that forebay has left stale or missing."""
        found = [result for runs in self.axes.values() for result in runs.get(FOREBAY, ())]
        return int(sum((one.get("stale_steps") or 0) + (one.get("missing_steps") or 0) for one in found))


async def run(server: PostgresServer, scale: GrowthScale, tell: Tell) -> Growth:
    """Measure along every axis; `tell` is called before each measurement. Raises MeasurementFailed."""
    async with Bench(server, tell) as bench:
        growth = Growth(about=bench.about(), scale=asdict(scale))
        course = _Course(bench, scale, growth)
        await course.sessions()
        await course.sizes()
        await course.distances()
        await course.steps()
        return growth


class _Course:
    def __init__(self, bench: Bench, scale: GrowthScale, growth: Growth) -> None:
        self._bench = bench
        self._scale = scale
        self._growth = growth

    async def sessions(self) -> None:
        for sessions in self._scale.sessions:
            await self._all("sessions", sessions, self._load(sessions))

    async def sizes(self) -> None:
        sessions = min(_FEW_SESSIONS, self._scale.usual_sessions)
        for size in self._scale.sizes:
            turns = max(1, self._scale.max_bytes // (2 * size * sessions))
            await self._all("size", size, self._load(sessions, size, turns))

    async def distances(self) -> None:
        for distance in self._scale.distances:
            async with DelayingProxy(self._bench.home, distance / 1000) as proxy:
                through = proxy.url if distance else None
                await self._all("distance", distance, self._load(self._scale.usual_sessions), through)

    async def steps(self) -> None:
        """The tables are filled up from one point to the next. SQLAlchemyDataLayer writes into forebay's."""
        kinds: tuple[Kind, ...] = ("forebay", "chainlit")
        databases = {kind: self._bench.keep(self._bench.database(kind)) for kind in kinds}
        there = 0
        for steps in self._scale.steps:
            group = seed.Group(
                f"up to {steps}", (steps - there) // _STEPS_A_THREAD, _STEPS_A_THREAD, users=500
            )
            for kind, url in databases.items():
                if group.threads:
                    await self._bench.fill(kind, [group], url)
            there = steps
            for subject in SUBJECTS:
                url = databases["chainlit" if subject.kind == "chainlit" else "forebay"]
                await self._one("steps", steps, subject, self._load(self._scale.usual_sessions), url=url)

    def _load(self, sessions: int, size: int = 520, turns: int = 10**6) -> Load:
        return Load(sessions, turns, seconds=self._scale.seconds, step_bytes=size, reader=True)

    async def _all(
        self, axis: Axis, at: float, load: Load, through: Callable[[str], str] | None = None
    ) -> None:
        for subject in SUBJECTS:
            await self._one(axis, at, subject, load, through)

    async def _one(
        self,
        axis: Axis,
        at: float,
        subject: Subject,
        load: Load,
        through: Callable[[str], str] | None = None,
        url: str | None = None,
    ) -> None:
        runs = self._growth.axes.setdefault(axis, {})
        if any("over_s" in result for result in runs.get(subject.name, ())):
            runs[subject.name].append({"at": at, "over_s": self._scale.limit})  # farther on it takes no less
            return
        where = f"{axis} {at:,g}"
        await self._bench.write(
            runs, subject, load, url, through=through, limit=self._scale.limit, where=where
        )
        runs[subject.name][-1]["at"] = at


def names(growth: Growth) -> Sequence[str]:
    """The axes that were measured."""
    return [axis for axis in AXES if axis in growth.axes]
