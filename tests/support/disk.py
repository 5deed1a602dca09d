"""A small disk of a test's own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def mount(*arguments: str | Path) -> bool:
    """Whether `mount` does it."""
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@contextmanager
def disk_of(size: str, path: Path, otherwise: str) -> Iterator[Path]:
    """A file system of this size at `path`, which it makes; skips, and says `otherwise`, where none can be."""
    path.mkdir()
    if shutil.which("mount") is None or not mount("-t", "tmpfs", "-o", f"size={size}", "forebay-test", path):
        pytest.skip(f"nothing can be mounted here{otherwise}")
    yield path
    subprocess.run(["umount", path], check=True)
