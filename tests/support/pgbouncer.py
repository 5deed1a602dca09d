"""A real pgbouncer in front of a PostgreSQL server of the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from tests.support.chainlit_server import free_port
from tests.support.patience import PATIENCE
from tests.support.programs import program

_CONFIG = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {pool_size}
server_round_robin = 1
server_login_retry = 1
"""


class Pgbouncer:
    """Pools connections to the server that `url` names; a context manager. `mode` is pgbouncer's pool_mode.

    It takes turns with its own connections, so that nothing works by meeting the same one again. Skips the test
    where there is no pgbouncer.
    """

    def __init__(self, url: str, mode: str = "transaction", pool_size: int = 3) -> None:
        self._program = program("pgbouncer")
        self.direct_url = url
        self.mode = mode
        self._server = urlsplit(url)
        self._port = free_port()
        self._account = _unprivileged_account()
        # Not in the test's own folder, which that account can't enter.
        self._folder = Path(
            tempfile.mkdtemp(prefix="forebay-pgbouncer-", dir="/tmp" if self._account else None)
        )
        values = {"host": self._server.hostname, "port": self._server.port, "own_port": self._port}
        config = _CONFIG.format(**values, folder=self._folder, mode=mode, pool_size=pool_size)
        (self._folder / "pgbouncer.ini").write_text(config)
        (self._folder / "users").write_text(f'"{self._server.username}" "{self._server.password or ""}"\n')
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The database's URL by way of the pooler."""
        user = self._server.netloc.rpartition("@")[0]
        return urlunsplit(self._server._replace(netloc=f"{user}@127.0.0.1:{self._port}"))

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start it, on the same port as before."""
        options: dict[str, Any] = {}
        if self._account is not None:
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
            options = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        log_path = self._folder / "log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self._folder / "pgbouncer.ini")],
                stdout=log,
                stderr=subprocess.STDOUT,
                **options,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, f"it ended at once:\n{log_path.read_text()}"
            assert time.monotonic() < deadline, f"it does not answer:\n{log_path.read_text()}"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it without a word to anybody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """From when nothing runs any more at the server, nothing is passed on to it."""
        self._signal(signal.SIGUSR1)

    def resume(self) -> None:
        """What waits is passed on."""
        self._signal(signal.SIGUSR2)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Whom to run it as: pgbouncer refuses root. None: as oneself."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None
