"""Reading deploy/, and running the programs that check it."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from forebay import ForebayDataLayer
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "forebay.json"
YAML_FILES = sorted(path for path in DEPLOY.rglob("*") if path.suffix in {".yaml", ".yml"})


def name_of(value: object) -> str:
    """A test's id: a file's path in deploy/."""
    return str(value.relative_to(DEPLOY)) if isinstance(value, Path) else str(value)


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def document(path: Path) -> Any:
    """The only document of a YAML file."""
    (only,) = documents(path)
    return only


@functools.cache
def pyproject() -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def project() -> dict[str, Any]:
    """What the package says of itself."""
    found: dict[str, Any] = pyproject()["project"]
    return found


def image_environment() -> dict[str, str]:
    """The variables that the image sets."""
    text = re.search(r"^ENV (.*?)(?<!\\)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL)
    assert text is not None
    return dict(re.findall(r"([A-Z_]+)=(\S+)", text[1]))


def journal_volume(settings: dict[str, str]) -> float:
    """Bytes that a process's journal, and what waits for its upload, may take with these settings."""
    segment = 8 * 2**20
    journal, kept, uploads = (
        int(settings[f"FOREBAY_{name}_BYTES"]) for name in ("JOURNAL_MAX", "JOURNAL_KEEP", "UPLOAD_DISK_MAX")
    )
    return journal * 1.01 + kept + segment + uploads


def alerts() -> list[dict[str, Any]]:
    """The alerting rules."""
    return [rule for group in document(RULES)["groups"] for rule in group["rules"]]


def run(
    *command: str | Path, package: str | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; skip the test when it is missing, which names Debian's `package`.

    Without a package it is one that the development pins install.
    """
    name = str(command[0])
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        assert package is not None, f"{name} is missing: pip install -r requirements-dev.txt"
        pytest.skip(f"{name} is missing: apt-get install {package}")
    words = [found, *map(str, command[1:])]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment
    )


def assert_silent(done: subprocess.CompletedProcess[str]) -> None:
    """A linter that finds nothing says nothing."""
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@functools.cache
def defined_metrics() -> frozenset[str]:
    """Every name that a query can use: the samples of what a data layer has on its registry."""
    names: set[str] = set()
    for metric in ForebayDataLayer("sqlite:///unused.db").registry.collect():
        suffixes = {"counter": ["_total"], "info": ["_info"], "histogram": ["_bucket", "_sum", "_count"]}.get(
            metric.type, [""]
        )
        names.update(metric.name + suffix for suffix in suffixes)
    return frozenset(names)


def metrics_in(text: str) -> set[str]:
    """The names of forebay's metrics in a query."""
    return set(re.findall(r"\bforebay_[a-z_]+\b", text))
