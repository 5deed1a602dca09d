"""The process that obeys orders, seen from the command line; see `child.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from typing import Any, Self

from forebay.errors import ForebayError

_TIMEOUT = 900.0  # seconds: no order takes that long
_LINE_BYTES = 2**20


class MeasurementFailed(ForebayError):
    """A measurement's process has failed; the message ends with what it said."""


@dataclass(frozen=True)
class Answer:
    """What an order has brought. `alarmed`: its own alarm has ended it, since something took too long."""

    results: list[Any]
    alarmed: bool


class Processes:
    """Gives orders, one at a time. An asynchronous context manager, at whose end nothing runs any more."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._folders = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()
        self._folders.close()

    async def order(self, task: str, **more: Any) -> Answer:
        """Have something done in a process of its own. Raises MeasurementFailed."""
        process = await self._running()
        assert process.stdin is not None
        with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
            order = {"task": task, "folder": folder, **more}
            process.stdin.write(json.dumps(order).encode() + b"\n")
            try:
                async with asyncio.timeout(_TIMEOUT):
                    return await _answer(process, task)
            except BaseException as error:
                await self._end()  # and with it whatever it has started
                if isinstance(error, TimeoutError):
                    raise MeasurementFailed(f"{task} took longer than {_TIMEOUT:g} s") from None
                raise

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            root = self._folders.enter_context(tempfile.TemporaryDirectory(prefix="forebay-bench-"))
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "forebay.bench.child"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=_environment(root),
                limit=_LINE_BYTES,
                start_new_session=True,  # so that what it has started can be ended with it
            )
        return self._process

    async def _end(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        self._process = None


async def started(url: str) -> dict[str, float | None]:
    """What a start costs on a database; see `start.py`. Raises MeasurementFailed."""
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "forebay.bench.start"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(folder),
        )
        order = json.dumps({"url": url, "folder": folder}).encode()
        try:
            async with asyncio.timeout(_TIMEOUT):
                said, complaint = await process.communicate(order + b"\n")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode:
            last = complaint.decode(errors="replace").strip().splitlines()[-1:]
            raise MeasurementFailed(f"start failed: {''.join(last) or process.returncode}")
        result: dict[str, float | None] = json.loads(said.splitlines()[-1])
        return result


async def _answer(process: asyncio.subprocess.Process, task: str) -> Answer:
    assert process.stdout is not None
    results: list[Any] = []
    async for line in process.stdout:
        result = json.loads(line)
        if "ended" not in result:
            results.append(result)
            continue
        if result["ended"] not in (0, -signal.SIGALRM):
            raise MeasurementFailed(f"{task} failed: {result['complaint'] or result['ended']}")
        return Answer(results, alarmed=result["ended"] != 0)
    raise MeasurementFailed(f"{task} failed: its process is gone")


def _environment(root: str) -> dict[str, str]:
    """Chainlit writes into its root; and no setting of the caller's is measured along. A fork wants no threads."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("FOREBAY_", "CHAINLIT_"))
    }
    kept.pop("DATABASE_URL", None)
    return kept | {"CHAINLIT_APP_ROOT": root, "CHAINLIT_ENV_FILE": os.devnull, "OPENBLAS_NUM_THREADS": "1"}
