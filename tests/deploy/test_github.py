"""What GitHub reads in .github: it follows the schemas, and leads to the addresses of `[project.urls]`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy import files

_GITHUB = files.ROOT / ".github"
_FORMS = sorted(set((_GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {_GITHUB / "ISSUE_TEMPLATE" / "config.yml"})


def _check(schema: str, *paths: Path) -> None:
    done = files.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *paths)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dependabot_and_the_forms_follow_their_schemas() -> None:
    _check("dependabot", _GITHUB / "dependabot.yml")
    _check("github-issue-config", _GITHUB / "ISSUE_TEMPLATE" / "config.yml")
    assert _FORMS
    _check("github-issue-forms", *_FORMS)


def test_yamllint_finds_nothing() -> None:
    rules = "{extends: relaxed, rules: {line-length: disable}}"
    files.assert_silent(files.run("yamllint", "--strict", "-d", rules, _GITHUB))


def test_what_dependabot_looks_at_is_there() -> None:
    for update in files.document(_GITHUB / "dependabot.yml")["updates"]:
        assert (files.ROOT / update["directory"].lstrip("/")).is_dir()


@pytest.mark.parametrize("path", sorted(path for path in _GITHUB.rglob("*") if path.is_file()), ids=str)
def test_addresses_are_those_of_the_package(path: Path) -> None:
    repository = files.project()["urls"]["Repository"]
    for address in re.findall(r"https://github\.com/\S+", path.read_text()):
        assert address.startswith(repository + "/"), address
