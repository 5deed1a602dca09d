"""The hooks of pre-commit: the file is valid, and every tool that it calls is one that the pins install."""

from __future__ import annotations

import re

import pytest

from tests.deploy import files

_CONFIG = files.ROOT / ".pre-commit-config.yaml"


def test_the_configuration_is_valid() -> None:
    pytest.importorskip("pre_commit", reason="pre-commit is missing: pip install -r requirements-dev.txt")
    done = files.run("pre-commit", "validate-config", _CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_fetched_and_every_tool_is_pinned() -> None:
    development = (files.ROOT / "requirements-dev.in").read_text().split()
    for repository in files.document(_CONFIG)["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert hook["language"] == "system"
            tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
            assert tool in {*development, "python", "lint-imports"}, hook["id"]
            if "-m" in hook["entry"]:
                module = re.search(r"-m ([\w.]+)", hook["entry"])
                assert module
                assert (files.ROOT / (module[1].replace(".", "/") + ".py")).exists()
