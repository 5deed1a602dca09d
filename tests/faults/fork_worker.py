"""A process that forks while its data layer is in use. See test_fork.py.

`python -m tests.faults.fork_worker CASE URL FOLDER`. Each line that it prints is an event; the child's begin
with `child`. The parent's writes are acknowledged by its journal and stay there until it flushes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from chainlit.context import init_http_context

from forebay import ForebayDataLayer, ForebayError, Settings
from tests.support.patience import patience

THREAD = "00000000-0000-4000-8000-000000000001"


class Parent:
    """A layer with a first write in its journal."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.layer = self.make_layer()

    def make_layer(self) -> ForebayDataLayer:
        settings = Settings(durability="journal", journal_dir=self.folder, linger=10, close_timeout=10)
        return ForebayDataLayer(self.url, settings=settings)

    async def write(self, name: str, layer: ForebayDataLayer | None = None) -> None:
        """A step of this name, acknowledged."""
        number = sum(name.encode())
        step = {"id": f"00000000-0000-4000-8000-{number:012}", "threadId": THREAD, "name": name}
        await (layer or self.layer).create_step({**step, "type": "run", "output": name})  # type: ignore[typeddict-item]

    async def fork(self, act: Callable[[], Coroutine[Any, Any, None]], *, wait: bool = True) -> None:
        """Run `act` in a forked child, in an event loop of its own; it ends as one of multiprocessing's does."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _act_in_child(act)
        if wait:
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            tell(f"child ended {os.waitstatus_to_exitcode(status)}")


def tell(event: str) -> None:
    sys.stdout.write(f"{event}\n")
    sys.stdout.flush()


def _act_in_child(act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def in_time() -> None:
        async with patience():
            await act()

    code = 0
    try:
        asyncio.run(in_time())
    except ForebayError as error:
        tell(f"child refused {type(error).__name__}")
    except BaseException as error:
        tell(f"child failed {type(error).__name__}: {error}")
        code = 1
    os._exit(code)  # leaving through the parent's loop would end what is in it


# ---- the cases


async def child_writes(parent: Parent) -> None:
    await parent.fork(lambda: parent.write("child"))
    await _go_on(parent)


async def child_reads(parent: Parent) -> None:
    async def read() -> None:
        await parent.layer.get_thread(THREAD)

    await parent.fork(read)
    await _go_on(parent)


async def child_flushes(parent: Parent) -> None:
    await parent.fork(parent.layer.flush)
    await _go_on(parent)


async def child_closes(parent: Parent) -> None:
    await parent.fork(parent.layer.close)
    await _go_on(parent)


async def child_forgets_it(parent: Parent) -> None:
    """What is collected as garbage is closed, too."""

    async def forget() -> None:
        parent.__dict__.clear()
        gc.collect()

    await parent.fork(forget)
    await _go_on(parent)


async def child_makes_its_own(parent: Parent) -> None:
    async def serve() -> None:
        layer = parent.make_layer()
        await parent.write("child", layer)
        await layer.close()
        tell("child closed its own")

    await parent.fork(serve)
    await _go_on(parent)


async def child_has_an_unused_one(parent: Parent) -> None:
    """A server that makes its layer and then forks its workers."""
    unused = parent.make_layer()

    async def serve() -> None:
        await parent.write("child", unused)
        await unused.close()
        tell("child closed it")

    await parent.fork(serve)
    await _go_on(parent)


async def child_outlives(parent: Parent) -> None:
    async def live_on() -> None:
        tell("child lives")
        await asyncio.to_thread(sys.stdin.read)  # until the test lets it go

    await parent.fork(live_on, wait=False)
    await _wait_for_the_end(parent)


async def grandchild_outlives(parent: Parent) -> None:
    """The descriptor goes on through each fork."""

    async def live_on() -> None:
        if os.fork() == 0:
            tell("child lives")
            sys.stdin.read()
            os._exit(0)

    await parent.fork(live_on)
    await _wait_for_the_end(parent)


async def program_outlives(parent: Parent) -> None:
    """A program that the application has started."""
    subprocess.Popen(["/bin/sh", "-c", "echo child lives; read _"], close_fds=False)
    await _wait_for_the_end(parent)


async def _go_on(parent: Parent) -> None:
    """Take another write, flush or be killed, as the test says, and tell what the thread holds."""
    await parent.write("after")
    tell("acknowledged")
    if await asyncio.to_thread(sys.stdin.readline) == "close\n":
        thread = await parent.layer.get_thread(THREAD)
        assert thread is not None
        await parent.layer.close()
        tell("closed " + " ".join(sorted(step["name"] for step in thread["steps"])))


async def _wait_for_the_end(parent: Parent) -> None:
    await parent.write("after")
    tell("acknowledged")
    await asyncio.sleep(60)


async def main(case: str, url: str, folder: str) -> None:
    init_http_context()
    parent = Parent(url, Path(folder))
    await parent.write("before")
    await globals()[case](parent)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
