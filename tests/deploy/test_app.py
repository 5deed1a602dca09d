"""The example app on the real Chainlit server, with the image's environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.deploy import files
from tests.support.chainlit_server import ChainlitServer, free_port
from tests.support.patience import PATIENCE

_LOGIN = {"CHAT_USER": "ada", "CHAT_PASSWORD": "lovelace"}


def _image_environment(folder: Path) -> dict[str, str]:
    """The variables of the Dockerfile, with a folder of the test for each of its own."""
    found = files.image_environment()
    del found["PATH"]
    return {
        **found,
        "CHAINLIT_APP_ROOT": str(folder),
        "FOREBAY_JOURNAL_DIR": str(folder / "journals"),
        "FOREBAY_STORAGE_DIR": str(folder / "files"),
        "FOREBAY_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
    }


def _log_in(server: ChainlitServer, name: str, password: str) -> int:
    form = urllib.parse.urlencode({"username": name, "password": password}).encode()
    try:
        with urllib.request.urlopen(f"{server.url}/login", form, timeout=PATIENCE) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("database", ["there", "away"])
def test_the_app_starts_answers_its_probe_and_ends(
    database: str, tmp_path: Path, migrated_postgres_url: str
) -> None:
    url = (
        migrated_postgres_url if database == "there" else f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    )
    environment = {**_image_environment(tmp_path), **_LOGIN, "FOREBAY_DATABASE_URL": url}
    # The readiness probe's path: it must answer though the database is away.
    with ChainlitServer(files.DEPLOY / "app" / "app.py", tmp_path, environment, path="/health") as server:
        assert _log_in(server, "ada", "lovelace") == 200
        assert _log_in(server, "ada", "wrong") == 401
        assert server.stop() == 0, server.log


def test_the_probes_answer_before_anybody_comes(tmp_path: Path, migrated_postgres_url: str) -> None:
    environment = {**_image_environment(tmp_path), **_LOGIN, "FOREBAY_DATABASE_URL": migrated_postgres_url}
    with ChainlitServer(files.DEPLOY / "app" / "app.py", tmp_path, environment, path="/health"):
        for path in ("/healthz", "/readyz", "/metrics"):
            _wait_for(f"http://{environment['FOREBAY_METRICS_ADDRESS']}{path}")


@pytest.mark.parametrize("name", ["FOREBAY_DATABASE_URL", "CHAINLIT_AUTH_SECRET", "CHAT_PASSWORD"])
def test_it_does_not_start_on_a_secret_that_nobody_has_chosen(name: str, tmp_path: Path) -> None:
    chosen = {"FOREBAY_DATABASE_URL": "sqlite:///chat.db", "CHAINLIT_AUTH_SECRET": "a-secret", **_LOGIN}
    environment = {**os.environ, **_image_environment(tmp_path), **chosen, name: ""}
    app, port = files.DEPLOY / "app" / "app.py", str(free_port())
    command = [sys.executable, "-m", "chainlit", "run", str(app), "--headless", "--port", port]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode != 0
    assert f"not set: {name}" in done.stderr


def test_no_example_holds_a_secret() -> None:
    for path in (files.DEPLOY / "systemd" / "secrets.env.example", files.DEPLOY / "example.env"):
        values = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
        assert {name for name, value in values.items() if value} <= {"CHAT_USER"}


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(url, timeout=PATIENCE).close()
        except OSError:
            assert time.monotonic() < deadline, url
            time.sleep(0.05)
        else:
            return
