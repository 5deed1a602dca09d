"""Servers that may be crashed: they sync to disk, so that a crash loses nothing that was committed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import PostgresServer


@pytest.fixture
def durable_postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the test's own that keeps what it has committed."""
    with PostgresServer(own=True, durable=True) as server:
        yield server
