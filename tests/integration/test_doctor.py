"""`forebay doctor`: each thing that can be wrong is found, with what to do; that it is done makes the finding go."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from forebay import RowError
from forebay.cli import main
from forebay.doctor.surroundings import check_storage
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.journal import Journal
from forebay.model.changes import step
from forebay.pipeline.queue import Inbox
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts
from forebay.telemetry.listener import Listener
from tests.integration.contract import UNREACHABLE
from tests.support.chainlit_server import free_port
from tests.support.pgbouncer import Pgbouncer
from tests.support.postgres import PostgresServer, name_of
from tests.support.storage import MemoryStorage
from tests.support.tls import authority, secure

_SECRET = "only-for-tests-and-long-enough-for-a-key"


@pytest.fixture(autouse=True)
def journal_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The journals' folder of what is examined, whose working folder is empty."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "journals"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("FOREBAY_JOURNAL_DIR", str(folder))
    monkeypatch.setenv("CHAINLIT_AUTH_SECRET", _SECRET)
    return folder


def _run(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, ("doctor", *arguments))


def _examine(url: str, *arguments: str, **environment: str) -> dict[str, list[dict[str, Any]]]:
    """The findings by their check. The exit code is right for them."""
    result = _run("--json", "--database-url", url, *arguments, **environment)
    findings = json.loads(result.output)
    levels = {finding["level"] for finding in findings}
    expected = 1 if "error" in levels else 3 if "warning" in levels else 0
    assert result.exit_code == expected
    for finding in findings:
        assert finding["remedy"] or finding["level"] in ("ok", "note")
    return {
        check: [finding for finding in findings if finding["check"] == check]
        for check in {finding["check"] for finding in findings}
    }


def _levels(findings: dict[str, list[dict[str, Any]]], *checks: str) -> list[str]:
    return [finding["level"] for check in checks for finding in findings[check]]


def test_help_teaches() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    words = ("--database-url", "--app", "--replicas", "--json", "Exit codes: 0", "Examples", "pooler")
    assert [word for word in words if word not in said] == []


# ---- the database


def test_a_postgres_that_is_as_it_should_be(migrated_postgres_url: str) -> None:
    found = _examine(migrated_postgres_url)
    checks = ("settings", "database", "tls", "clock", "connections", "schema", "indexes", "pooler")
    assert _levels(found, *checks) == ["ok"] * len(checks)
    assert "PostgreSQL" in found["database"][0]["found"]


def test_a_sqlite_file_that_is_as_it_should_be(migrated_sqlite_url: str) -> None:
    assert _levels(_examine(migrated_sqlite_url), "database", "schema", "indexes") == ["ok"] * 3


def test_it_is_said_for_people_too(migrated_sqlite_url: str) -> None:
    result = _run("--database-url", migrated_sqlite_url, CHAINLIT_AUTH_SECRET="")
    assert result.exit_code == 3
    assert "✓ schema" in result.output
    assert "! login secret" in result.output
    assert "→ chainlit create-secret" in result.output


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "FOREBAY_DATABASE_URL is not set"),
        ("nonsense", "is not a URL"),
        (UNREACHABLE, "can't be reached"),
        ("sqlite:////nowhere/at/all/chat.db", "/nowhere/at/all is not there"),
    ],
)
def test_a_database_that_is_not_there_is_an_error(url: str, words: str) -> None:
    (finding,) = _examine(url)["database"]
    assert finding["level"] == "error"
    assert words in finding["found"]


def test_no_password_is_shown() -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/chat"
    for arguments in (("--json",), ()):
        result = _run("--database-url", url, *arguments)
        assert "postgresql://me:***@127.0.0.1:1/chat" in result.output
        assert "hunter2" not in result.output


def test_a_database_that_does_not_exist_is_an_error(postgres_server: PostgresServer) -> None:
    (finding,) = _examine(postgres_server.url("no_such_database"))["database"]
    assert "no such database" in finding["found"]


def test_a_sqlite_file_is_not_made_by_looking(tmp_path: Path) -> None:
    assert _levels(_examine(f"sqlite:///{tmp_path / 'chat.db'}"), "database") == ["note"]
    assert [path.name for path in tmp_path.iterdir()] == ["journals"]
    assert _levels(_examine("sqlite://"), "database") == ["warning"]


def test_tables_that_are_not_forebays_are_an_error_until_they_are_migrated(postgres_url: str) -> None:
    (finding,) = _examine(postgres_url)["schema"]
    assert (finding["level"], finding["remedy"]) == ("error", "forebay migrate")
    assert CliRunner().invoke(main, ("migrate", "--database-url", postgres_url)).exit_code == 0
    assert _levels(_examine(postgres_url), "schema", "indexes") == ["ok", "ok"]


def test_an_index_that_was_dropped_is_missed_until_the_remedy_is_run(
    postgres_server: PostgresServer, migrated_postgres_url: str
) -> None:
    database = name_of(migrated_postgres_url)
    (row,) = postgres_server.execute(
        "SELECT indexname FROM pg_indexes WHERE tablename = 'threads' AND indexname LIKE 'forebay%' LIMIT 1",
        database,
    )
    postgres_server.execute(f"DROP INDEX {row['indexname']}", database)
    (finding,) = _examine(migrated_postgres_url)["indexes"]
    assert finding["level"] == "warning"
    assert f"CREATE INDEX CONCURRENTLY {row['indexname']}" in finding["remedy"]
    postgres_server.execute(finding["remedy"], database)
    assert _levels(_examine(migrated_postgres_url), "indexes") == ["ok"]


def test_more_connections_than_there_are_is_an_error(migrated_postgres_url: str) -> None:
    (finding,) = _examine(migrated_postgres_url, "--replicas", "100")["connections"]
    assert finding["level"] == "error"
    assert "500 wanted" in finding["found"]


@pytest.mark.parametrize(
    ("mode", "query", "level", "words"),
    [
        ("session", "", "ok", "session mode"),
        ("transaction", "", "error", "transaction mode"),
        ("transaction", "?statement_cache_size=0", "ok", "transaction mode"),
    ],
    ids=["session", "transaction", "mended"],
)
def test_a_pooler_is_noticed_with_its_mode(
    migrated_postgres_url: str, mode: str, query: str, level: str, words: str
) -> None:
    with Pgbouncer(migrated_postgres_url, mode, pool_size=6) as pooler:
        (finding,) = (found := _examine(pooler.url + query))["pooler"]
    assert (finding["level"], words in finding["found"]) == (level, True)
    assert "statement_cache_size=0" in str(finding) or mode == "session"
    assert _levels(found, "database", "schema", "indexes") == ["ok"] * 3


def test_an_encrypted_connection_is_noticed(own_postgres_server: PostgresServer, tmp_path: Path) -> None:
    trusted, path = authority(tmp_path)
    secure(own_postgres_server, trusted.issue_cert("127.0.0.1"))
    url = f"{own_postgres_server.create_database()}?sslmode=verify-full&sslrootcert={path}"
    assert "is encrypted" in _examine(url)["tls"][0]["found"]


# ---- the disk


async def _leave_a_journal(folder: Path) -> Path:
    journal = Journal(folder, asyncio.get_running_loop())
    await journal.append(1, step({"id": "a", "threadId": "t"}))
    await journal.close(remove=False)
    return journal.path


def test_what_was_left_in_the_journals_folder_is_found(migrated_sqlite_url: str, journal_dir: Path) -> None:
    assert _levels(_examine(migrated_sqlite_url), "journals", "dead letters") == ["ok", "ok"]
    left = asyncio.run(_leave_a_journal(journal_dir))
    DeadLetters(journal_dir).keep("sqlite:///x", step({"id": "a", "threadId": "t"}), RowError("no"))
    found = _examine(migrated_sqlite_url)
    assert _levels(found, "journals", "dead letters") == ["warning", "warning"]
    assert f"forebay drain {journal_dir}" in found["journals"][0]["remedy"]
    left.rename(left.with_suffix(".damaged"))
    (_, damaged) = _examine(migrated_sqlite_url)["journals"]
    assert left.stem in damaged["found"]


def test_a_journal_in_use_is_not_left_behind(migrated_sqlite_url: str, journal_dir: Path) -> None:
    async def examine() -> dict[str, list[dict[str, Any]]]:
        journal = Journal(journal_dir, asyncio.get_running_loop())
        try:
            return await asyncio.to_thread(_examine, migrated_sqlite_url)
        finally:
            await journal.close(remove=True)

    (finding,) = asyncio.run(examine())["journals"]
    assert (finding["level"], finding["found"]) == ("ok", "1 in use, none left behind")


def test_a_journal_that_nobody_writes_out_is_an_error(migrated_sqlite_url: str, journal_dir: Path) -> None:
    async def examine() -> dict[str, list[dict[str, Any]]]:
        journal = Journal(journal_dir, asyncio.get_running_loop(), external=True)
        try:
            return await asyncio.to_thread(_examine, migrated_sqlite_url)
        finally:
            await journal.close(remove=True)

    (finding,) = asyncio.run(examine())["journals"]
    assert (finding["level"], finding["remedy"]) == ("error", f"forebay drain {journal_dir} --watch")


def test_a_folder_that_cannot_be_one_is_an_error(migrated_sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = _examine(migrated_sqlite_url, FOREBAY_JOURNAL_DIR=str(tmp_path / "file" / "journals"))
    assert "error" in _levels(found, "journal folder")


def test_a_folder_that_others_may_read_is_a_warning(migrated_sqlite_url: str, journal_dir: Path) -> None:
    journal_dir.chmod(0o755)
    remedies = [finding["remedy"] for finding in _examine(migrated_sqlite_url)["journal folder"]]
    assert f"chmod 700 {journal_dir}" in remedies


def test_too_little_room_is_a_warning(migrated_sqlite_url: str) -> None:
    found = _examine(migrated_sqlite_url, FOREBAY_JOURNAL_MAX_BYTES=str(2**60))
    assert _levels(found, "journal space") == ["warning"]
    assert list(Path(os.environ["FOREBAY_JOURNAL_DIR"]).iterdir()) == [], "nothing that it wrote stays"


# ---- what is around


@pytest.mark.parametrize(("secret", "level"), [("", "warning"), ("short", "warning"), (_SECRET, "ok")])
def test_the_secret_of_logins(migrated_sqlite_url: str, secret: str, level: str) -> None:
    found = _examine(migrated_sqlite_url, CHAINLIT_AUTH_SECRET=secret)
    assert _levels(found, "login secret") == [level]


def test_wrong_settings_are_the_only_finding() -> None:
    result = _run("--json", FOREBAY_LINGER="hunter2")
    (finding,) = json.loads(result.output)
    assert (result.exit_code, finding["check"], finding["level"]) == (1, "settings", "error")
    assert "FOREBAY_LINGER" in finding["found"]
    assert "hunter2" not in result.output


async def test_what_answers_at_the_metrics_address_is_looked_at(migrated_sqlite_url: str) -> None:
    async def examine(address: str) -> dict[str, Any]:
        found = await asyncio.to_thread(
            lambda: _examine(migrated_sqlite_url, FOREBAY_METRICS_ADDRESS=address)
        )
        (finding,) = found["metrics"]
        return finding

    metrics = Metrics()
    async with Listener("127.0.0.1:0", metrics.registry, lambda: None) as listener:
        address = str(listener.url).removeprefix("http://")
        assert "no metrics of forebay's" in (await examine(address))["found"]
        counts = Counts()
        inbox = Inbox(max_bytes=1, batch_max_rows=1, batch_max_bytes=1, linger=0, counts=counts)
        ready = True
        metrics.observe(counts, inbox, lambda: ready, lambda: 0.0)
        assert "answers text/plain" in (await examine(address))["found"]
        ready = False
        assert "/readyz says why" in (await examine(address))["remedy"]
    nobody = await examine(f"127.0.0.1:{free_port()}")
    assert (nobody["level"], "nobody answers" in nobody["found"]) == ("note", True)
    assert (await examine("off"))["level"] == "note"


async def test_the_page_of_the_chat_is_told_from_metrics(migrated_sqlite_url: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        found = await asyncio.to_thread(
            lambda: _examine(migrated_sqlite_url, FOREBAY_METRICS_ADDRESS=address)
        )
    (finding,) = found["metrics"]
    assert (finding["level"], "text/html" in finding["found"]) == ("error", True)


async def test_storage_is_tried_and_nothing_stays() -> None:
    storage = MemoryStorage()
    (finding,) = [found async for found in check_storage(storage)]
    assert (finding.level, finding.found) == ("ok", "MemoryStorage stores, signs and deletes")
    assert storage.files == {}
    storage.failing.add("upload_file")
    (finding,) = [found async for found in check_storage(storage)]
    assert (finding.level, "can't store" in finding.found) == ("error", True)
    assert "secret" not in str(finding)


def test_the_configured_storage_is_tried(migrated_sqlite_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    (finding,) = _examine(migrated_sqlite_url, FOREBAY_STORAGE_DIR=str(folder))["storage"]
    assert (finding["level"], "is not there yet" in finding["found"]) == ("note", True)
    folder.mkdir()
    (finding,) = _examine(migrated_sqlite_url, FOREBAY_STORAGE_DIR=str(folder))["storage"]
    assert finding["found"] == "LocalStorageClient stores, signs and deletes"
    # The key that signs the folder's URLs is the folder's own, and is made once.
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["signing-key"]
    (finding,) = _examine(migrated_sqlite_url, FOREBAY_STORAGE="none")["storage"]
    assert (finding["level"], "not kept" in finding["found"]) == ("note", True)
    result = _run("--json", APP_GCS_PROJECT_ID="p", BUCKET_NAME="")
    assert "BUCKET_NAME" in json.loads(result.output)[0]["found"]


def test_looking_leaves_nothing_behind(migrated_sqlite_url: str, tmp_path: Path) -> None:
    # A process of its own, in which Chainlit is not imported yet.
    before = {*tmp_path.rglob("*")}
    subprocess.run(
        [sys.executable, "-m", "forebay.cli", "doctor", "--database-url", migrated_sqlite_url],
        env={**os.environ, "CHAINLIT_APP_ROOT": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    made = {path.name for path in {*tmp_path.rglob("*")} - before}
    assert made <= {"migrated.db-wal", "migrated.db-shm"}


_APP = """
import chainlit as cl
from forebay import ForebayDataLayer
from tests.support.storage import MemoryStorage
from tests.support.tls import authority, secure

