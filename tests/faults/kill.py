"""Ending a process that writes, and what it said was acknowledged by then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PATIENCE = 30.0  # seconds that a container's runtime waits for its end


def work_until(number: signal.Signals, url: str, folder: Path, seconds: float) -> tuple[dict[str, int], int]:
    """Have `kill_worker` write for so long, then send it a signal.

    Returns the last acknowledged version of each step, and the exit code.
    """
    command = [sys.executable, "-m", "tests.faults.kill_worker", url, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
        assert worker.stdout is not None
        lines = [next(line for line in worker.stdout if line.startswith("ack"))]  # starts the clock
        signaller = threading.Timer(seconds, lambda: os.kill(worker.pid, number))
        too_late = threading.Timer(seconds + _PATIENCE, worker.kill)
        signaller.start()
        too_late.start()
        lines += worker.stdout.readlines()
        signaller.join()
        code = worker.wait()
        assert too_late.is_alive(), f"it did not end within {_PATIENCE} s"
        too_late.cancel()
    acknowledged: dict[str, int] = {}
    for line in lines:
        if line.startswith("ack") and line.endswith("\n"):  # the last may be cut off
            _, step_id, version = line.split()
            acknowledged[step_id] = int(version)
    return acknowledged, code
