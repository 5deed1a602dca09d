"""A lock on a file, which one process holds at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forebay.primitives import posix


def test_one_process_at_a_time_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with posix.lock_file(path):
        assert posix.lock_file(path) is None
    posix.lock_file(path).close()


def test_it_is_let_go_of_where_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or nobody could take it as long as this process lives."""
    path = tmp_path / "x.lock"

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os.path, "samestat", fails)
        with pytest.raises(OSError, match="Input"):
            posix.lock_file(path)
    posix.lock_file(path).close()