@cl.data_layer
def data_layer():
    return {makes}
"""


@pytest.mark.parametrize(
    ("makes", "code", "words"),
    [
        ("ForebayDataLayer({url!r}, storage_provider=MemoryStorage())", None, "MemoryStorage stores"),
        ("object()", 1, "makes a object, not a ForebayDataLayer"),
        ("nonsense", 1, "can't be loaded (NameError"),
    ],
    ids=["forebay", "another", "broken"],
)
def test_an_apps_own_layer_is_checked(
    migrated_sqlite_url: str, tmp_path: Path, makes: str, code: int | None, words: str
) -> None:
    app = tmp_path / "app.py"
    app.write_text(_APP.format(makes=makes.format(url=migrated_sqlite_url)))
    # A process of its own: loading an app changes Chainlit's configuration for good.
    done = subprocess.run(
        [sys.executable, "-m", "forebay.cli", "doctor", "--app", str(app)],
        env={
            **os.environ,
            "CHAINLIT_APP_ROOT": str(tmp_path),
            "PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert code is None or done.returncode == code
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# ---- another layer


def test_the_official_layers_tables_are_named_with_what_brings_their_chats(
    postgres_server: PostgresServer, migrated_postgres_url: str
) -> None:
    assert "official layer" not in _examine(migrated_postgres_url)
    for table in ("Thread", "Step"):
        postgres_server.execute(f'CREATE TABLE "{table}" (id text)', name_of(migrated_postgres_url))
    (found,) = _examine(migrated_postgres_url)["official layer"]
    assert (found["level"], "forebay import" in found["remedy"]) == ("note", True)


def test_an_app_that_forgets_its_layer_is_told_which_one_it_runs_on(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text("import chainlit as cl\n")
    said = [
        subprocess.run(
            [sys.executable, "-m", "forebay", "doctor", "--app", str(app)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        ).stderr
        for environment in ({"DATABASE_URL": "postgresql://x@127.0.0.1:1/y"}, {})
    ]
    assert ["makes no data layer" in one for one in said] == [True, True]
    assert ["official layer" in one for one in said] == [True, False]
