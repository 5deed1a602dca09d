"""`forebay config` and `forebay status`: what they teach, show, and how they fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from chainlit.element import Text
from click.testing import CliRunner, Result

from forebay import LocalStorageClient, Settings
from forebay.cli import main
from forebay.settings import variable_of
from tests.integration.conftest import MakeLayer
from tests.integration.contract import UNREACHABLE, a_step, a_thread, new_id, until
from tests.support.chainlit_server import free_port
from tests.support.patience import patience


def _run(*arguments: str, **environment: str | None) -> Result:
    # Wide enough that no cell is folded.
    return CliRunner(env={"COLUMNS": "200", **environment}).invoke(main, arguments)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHAINLIT_ENV_FILE", ".env")  # which elsewhere in the tests is nowhere


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `.env`; what it brings into the environment is gone afterwards."""
    for name in ("DATABASE_URL", "FOREBAY_LINGER", "FOREBAY_POOL_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return tmp_path / ".env"


# ---- config


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("config", ("--json", "Exit codes", "Examples", ".env", "secrets are hidden")),
        ("status", ("--watch", "--interval", "--json", "Exit codes", "FOREBAY_METRICS_ADDRESS", "Examples")),
    ],
)
def test_help_teaches(command: str, words: tuple[str, ...]) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert [word for word in words if word not in said] == []


def test_the_config_names_each_setting_and_where_it_comes_from(env_file: Path) -> None:
    env_file.write_text("FOREBAY_LINGER=0.5\nFOREBAY_POOL_SIZE=7\n")
    result = _run("config", "--json", FOREBAY_POOL_SIZE="9")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert {setting["variable"] for setting in found.values()} == {
        variable_of(name) for name in Settings.model_fields
    }
    assert (found["pool_size"]["value"], found["pool_size"]["source"]) == (9, "FOREBAY_POOL_SIZE")
    assert found["linger"]["value"] == 0.5
    assert found["linger"]["source"] == f"FOREBAY_LINGER in {env_file}"
    assert (found["batch_max_rows"]["value"], found["batch_max_rows"]["source"]) == (1000, "default")


@pytest.mark.parametrize("command", [("migrate", "--dry-run"), ("blobs", "orphans"), ("drain", "journals")])
def test_each_command_reads_the_env_file(env_file: Path, command: tuple[str, ...]) -> None:
    (env_file.parent / "journals").mkdir()
    env_file.write_text("DATABASE_URL=nonsense://nowhere\n")
    result = _run(*command)
    assert "nonsense is not supported" in result.output


def test_the_config_hides_the_standbys_password(env_file: Path) -> None:
    result = _run("config", FOREBAY_READ_URL="postgresql://me:hunter2@standby/chat")
    assert "postgresql://me:***@standby/chat" in result.output


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/db",
        "postgresql://me:p@host/db?password=hunter2",
        "hunter2",
    ],
)
def test_the_config_hides_passwords(url: str, as_json: bool) -> None:
    result = _run("config", *(["--json"] if as_json else []), DATABASE_URL=url)
    assert result.exit_code == 0
    assert "DATABASE_URL" in result.output
    assert "***" in result.output
    assert "hunter2" not in result.output


def test_a_wrong_setting_is_one_clear_line() -> None:
    result = _run("config", FOREBAY_POOL_SIZE="hunter2")
    assert result.exit_code == 1
    assert "FOREBAY_POOL_SIZE" in result.output
    assert "hunter2" not in result.output


# ---- status


async def test_the_status_of_a_process_that_keeps_up(make_layer: MakeLayer, emptied_url: str) -> None:
    layer = make_layer(emptied_url, settings=Settings(metrics_address="127.0.0.1:0"))
    await a_thread(layer)
    await layer.flush()
    await until(lambda: layer.metrics_url is not None)
    address = str(layer.metrics_url).removeprefix("http://")
    result = await asyncio.to_thread(_run, "status", address)
    assert result.exit_code == 0, result.output
    for word in ("ready", "written", "0% of 64 MiB", "none", "write latency", "≤"):
        assert word in result.output
    by_variable = await asyncio.to_thread(lambda: _run("status", "--json", FOREBAY_METRICS_ADDRESS=address))
    assert by_variable.exit_code == 0, by_variable.output
    found = json.loads(by_variable.output)[address]
    assert (found["ready"], found["rows_written_total"], found["dropped"]) == (True, 1, {})


