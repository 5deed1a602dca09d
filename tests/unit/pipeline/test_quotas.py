"""One person's large changes take up a part of the room, whatever becomes of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from forebay.errors import QueueFull
from forebay.model import changes
from forebay.pipeline.quotas import LARGE, Held, Quotas
from forebay.primitives.awaitables import NOTHING, failed
from forebay.settings import Settings

QUEUE, JOURNAL = 16 * LARGE, 1024 * 1024  # of which one person has four changes of LARGE, and 16


def a_change(thread_id: str = "t", size: int = LARGE) -> changes.Upsert:
    made = changes.step({"id": "s", "threadId": thread_id, "type": "run"})
    return replace(made, size=size)


class Room:
    def __init__(self, *, journaled: bool = True, who: str = "") -> None:
        settings = Settings(queue_max_bytes=QUEUE, journal_max_bytes=JOURNAL)
        self.who = who
        self.quotas = Quotas(settings, lambda: self.who, journaled=journaled)

    def hold(self, *arguments: Any) -> Held:
        return self.quotas.hold(a_change(*arguments), asyncio.get_running_loop())

    def takes(self, *arguments: Any) -> int:
        """How many more it holds."""
        for taken in range(100):
            try:
                self.hold(*arguments)
            except QueueFull:
                return taken
        return 100


async def test_a_thread_takes_a_quarter_and_leaves_the_rest_to_others() -> None:
    room = Room()
    assert [room.takes("a"), room.takes("a"), room.takes("b")] == [4, 0, 4]


async def test_a_person_takes_a_quarter_in_all_of_their_threads() -> None:
    room = Room(who="ann")
    assert [room.takes("a"), room.takes("b")] == [4, 0]
    room.who = "bob"
    assert room.takes("a") == 4


async def test_one_change_of_any_size_is_taken_alone() -> None:
    room = Room()
    assert [room.takes("a", QUEUE), room.takes("a")] == [1, 0]


async def test_what_the_disk_has_takes_up_the_disks_room_alone() -> None:
    room = Room()
    for _ in range(16):
        done = asyncio.get_running_loop().create_future()
        room.hold().until(done)
        done.set_result(None)
        await asyncio.sleep(0)
    assert room.takes() == 0  # a quarter of the journal
    assert room.takes("b") == 4


async def test_without_a_journal_an_answer_gives_nothing_back() -> None:
    room = Room(journaled=False)
    held = [room.hold() for _ in range(4)]
    for one in held:
        await one.until(NOTHING)
    assert room.takes() == 0
    held[0].written.set_result(None)
    await asyncio.sleep(0)
    assert room.takes() == 1


@pytest.mark.parametrize("error", [None, QueueFull("full")])
async def test_what_is_written_or_given_up_gives_all_back_once(error: Exception | None) -> None:
    room = Room()
    held = room.hold()
    if error is None:
        held.written.set_result(None)
    else:
        held.written.set_exception(error)
    await asyncio.sleep(0)
    held.answered()
    held.end()
    assert room.takes() == 4


async def test_what_was_not_let_in_takes_up_nothing() -> None:
    room = Room()
    with pytest.raises(QueueFull, match="no place"):
        await room.hold().until(failed(QueueFull("no place")))
    assert room.takes() == 4


async def test_what_comes_back_late_is_not_counted_twice() -> None:
    room = Room()
    before = room.hold()
    room.quotas.clear()
    assert room.takes() == 4
    before.end()
    assert room.takes() == 0
