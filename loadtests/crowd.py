"""People who chat with a server, in a process of their own: `python -m loadtests.crowd URL --people N --turns N`.

It says `ready` when all are connected, waits for a line, chats, prints what they saw as one line of JSON, waits
for another line, and leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

import click
from tests.support.chainlit_client import ChainlitClient
from typing_extensions import override

from loadtests import seen
from loadtests.seen import Chat

_LOGINS_AT_ONCE = 10


class Person(ChainlitClient):
    """Somebody who notes when the first of an answer is to be seen."""

    first_shown: float | None = None

    async def ask(self, question: str) -> seen.Turn:
        """Ask, and wait for the whole answer."""
        before = set(self.steps)
        self.first_shown, started = None, time.perf_counter()
        await self.say(question)
        took = time.perf_counter() - started
        shown = [step for key, step in self.steps.items() if key not in before]
        first = (self.first_shown or 0.0) - started
        return seen.turn_of(self.question_id, question, shown, first, took)

    @override
    async def _see(self, step: dict[str, Any]) -> None:
        if self.first_shown is None and step["type"] == "assistant_message":
            self.first_shown = time.perf_counter()
        await super()._see(step)


async def _chat(person: Person, number: int, turns: int, think: float) -> Chat:
    chat = Chat(person.login)
    for turn in range(turns):
        if think:
            await asyncio.sleep(think)
        chat.turns.append(await person.ask(f"question {number}.{turn}"))
    chat.thread_id = person.thread_id
    return chat


async def _crowd(url: str, people: int, turns: int, think: float) -> None:
    async with contextlib.AsyncExitStack() as stack:
        gate = asyncio.Semaphore(_LOGINS_AT_ONCE)

        async def enter(number: int) -> Person:
            async with gate:
                return await stack.enter_async_context(Person(url, login=f"person{number}"))

        crowd = await asyncio.gather(*map(enter, range(people)))
        await _say("ready")
        started = time.perf_counter()
        chats = await asyncio.gather(*(_chat(one, number, turns, think) for number, one in enumerate(crowd)))
        took = time.perf_counter() - started
        await _say(json.dumps({"seconds": took, "chats": seen.dump(chats)}))


async def _say(line: str) -> None:
    """Print a line, and wait for one."""
    click.echo(line)
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)


@click.command()
@click.argument("url")
@click.option("--people", default=50, show_default=True)
@click.option("--turns", default=10, show_default=True)
@click.option("--think", default=0.0, show_default=True)
def main(url: str, people: int, turns: int, think: float) -> None:
    """Chat with a server, and tell what was seen."""
    asyncio.run(_crowd(url, people, turns, think))


if __name__ == "__main__":
    main()
