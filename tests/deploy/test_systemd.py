"""The units, as systemd itself reads them."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from forebay.settings import Settings
from tests.deploy import files

_UNITS = sorted((files.DEPLOY / "systemd").glob("*.service"))
_PROGRAMS = "/opt/forebay/bin"
# systemd's own measure, in tenths: 0 is safe, 100 is not.
_EXPOSURE = 20


def _instance(unit: Path) -> str:
    return unit.name.replace("@", "@8001")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The units beside programs that exist, as `verify` looks for them."""
    for name in ("chainlit", "forebay"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    for unit in _UNITS:
        (tmp_path / _instance(unit)).write_text(unit.read_text().replace(_PROGRAMS, str(tmp_path)))
    return tmp_path


@pytest.mark.parametrize("unit", _UNITS, ids=files.name_of)
def test_systemd_understands_it(unit: Path, folder: Path) -> None:
    # An unknown key is a warning to systemd, so its silence counts, and not its exit code.
    files.assert_silent(
        files.run("systemd-analyze", "verify", "--man=no", folder / _instance(unit), package="systemd")
    )


@pytest.mark.parametrize("unit", _UNITS, ids=files.name_of)
def test_it_may_do_little(unit: Path, folder: Path) -> None:
    words = ("security", "--offline=true", "--no-pager", f"--threshold={_EXPOSURE}", folder / _instance(unit))
    done = files.run("systemd-analyze", *words, package="systemd")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", _UNITS, ids=files.name_of)
def test_its_files_are_among_the_examples(unit: Path) -> None:
    examples = {path.name.removesuffix(".example") for path in (files.DEPLOY / "systemd").glob("*.example")}
    named = re.findall(r"^EnvironmentFile=/etc/forebay/(\S+)$", unit.read_text(), re.MULTILINE)
    assert named
    assert set(named) <= examples | {"owner.env"}


def test_all_units_are_locked_up_alike() -> None:
    locks = {unit.name: _locks(unit) for unit in _UNITS}
    chat = locks.pop("forebay-chat@.service")
    assert {"NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict"} <= chat
    for name, found in locks.items():
        assert found == chat | {"MemoryDenyWriteExecute=yes"}, name


def _locks(unit: Path) -> set[str]:
    text = unit.read_text()
    lines = text[text.index("NoNewPrivileges") :].split("[Install]")[0].splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_there_is_time_to_drain() -> None:
    close_timeout = Settings.model_fields["close_timeout"].default
    for unit in _UNITS:
        stop = re.search(r"^TimeoutStopSec=(\d+)$", unit.read_text(), re.MULTILINE)
        if "migrate" not in unit.name:
            assert stop is not None, unit.name
            assert int(stop[1]) > 2 * close_timeout


def test_the_drain_ends_after_the_chat_servers_and_on_their_folder() -> None:
    texts = {unit.name: unit.read_text() for unit in _UNITS}
    chat, drain = texts["forebay-chat@.service"], texts["forebay-drain.service"]
    assert re.search(r"^After=.*\bforebay-drain\.service\b", chat, re.MULTILINE)
    where = re.search(r"^Environment=FOREBAY_JOURNAL_DIR=(\S+)$", chat, re.MULTILINE)
    assert where is not None
    assert f"forebay drain {where[1]} --watch" in drain


def test_the_units_are_well_formed() -> None:
    for unit in _UNITS:
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(unit)
        assert {"Unit", "Service"} <= set(parser.sections())
