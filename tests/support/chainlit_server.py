"""A real Chainlit server as a process of its own, on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support.patience import PATIENCE


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ChainlitServer:
    """A server that runs `command` (with `{port}` filled in) in `folder`; a context manager.

    By default it is `chainlit run APP`. It is up when `path` answers. Its output is in `log`.
    """

    def __init__(
        self,
        app: Path | None,
        folder: Path,
        env: dict[str, str],
        command: Sequence[str] | None = None,
        path: str = "/",
    ) -> None:
        self.mounted_at = path.rstrip("/")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / f"server-{self.port}.log"
        chainlit = ("-m", "chainlit", "run", str(app), "--headless", "--port", "{port}")
        self._command = [part.format(port=self.port) for part in (sys.executable, *(command or chainlit))]
        self._folder = folder
        self._path = path
        self.env = {
            **os.environ,
            "CHAINLIT_APP_ROOT": str(folder),
            "CHAINLIT_AUTH_SECRET": "only-for-tests-and-long-enough-for-a-key",
            **env,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def log(self) -> str:
        """What the server has said."""
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process, which has been started."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self.env, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, f"the server ended at once:\n{self.log}"
            assert time.monotonic() < deadline, f"the server does not answer:\n{self.log}"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{self._path}", timeout=PATIENCE) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, and wait for that; its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """End it without asking."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
