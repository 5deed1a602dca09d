"""The runbook of the alerts, the README of deploy/, and how the YAML is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forebay.cli import main
from forebay.model import schema
from forebay.settings import Settings, variable_of
from tests.deploy import files

_RUNBOOK = (files.ROOT / "docs" / "operations" / "runbook.md").read_text()
_TEXTS = sorted(files.DEPLOY.rglob("*.md"))
_ALL = sorted(path for path in files.DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
_LINT = """
extends: default
rules:
  document-start: disable
  line-length: {max: 130}
  braces: {max-spaces-inside: 0}
  truthy: {check-keys: false}
  quoted-strings: {required: only-when-needed, extra-allowed: ['[{}:#%]', '^(true|false|off|no)$', '^[0-9.]+$']}
"""


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _anchors(path: Path) -> set[str]:
    return {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)}


def _section(alert: str) -> str:
    found = re.search(rf"^## {alert}\n(.*?)(?=^## |\Z)", _RUNBOOK, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


@pytest.mark.parametrize("alert", [rule["alert"] for rule in files.alerts()])
def test_an_alert_has_its_section(alert: str) -> None:
    section = _section(alert)
    for part in ("**Means**", "**See**", "**Do**"):
        assert section.count(part) == 1, part
    (runbook,) = [rule["annotations"]["runbook"] for rule in files.alerts() if rule["alert"] == alert]
    path, _, anchor = runbook.partition("#")
    assert anchor == _anchor(alert)
    assert (files.ROOT / path).read_text() == _RUNBOOK


def test_the_runbook_has_no_section_that_no_alert_leads_to() -> None:
    sections = re.findall(r"^## (.+)$", _RUNBOOK, re.MULTILINE)
    assert sections == [rule["alert"] for rule in files.alerts()]


@pytest.mark.parametrize("path", ["deploy/postgres/grants.sql", "docs/operations/change-over.md"])
def test_the_chat_servers_role_is_given_every_table(path: str) -> None:
    granted = re.findall(r"^GRANT .+? ON (.+?) TO", (files.ROOT / path).read_text(), re.MULTILINE)
    assert {table for line in granted for table in line.split(", ")} == {
        *schema.metadata.tables,
        "forebay_migrations",
    }


@pytest.mark.parametrize("path", _TEXTS, ids=files.name_of)
def test_the_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", path.read_text())
    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("path", _ALL, ids=files.name_of)
def test_every_command_and_setting_exists(path: Path) -> None:
    text = path.read_text()
    commands = set(re.findall(r"(?:`|bin/|-- |^    |\[)forebay,? ([a-z][a-z-]+)", text, re.MULTILINE))
    assert commands <= set(main.commands)
    settings = set(re.findall(r"\bFOREBAY_[A-Z_]+\b", text)) - {"FOREBAY_PORT", "FOREBAY_SERVICE_HOST"}
    assert settings <= {variable_of(name) for name in Settings.model_fields}


def test_the_runbook_shows_dead_letters_by_their_commands() -> None:
    group = main.commands["dead-letters"]
    named = set(re.findall(r"^    forebay dead-letters (\w+)", _section("ForebayDeadLetters"), re.MULTILINE))
    assert named == set(group.commands)  # type: ignore[attr-defined]


def test_yamllint_finds_nothing() -> None:
    done = files.run("yamllint", "--strict", "--format", "parsable", "-d", _LINT, *files.YAML_FILES)
    files.assert_silent(done)
