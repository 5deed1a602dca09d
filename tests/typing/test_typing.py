"""What type checkers know of the package that is installed: all that is public, as strictly as they can be asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import forebay

_CONSUMER = Path(__file__).with_name("consumer.py")
# Each checker has ignores of its own, and says which of them nothing needs.
_PYRIGHT = {
    "typeCheckingMode": "strict",
    "enableTypeIgnoreComments": False,
    "reportUnnecessaryTypeIgnoreComment": "error",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an application in it, and nothing of this repository."""
    shutil.copy(_CONSUMER, tmp_path / "consumer.py")
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(_PYRIGHT))
    return tmp_path


def _run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip(module, reason=f"{module} is missing: pip install -r requirements-dev.txt")
    # pyright asks the first Python of the PATH what is installed.
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    }
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_an_application_on_it_is_checked_strictly(project: Path, checker: str) -> None:
    done = _run(project, checker, "consumer.py")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All names of the package that no underscore begins, each with what is known of its type."""
    folder = tmp_path_factory.mktemp("types")
    done = _run(folder, "basedpyright", "--verifytypes", "forebay", "--ignoreexternal", "--outputjson")
    found = json.loads(done.stdout)["typeCompleteness"]
    assert found.get("pyTypedPath"), done.stdout + done.stderr
    return [one for one in found["symbols"] if one["name"].startswith("forebay.")]


def _faults(symbols: list[dict[str, Any]]) -> list[str]:
    return [f"{one['name']}: {[each['message'] for each in one['diagnostics']]}" for one in symbols]


def test_every_public_name_has_one_type_whichever_checker_reads_it(symbols: list[dict[str, Any]]) -> None:
    public = {f"forebay.{name}" for name in forebay.__all__}
    homes = {one["name"] for one in symbols if public & {one["name"], *one.get("alternateNames", ())}}
    assert len(homes) >= len(public)
    members = [one for one in symbols if one["name"] in homes or one["name"].rpartition(".")[0] in homes]
    assert len(members) > 100
    assert _faults([one for one in members if not one["isTypeKnown"] or one["isTypeAmbiguous"]]) == []


def test_no_name_has_an_unknown_type(symbols: list[dict[str, Any]]) -> None:
    assert _faults([one for one in symbols if not one["isTypeKnown"] and not one["isTypeAmbiguous"]]) == []
