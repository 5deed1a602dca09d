"""Fixtures for every test: databases of both kinds, empty or migrated, and Chainlit without its surroundings."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from chainlit.context import ChainlitContext, init_http_context
from hypothesis import HealthCheck, settings
from sqlalchemy.ext.asyncio import create_async_engine

from forebay.database import migrations
from forebay.database.urls import parse_url
from forebay.telemetry.logs import limit_repeats
from tests.support.postgres import EXTERNAL, NoPostgres, PostgresServer, name_of, run_apart

_SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large)
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("long", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell has it for what it starts in the background; programs that are started here would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _every_log_line() -> None:
    """What the tests before have logged does not count."""
    limit_repeats().clear()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server, shared by the session's tests. Not to be stopped: see `own_postgres_server`."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def own_postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that the test may stop, crash and start; never the environment's."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(PostgresServer(own=True))
        except NoPostgres as error:
            if EXTERNAL not in os.environ:
                raise
            pytest.skip(str(error))  # the environment's server serves all other tests
        yield server


@pytest.fixture
def durable_postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own that keeps what it has committed, which a crash of the others may lose."""
    with PostgresServer(own=True, durable=True) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty PostgreSQL database."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite database whose file does not exist yet."""
    return f"sqlite:///{tmp_path / 'forebay.db'}"


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    url = postgres_server.create_database()
    _migrate(url)
    yield name_of(url)
    postgres_server.drop_database(url)  # the environment's server outlives the tests


@pytest.fixture
def migrated_postgres_url(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    """A PostgreSQL database with forebay's tables."""
    url = postgres_server.create_database(template=_postgres_template)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "forebay.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def migrated_sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """A SQLite database with forebay's tables."""
    path = tmp_path / "migrated.db"
    shutil.copy(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of either kind."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest) -> str:
    """A database of either kind with forebay's tables."""
    kind = "migrated_sqlite_url" if request.param == "sqlite" else "migrated_postgres_url"
    url: str = request.getfixturevalue(kind)
    return url


@pytest.fixture
async def chainlit_context() -> ChainlitContext:
    """A Chainlit context without a websocket, which the wrappers of the write methods look at."""
    return init_http_context()


def _migrate(url: str) -> None:
    async def run() -> None:
        engine = create_async_engine(parse_url(url)[0])
        await migrations.upgrade(engine)
        await engine.dispose()

    run_apart(run)
