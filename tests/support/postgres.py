"""The tests' PostgreSQL: the server that `FOREBAY_TEST_DATABASE_URL` names, else one that is started for them."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from typing_extensions import override

from forebay.bench import postgres
from forebay.bench.postgres import NoPostgres, name_of, run_apart, wheel_binaries
from tests.support.patience import PATIENCE

__all__ = ["EXTERNAL", "NoPostgres", "PostgresServer", "Standby", "name_of", "run_apart", "wheel_binaries"]

EXTERNAL = "FOREBAY_TEST_DATABASE_URL"


class PostgresServer(postgres.PostgresServer):
    """As the benchmarks', but by default the environment's server.

    `own` is for those who stop it: the environment's server is not taken, nor where `binaries` are named.
    """

    def __init__(self, *, durable: bool = False, own: bool = False, binaries: Path | None = None) -> None:
        url = None if own or binaries else os.environ.get(EXTERNAL)
        super().__init__(url=url, durable=durable, binaries=binaries)

    @override
    def _fill(self) -> None:
        """The roles that tests make have no passwords."""
        super()._fill()
        rules = self.data / "pg_hba.conf"
        own = f"host all {self._superuser} 127.0.0.1/32 md5\n"
        rules.write_text(
            f"{own}host all all 127.0.0.1/32 trust\n{rules.read_text()}"
        )  # replication: as there

    def promote(self) -> None:
        """Make a standby a primary of its own."""
        self._pg_ctl("promote", "-w")

    def follow(self, primary: PostgresServer) -> None:
        """Come back as a standby of another server, at the same address; what was here is gone."""
        self.crash()
        shutil.rmtree(self.data)
        self._copy_from(primary)
        self.start()

    def _copy_from(self, primary: PostgresServer) -> None:
        # A standby that has lost its connection for a moment must still find what it has not replayed.
        primary.execute("ALTER SYSTEM SET wal_keep_size = '1GB'")
        primary.execute("SELECT pg_reload_conf()")
        where = f"host=127.0.0.1 port={primary.port} user={primary._superuser} password={primary._password}"
        self._run(
            "pg_basebackup",
            *("--pgdata", str(self.data), "--dbname", where, "--write-recovery-conf"),
            *("--wal-method", "stream", "--checkpoint", "fast", "--no-sync"),
        )


class Standby(PostgresServer):
    """A standby that follows a server of one's own by streaming replication, and answers reads."""

    def __init__(self, primary: PostgresServer, *, durable: bool = False) -> None:
        super().__init__(own=True, durable=durable, binaries=primary._binaries)
        self._primary = primary
        self._superuser, self._password = primary._superuser, primary._password

    @override
    def _fill(self) -> None:
        self._copy_from(self._primary)

    def catch_up(self) -> None:
        """Return when it has replayed all that the primary has committed."""
        # A message in the log, and a transaction of it that waits for the disk with all before it.
        emit = "SELECT pg_logical_emit_message(true, '', set_config('synchronous_commit', 'on', true))::text AS lsn"
        target = self._primary.execute(emit)[0]["lsn"]
        deadline = time.monotonic() + PATIENCE
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{target}'::pg_lsn AS done"
        while not self.execute(replayed)[0]["done"]:
            if time.monotonic() > deadline:
                raise NoPostgres("the standby does not follow")
            time.sleep(0.02)


if __name__ == "__main__":  # a check by hand: python -m tests.support.postgres
    with PostgresServer() as running:
        sys.stdout.write(running.create_database() + "\n")