async def test_a_process_that_is_not_ready_or_not_there_has_an_exit_code_of_its_own(
    make_layer: MakeLayer,
) -> None:
    settings = Settings(metrics_address="127.0.0.1:0", ready_grace=0, durability="memory", close_timeout=0.1)
    layer = make_layer(UNREACHABLE, settings=settings)
    await layer.create_step(a_step(new_id()))
    await until(lambda: layer._engine.health.reason() is not None)
    await until(lambda: layer.metrics_url is not None and layer._engine.counts.retries.total() > 0)
    address = str(layer.metrics_url).removeprefix("http://")
    result = await asyncio.to_thread(_run, "status", address)
    assert result.exit_code == 3
    assert "not ready" in result.output
    assert "TransientError" in result.output
    nowhere = f"127.0.0.1:{free_port()}"
    both = await asyncio.to_thread(_run, "status", address, nowhere)
    assert both.exit_code == 1
    assert f"{nowhere} can't be reached" in both.output
    as_json = await asyncio.to_thread(_run, "status", "--json", nowhere)
    assert "can't be reached" in json.loads(as_json.output)[nowhere]["error"]


async def test_another_servers_page_is_told_from_metrics() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        result = await asyncio.to_thread(_run, "status", address)
    assert result.exit_code == 1
    assert "text/html" in result.output


@pytest.mark.parametrize("address", ["9464", "::1:9464", "off"])
def test_a_wrong_address_is_wrong_usage(address: str) -> None:
    assert _run("status", address).exit_code == 2


def test_where_the_metrics_are_off_an_address_is_asked_for() -> None:
    result = _run("status", FOREBAY_METRICS_ADDRESS="off")
    assert result.exit_code == 1
    assert "name a process's address" in result.output


