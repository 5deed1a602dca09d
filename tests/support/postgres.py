"""The tests' PostgreSQL: the server that `FOREBAY_TEST_DATABASE_URL` names, else one that is started for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from forebay.bench import postgres
from forebay.bench.postgres import NoPostgres, name_of, run_apart, wheel_binaries

__all__ = ["EXTERNAL", "NoPostgres", "PostgresServer", "name_of", "run_apart", "wheel_binaries"]

EXTERNAL = "FOREBAY_TEST_DATABASE_URL"


class PostgresServer(postgres.PostgresServer):
    """As the benchmarks', but by default the environment's server.

    `own` is for those who stop it: the environment's server is not taken, nor where `binaries` are named.
    """

    def __init__(self, *, durable: bool = False, own: bool = False, binaries: Path | None = None) -> None:
        url = None if own or binaries else os.environ.get(EXTERNAL)
        super().__init__(url=url, durable=durable, binaries=binaries)


if __name__ == "__main__":  # a check by hand: python -m tests.support.postgres
    with PostgresServer() as running:
        sys.stdout.write(running.create_database() + "\n")
