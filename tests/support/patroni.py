"""A real Patroni cluster: two PostgreSQL servers, of which etcd says which is the primary, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import asyncpg

from forebay.bench.postgres import run_apart
from tests.support.chainlit_server import free_port
from tests.support.patience import PATIENCE
from tests.support.postgres import PostgresServer
from tests.support.programs import program

# Patroni's shortest. Seconds: after the first of them a leader that says nothing is none any more.
_DCS = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3, "maximum_lag_on_failover": 2**30}


class Node:
    """One of the servers, with the Patroni that starts, ends and promotes it."""

    def __init__(self, name: str, cluster: Patroni) -> None:
        self.port = free_port()
        self._name = name
        self._cluster = cluster
        self._folder = cluster.folder / name
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, as what Patroni has it be."""
        self._folder.mkdir(exist_ok=True)
        (self._folder / "config.json").write_text(json.dumps(self._config()))  # which is YAML
        self._process = self._cluster.run(
            [program("patroni"), str(self._folder / "config.json")], self._folder / "log"
        )

    def kill(self) -> None:
        """As when its machine ends."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self._folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def execute(self, sql: str) -> list[Any] | None:
        """Rows, or None while nobody answers."""

        async def run() -> list[Any]:
            connection = await asyncpg.connect(self.url("postgres"))
            try:
                return list(await connection.fetch(sql))
            finally:
                await connection.close()

        try:
            return run_apart(run)
        except (OSError, asyncpg.PostgresError):
            return None

    def url(self, database: str) -> str:
        """A database's URL, on this server alone."""
        return f"postgresql://{self._cluster.superuser}@127.0.0.1:{self.port}/{database}"

    def leads(self) -> bool:
        """Whether it takes writes."""
        return bool(self.execute("SELECT 1 WHERE NOT pg_is_in_recovery()"))

    def is_followed(self) -> bool:
        """Whether the other one has what it writes."""
        streams = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"
        return bool(self.execute(f"{streams} AND application_name <> 'pg_basebackup'"))

    def log(self) -> str:
        """The end of what its Patroni said."""
        return (self._folder / "log").read_text(errors="replace")[-3000:]

    def _config(self) -> dict[str, Any]:
        api = f"127.0.0.1:{free_port()}"
        here = f"127.0.0.1:{self.port}"
        hba = [f"host {what} all 127.0.0.1/32 trust" for what in ("all", "replication")]
        return {
            "scope": "forebay",
            "name": self._name,
            "restapi": {"listen": api, "connect_address": api},
            "etcd3": {"hosts": [f"127.0.0.1:{self._cluster.etcd_port}"]},
            "bootstrap": {"dcs": _DCS, "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "no-sync"]},
            "postgresql": {
                "listen": here,
                "connect_address": here,
                "data_dir": str(self._folder / "data"),
                "bin_dir": str(self._cluster.binaries),
                "authentication": {
                    "superuser": {"username": self._cluster.superuser},
                    "replication": {"username": "replicator"},
                },
                "pg_hba": hba,
                "parameters": {"unix_socket_directories": str(self._folder), "max_connections": 50},
                "basebackup": [{"checkpoint": "fast"}],
                "remove_data_directory_on_diverged_timelines": True,
                "remove_data_directory_on_rewind_failure": True,
            },
        }


class Patroni:
    """Two nodes. A context manager. Skips the test where there is no Patroni, or no etcd."""

    def __init__(self) -> None:
        self._etcd = program("etcd")
        program("patroni")
        self.superuser = f"forebay_{secrets.token_hex(8)}"  # trusted without a password, so not to be guessed
        self.etcd_port = free_port()
        with PostgresServer(own=True) as server:  # whose account and binaries are known to work here
            assert server._binaries is not None
            self.binaries, self._account = server._binaries, server._account
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-patroni-", dir="/tmp" if self._account else None))
        self.nodes = [Node(name, self) for name in ("one", "two")]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._give_away()
        here, peers = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{free_port()}"
        places = ["--listen-client-urls", here, "--advertise-client-urls", here]
        places += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
        places += ["--initial-cluster", f"default={peers}", "--data-dir", str(self.folder / "etcd")]
        try:
            self.run([self._etcd, *places], self.folder / "etcd-log")
            self.until(self._etcd_answers)
            self.nodes[0].start()
            self.until(self.nodes[0].leads)
            self.nodes[1].start()
            self.until(self.nodes[0].is_followed)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            if node._process is not None:
                node.kill()
        for process in self._processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def leader(self) -> Node:
        """The node that takes writes, when there is one."""
        self.until(lambda: any(node.leads() for node in self.nodes))
        return next(node for node in self.nodes if node.leads())

    def create_database(self) -> str:
        """A new database; its name."""
        self.leader.execute("CREATE DATABASE chat TEMPLATE template0")
        return "chat"

    def url(self, database: str) -> str:
        """A database's URL with both servers in it."""
        places = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://{self.superuser}@{places}/{database}"

    def run(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program as whoever may run a server."""
        self._give_away()
        options: dict[str, Any] = {}
        if self._account is not None:
            options = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                **options,
            )
        self._processes.append(process)
        return process

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "\n".join(node.log() for node in self.nodes if node._process)
            time.sleep(0.1)

    def _etcd_answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.etcd_port), timeout=1).close()
        except OSError:
            return False
        return True

    def _give_away(self) -> None:
        if self._account is not None:
            for path in (self.folder, *self.folder.glob("*"), *self.folder.glob("*/config.json")):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
