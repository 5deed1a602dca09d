"""What GitHub reads in .github: it follows the schemas, and leads to the addresses of `[project.urls]`."""

from __future__ import annotations

import re
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.deploy import files

_GITHUB = files.ROOT / ".github"
_WORKFLOWS = sorted((_GITHUB / "workflows").glob("*.yml"))
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


def test_the_workflows_follow_their_schema() -> None:
    _check("github-workflows", *_WORKFLOWS)


def test_zizmor_finds_nothing() -> None:
    if shutil.which("zizmor", path=sysconfig.get_path("scripts")) is None:
        pytest.skip("zizmor is missing: pip install -r requirements-dev.txt")
    done = files.run("zizmor", "--offline", "--quiet", _GITHUB)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", _WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit(path: Path) -> None:
    used = re.findall(r"^\s*-? ?uses: (.+)$", path.read_text(), re.MULTILINE)
    assert used
    for action in used:
        assert action.startswith("./") or re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action), action


@pytest.mark.parametrize("path", _WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_makes_and_tests_is_there(path: Path) -> None:
    targets = set(re.findall(r"^([\w$()/.]+):", (files.ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in re.findall(r"- run: (.+)$", path.read_text(), re.MULTILINE):
        for target in re.findall(r"^make PYTHON=python (\S+)", words):
            assert target.replace(".venv", "$(VENV)") in targets, words
        for folder in re.findall(r"\btests/[\w/.]+", words):
            assert (files.ROOT / folder).exists(), words


def test_the_workflows_try_every_supported_python() -> None:
    matrix = files.document(_GITHUB / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]
    named = {name.rsplit(" ", 1)[1] for name in files.project()["classifiers"] if "Python ::" in name}
    assert set(matrix["python"]) == {name for name in named if name != "Python"}
