"""Readiness: it turns with a wrong schema at once, with an outage after its grace, and at the end."""

from __future__ import annotations

import asyncio

from forebay.errors import ForebayError, SchemaError, TransientError
from forebay.telemetry import health
from forebay.telemetry.health import Health, Pulse


class _World:
    def __init__(self, grace: float = 15.0) -> None:
        self.now = 100.0
        self.failure: ForebayError | None = None
        self.has_written = False
        self.health = Health(lambda: self.failure, lambda: self.has_written, grace, lambda: self.now)


def test_an_outage_counts_after_its_grace_from_when_it_began() -> None:
    world = _World()
    assert world.health.reason() is None
    world.failure = TransientError("the database is gone")
    world.health.look()
    world.now += 14.9
    assert world.health.reason() is None
    world.now += 0.1
    assert world.health.reason() == "the database is gone"
    world.failure = None
    assert world.health.reason() is None


def test_two_short_outages_are_not_one_long_one() -> None:
    world = _World()
    for failure in (TransientError("gone"), None, TransientError("gone again")):
        world.failure = failure
        world.health.look()
        world.now += 10
    assert world.health.reason() is None


def test_a_wrong_schema_counts_at_once() -> None:
    world = _World()
    world.failure = SchemaError("run `forebay migrate`")
    assert world.health.reason() == "run `forebay migrate`"


def test_what_an_idle_database_answers_counts_too() -> None:
    world = _World(grace=0)
    world.health.note(TransientError("nobody answers"))
    assert world.health.reason() == "nobody answers"
    world.health.note(None)
    assert world.health.reason() is None


def test_it_is_not_ready_before_the_first_answer_or_the_first_batch() -> None:
    asked, writing = _World(), _World()
    for world in (asked, writing):
        world.health.answered = False
        assert world.health.reason() == "the database has not answered yet"
    asked.health.note(None)
    writing.has_written = True
    assert (asked.health.reason(), writing.health.reason()) == (None, None)


def test_the_end_comes_before_everything() -> None:
    world = _World()
    world.health.closing = True
    assert world.health.reason() == "the data layer is closing"
    assert "closing" in repr(world.health)


async def test_the_pulse_tells_how_late_it_came_until_it_is_stopped() -> None:
    loop, beats = asyncio.get_running_loop(), asyncio.Queue[float]()
    pulse = Pulse(beats.put_nowait)
    pulse.start(loop)
    # The loop's own clock, so that no machine is too slow for this.
    late = loop.time() + health.PULSE + 0.2
    while loop.time() < late:
        pass
    assert await beats.get() >= 0.19
    pulse.stop()
    await asyncio.sleep(1.5 * health.PULSE)
    assert beats.empty()