async def test_watching_goes_on_until_interrupted(make_layer: MakeLayer, migrated_sqlite_url: str) -> None:
    layer = make_layer(migrated_sqlite_url, settings=Settings(metrics_address="127.0.0.1:0"))
    await layer.start()
    await until(lambda: layer.metrics_url is not None)
    address = str(layer.metrics_url).removeprefix("http://")
    watching = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "forebay.cli", "status", "--watch", "--interval", "0.1", address),
        env={**os.environ, "COLUMNS": "120", "TTY_COMPATIBLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watching.stdout is not None
    await a_thread(layer)
    try:
        async with patience():
            said = b""
            while b"/s, 1 in all" not in said:
                said += await watching.stdout.read(1000) or pytest.fail(said.decode())
        watching.send_signal(signal.SIGINT)
        async with patience():
            _, errors = await watching.communicate()
    finally:
        if watching.returncode is None:
            watching.kill()
    assert (watching.returncode, errors) == (0, b"")


async def test_the_address_that_the_log_names_is_taken_and_not_ready_has_its_reason(
    make_layer: MakeLayer,
) -> None:
    settings = Settings(metrics_address="127.0.0.1:0", ready_grace=0, durability="memory", close_timeout=0.1)
    layer = make_layer(UNREACHABLE, settings=settings)
    await layer.create_step(a_step(new_id()))
    await until(lambda: layer._engine.health.reason() is not None and layer.metrics_url is not None)
    for url in (str(layer.metrics_url), f"{layer.metrics_url}/"):
        result = await asyncio.to_thread(_run, "status", url)
        assert result.exit_code == 3
        assert "not ready: the database can't be reached: nobody listens" in result.output
        assert "postgresql" not in result.output, "where it is, is not for who asks a probe"
    found = json.loads((await asyncio.to_thread(_run, "status", "--json", str(layer.metrics_url))).output)
    assert "nobody listens" in found[str(layer.metrics_url)]["reason"]


_APPS = {
    "forebay": """
import chainlit as cl
from forebay import ForebayDataLayer, Settings

@cl.data_layer
def layer():
    settings = Settings(journal_dir={journals!r}, metrics_address="127.0.0.1:1", storage_dir={contents!r})
    return ForebayDataLayer({url!r}, settings=settings)
""",
    "chainlit": """
import chainlit as cl
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer
from forebay import LocalStorageClient

@cl.data_layer
def layer():
    return SQLAlchemyDataLayer({url!r}, storage_provider=LocalStorageClient({contents!r}))
""",
}


class _App:
    """A Chainlit app of the kind in a folder, and the commands that are told of it alone."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder / 'chat.db'}"
        journals = folder / "journals"
        journals.mkdir()
        driver = "sqlite+aiosqlite" if kind == "chainlit" else "sqlite"
        self._file = folder / "app.py"
        given = self.url.replace("sqlite", driver, 1)
        contents = str(folder / "contents")
        self._file.write_text(_APPS[kind].format(url=given, journals=str(journals), contents=contents))
        # Settings that the app's code gives are not in the environment; Chainlit's layer has none to give.
        settings = {"FOREBAY_JOURNAL_DIR": str(journals), "FOREBAY_METRICS_ADDRESS": "127.0.0.1:1"}
        kept = {key: value for key, value in os.environ.items() if "DATABASE_URL" not in key}
        self._environment = {**kept, "COLUMNS": "300", **(settings if kind == "chainlit" else {})}

    def forebay(self, *arguments: str) -> str:
        """What it says, in a process of its own: loading an app changes Chainlit's configuration for good."""
        done = subprocess.run(
            [sys.executable, "-m", "forebay", *arguments, "--app", str(self._file)],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self._environment,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr


@pytest.mark.parametrize("kind", _APPS)
def test_each_command_takes_the_url_and_the_settings_from_the_app(kind: str, tmp_path: Path) -> None:
    forebay = _App(kind, tmp_path).forebay
    assert "created the table steps" in forebay("migrate")
    assert "0 changes of 0 journals" in forebay("drain")
    assert "no dead letters" in forebay("dead-letters", "list")
    assert "127.0.0.1:1 can't be reached" in forebay("status")
    assert str(tmp_path / "chat.db") in forebay("config")
    assert ("still on SQLAlchemyDataLayer" in forebay("doctor")) is (kind == "chainlit")


@pytest.mark.parametrize("kind", _APPS)
async def test_chats_are_taken_brought_and_purged_of_the_app(
    kind: str, make_layer: MakeLayer, tmp_path: Path
) -> None:
    """Its database and its storage: nothing else says which they are."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "others").mkdir()
    theirs, others = _App(kind, tmp_path / "theirs"), _App(kind, tmp_path / "others")
    file, files = tmp_path / "chats.jsonl", tmp_path / "files"
    layer = make_layer(
        theirs.url,
        storage_provider=LocalStorageClient(theirs.folder / "contents"),
        settings=Settings(auto_migrate=True, journal_dir=tmp_path / "journals"),
    )
    thread_id = await a_thread(layer)
    await layer.create_step(a_step(thread_id, createdAt="2020-01-01T00:00:00Z"))
    await layer.create_element(Text(thread_id=thread_id, for_id=thread_id, name="n", content="a content"))
    await layer.flush()

    def contents(app: _App) -> list[bytes]:
        found = [path.read_bytes() for path in (app.folder / "contents").rglob("*") if path.is_file()]
        return [content for content in found if content == b"a content"]

    exported = await asyncio.to_thread(theirs.forebay, "export", str(file), "--files", str(files))
    assert "files: 1" in exported
    assert "created the table steps" in await asyncio.to_thread(others.forebay, "migrate")
    brought = await asyncio.to_thread(others.forebay, "import", str(file), "--files", str(files))
    assert "files: 1" in brought
    assert contents(others) == [b"a content"]
    purged = await asyncio.to_thread(others.forebay, "purge", "--older-than", "1h", "--yes")
    assert "1 chats were deleted" in purged
    assert contents(others) == []
    assert contents(theirs) == [b"a content"]
    assert await layer.get_thread(thread_id) is not None
