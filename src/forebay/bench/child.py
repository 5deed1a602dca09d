"""The measurements' processes: one that has imported everything forks another for each order.

Orders are lines of JSON on standard input, since they hold a URL that may hold a password; results are lines on
standard output, the last of each order `{"ended": exit code, "complaint": text}`. Importing takes seconds, and
what has been imported is the same for all.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

from chainlit.context import init_http_context

from forebay.bench import layers, reads, seed, writes
from forebay.bench.plan import Load, Reading, Subject


async def _run(order: dict[str, Any]) -> None:
    subject, url, folder = Subject(**order["subject"]), order["url"], Path(order["folder"])
    init_http_context()
    match order["task"]:
        case "tables":
            await layers.make_tables(subject.kind, url)
        case "fill":
            await seed.fill(subject.kind, url, [seed.Group(**group) for group in order["groups"]])
        case "drop indexes":
            await seed.drop_indexes(url)
        case "write":
            signal.setitimer(signal.ITIMER_REAL, order["limit"])
            _tell(await writes.measure(subject, url, Load(**order["load"]), folder))
        case "read":
            readings = [Reading(**reading) for reading in order["readings"]]
            bounds = (order["repeats"], order["budget"], order["limit"])
            async for result in reads.measure(subject, url, readings, folder, *bounds):
                _tell(result)


def _tell(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def _serve() -> None:
    for line in sys.stdin:
        with tempfile.TemporaryFile() as complaint:
            pid = os.fork()
            if pid == 0:
                _obey(line, complaint)
            _, status = os.waitpid(pid, 0)
            complaint.seek(0)
            said = complaint.read().decode(errors="replace").strip().splitlines()[-1:]
        _tell({"ended": os.waitstatus_to_exitcode(status), "complaint": "".join(said)})


def _obey(line: str, complaint: IO[bytes]) -> NoReturn:
    """In the forked process: the order, and the end."""
    code = 1
    try:
        os.dup2(complaint.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        gc.collect()  # touches all objects, so that no measurement pays for making their pages its own
        asyncio.run(_run(json.loads(line)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    _serve()
