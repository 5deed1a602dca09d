"""The tests' own PostgreSQL: as whoever runs them, from the system or from the wheel, and gone afterwards."""

from __future__ import annotations

import multiprocessing
import os
import pwd
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer, name_of, wheel_binaries


def _count(server: PostgresServer) -> int:
    return int(server.execute("SELECT count(*) FROM pg_database")[0][0])


def test_databases_come_and_go(postgres_server: PostgresServer) -> None:
    before = _count(postgres_server)
    url = postgres_server.create_database()
    assert _count(postgres_server) == before + 1
    assert postgres_server.execute("SELECT current_database()", name_of(url))[0][0] == name_of(url)
    postgres_server.drop_database(url)
    assert _count(postgres_server) == before


def test_a_crashed_server_starts_again_with_its_data(own_postgres_server: PostgresServer) -> None:
    url = own_postgres_server.create_database()
    own_postgres_server.execute("CHECKPOINT")
    own_postgres_server.crash()
    with pytest.raises(ConnectionRefusedError):
        own_postgres_server.execute("SELECT 1")
    own_postgres_server.start()
    assert own_postgres_server.execute("SELECT 1", name_of(url))[0][0] == 1


@pytest.mark.parametrize("binaries", list(wheel_binaries()), ids=lambda path: Path(path).parent.name)
def test_the_wheel_serves_where_the_system_has_none(binaries: Path) -> None:
    with PostgresServer(binaries=binaries) as server:
        folder = server.data.parent
        version = server.execute("SHOW server_version_num")[0][0]
        assert int(version) >= 160000
    assert not folder.exists()


def _serve_as(account: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ["HOME"] = "/nonexistent"
    with PostgresServer() as server:
        assert _count(server) == 3
        assert server.data.stat().st_uid == account.pw_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else; all other tests run as you")
def test_it_runs_as_an_ordinary_user() -> None:
    # A fork, since an ordinary user may not be able to read root's Python.
    child = multiprocessing.get_context("fork").Process(target=_serve_as, args=(pwd.getpwnam("nobody"),))
    child.start()
    child.join(60)
    assert child.exitcode == 0
