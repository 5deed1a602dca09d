"""A real Prometheus server that scrapes what it is told to, and answers queries."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.support.chainlit_server import free_port
from tests.support.patience import PATIENCE
from tests.support.programs import program

_CONFIG = """
global:
  scrape_interval: 200ms
  scrape_timeout: 200ms
scrape_configs:
"""
_JOB = """
  - job_name: {name}
    static_configs:
      - targets: ["{target}"]
"""


class PrometheusServer:
    """Scrapes `targets` (job name to host:port), five times a second; a context manager.

    Skips the test where there is no Prometheus.
    """

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        config = folder / "prometheus.yml"
        config.write_text(
            _CONFIG + "".join(_JOB.format(name=name, target=target) for name, target in targets.items())
        )
        self._log_path = folder / "prometheus.log"
        self._command = [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, f"it ended at once:\n{self._log_path.read_text()}"
            assert time.monotonic() < deadline, f"it does not answer:\n{self._log_path.read_text()}"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=PATIENCE) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """An expression's value now: each series' labels and number."""
        found = self.api("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def api(self, name: str, **parameters: str) -> Any:
        """The data of one of the server's API calls."""
        url = f"{self.url}/api/v1/{name}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]
