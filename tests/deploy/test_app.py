"""The example app on the real Chainlit server, with the image's environment."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.deploy import files
from tests.support.chainlit_server import ChainlitServer, free_port

_LOGIN = {"CHAT_USER": "ada", "CHAT_PASSWORD": "lovelace"}


def _image_environment(folder: Path) -> dict[str, str]:
    """The variables of the Dockerfile, with a folder of the test for each of its own."""
    text = re.search(
        r"^ENV (.*?)(?<!\\)$", (files.DEPLOY / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL
    )
    assert text is not None
    found = dict(re.findall(r"([A-Z_]+)=(\S+)", text[1]))
    del found["PATH"]
    return {
        **found,
        "CHAINLIT_APP_ROOT": str(folder),
        "FOREBAY_JOURNAL_DIR": str(folder / "journals"),
        "FOREBAY_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
    }


def _log_in(server: ChainlitServer, name: str, password: str) -> int:
    form = urllib.parse.urlencode({"username": name, "password": password}).encode()
    try:
        with urllib.request.urlopen(f"{server.url}/login", form, timeout=30) as response:
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


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline, url
            time.sleep(0.05)
        else:
            return
