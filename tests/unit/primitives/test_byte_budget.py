"""Room for bytes: never more than there is, in the order of asking."""

from __future__ import annotations

import asyncio

import pytest

from forebay.primitives.byte_budget import ByteBudget
from tests.support.patience import patience


async def _turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_finds_no_room_waits_for_it() -> None:
    room = ByteBudget(10)
    await room.take(6)
    waiting = asyncio.create_task(room.take(5))
    await _turn()
    assert not waiting.done()
    room.give(6)
    await waiting


async def test_nobody_overtakes() -> None:
    room = ByteBudget(10)
    await room.take(8)
    large, small = asyncio.create_task(room.take(9)), asyncio.create_task(room.take(1))
    await _turn()
    assert (large.done(), small.done()) == (False, False)
    room.give(8)
    await _turn()
    assert (large.done(), small.done()) == (True, True)


async def test_what_is_larger_than_all_goes_alone() -> None:
    room = ByteBudget(10)
    await room.take(1)
    huge = asyncio.create_task(room.take(100))
    await _turn()
    assert not huge.done()
    room.give(1)
    await huge
    after = asyncio.create_task(room.take(1))
    await _turn()
    assert not after.done()
    room.give(100)
    await after


@pytest.mark.parametrize("when", ["waiting", "admitted"])
async def test_who_gives_up_takes_nothing(when: str) -> None:
    room = ByteBudget(10)
    await room.take(10)
    first, second = asyncio.create_task(room.take(10)), asyncio.create_task(room.take(10))
    await _turn()
    if when == "admitted":
        room.give(10)
        first.cancel()
    else:
        first.cancel()
        await _turn()
        room.give(10)
    with pytest.raises(asyncio.CancelledError):
        await first
    async with patience():
        await second
