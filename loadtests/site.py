"""The app on a layer and a database of its own, with the daemon where the layer needs one, and its audit at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from tests.support.chainlit_server import ChainlitServer, free_port

from forebay.bench.layers import make_tables
from loadtests import audit
from loadtests.seen import Chat

Layer = Literal["none", "nothing", "forebay", "external", "sqlalchemy", "chainlit"]
LAYERS: tuple[Layer, ...] = ("none", "nothing", "forebay", "external", "sqlalchemy", "chainlit")
NAMES: dict[str, str] = {
    "none": "no data layer",
    "nothing": "a layer that does nothing",
    "forebay": "forebay, journal",
    "external": "forebay, external",
    "sqlalchemy": "SQLAlchemyDataLayer",
    "chainlit": "ChainlitDataLayer",
}
KEEP_NOTHING: tuple[Layer, ...] = ("none", "nothing")
ROOT = Path(__file__).parents[1]
_APP = Path(__file__).with_name("app.py")
_DAEMON_PATIENCE = 60.0  # seconds
_TICKS = os.sysconf("SC_CLK_TCK")
# A server has settled when it uses less than this share of a CPU.
_SETTLED, _LOOK_EVERY, _SETTLE_PATIENCE = 0.04, 0.5, 30.0


class Site:
    """A context manager: the server runs within it. `folder` takes the journals, the files and the logs."""

    def __init__(self, layer: Layer, database_url: str, folder: Path) -> None:
        self.layer = layer
        self.metrics_url = f"http://127.0.0.1:{free_port()}/metrics"
        self._url = database_url
        self._folder = folder
        self._files, self._journals = folder / "files", folder / "journals"
        self._journals.mkdir(mode=0o700)
        self._daemon: subprocess.Popen[bytes] | None = None
        self.server = ChainlitServer(_APP, folder, self._environment())

    def __enter__(self) -> Self:
        if self.layer not in KEEP_NOTHING:
            asyncio.run(make_tables("chainlit" if self.layer == "chainlit" else "forebay", self._url))
        try:
            if self.layer == "external":
                self._start_daemon()
            self.server.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.kill()
            self._daemon.wait()

    def stop(self) -> None:
        """Ask the server to end, then the daemon, and wait until they have written what they have."""
        self.server.stop()
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGTERM)
            self._daemon.wait(_DAEMON_PATIENCE)

    def audit(self, chats: list[Chat]) -> audit.Audit | None:
        """What of the chats is not in the database; None where there is none. The server has stopped."""
        if self.layer in KEEP_NOTHING:
            return None
        stored = asyncio.run(audit.read(self.layer, self._url, self._files))
        return audit.compare(chats, stored)

    def cpu(self) -> Cpu:
        """What the server and the daemon have used so far."""
        return Cpu(cpu_of(self.server.pid), cpu_of(self._daemon.pid) if self._daemon else 0.0)

    def settled_cpu(self) -> Cpu:
        """The same, when both have done what they had to do."""
        deadline = time.monotonic() + _SETTLE_PATIENCE
        before = self.cpu()
        while True:
            time.sleep(_LOOK_EVERY)
            now = self.cpu()
            used = now.server - before.server + now.daemon - before.daemon
            if used < _SETTLED * _LOOK_EVERY or time.monotonic() > deadline:
                return now
            before = now

    def _start_daemon(self) -> None:
        command = [sys.executable, "-m", "forebay.cli", "drain", str(self._journals), "--watch"]
        with (self._folder / "drain.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [*command, "--database-url", self._url],
                env={**self.server.env, "FOREBAY_METRICS_ADDRESS": "off"},
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for those who started it
            )

    def _environment(self) -> dict[str, str]:
        environment = {
            "LAYER": "forebay" if self.layer == "external" else self.layer,
            "LOAD_DATABASE_URL": self._url,
            "LOAD_FILES": str(self._files),
            "FOREBAY_JOURNAL_DIR": str(self._journals),
            "FOREBAY_METRICS_ADDRESS": self.metrics_url.removeprefix("http://").removesuffix("/metrics"),
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH")))
            ),
            "CHAINLIT_ENV_FILE": os.devnull,
            "OPENBLAS_NUM_THREADS": "1",
        }
        if self.layer == "external":
            environment["FOREBAY_WRITER"] = "external"
        return environment


@dataclass(frozen=True)
class Cpu:
    """Seconds."""

    server: float
    daemon: float


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used, its threads included; 0 for one that is gone."""
    with contextlib.suppress(OSError):
        # The name, which may hold anything, ends with the last parenthesis.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0
