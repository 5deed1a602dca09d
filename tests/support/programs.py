"""Programs that pip can't bring: where they are, or the test skips and says what installs them."""

from __future__ import annotations

import os
import shutil

import pytest

_PACKAGES = {"prometheus": "prometheus", "promtool": "prometheus", "pgbouncer": "pgbouncer"}
_SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))  # where users other than root don't look


def program(name: str) -> str:
    """The program's path. Skips the test where it is missing."""
    found = shutil.which(name) or shutil.which(name, path=_SBIN)
    if found is None:
        pytest.skip(f"there is no {name} here; on Debian: apt-get install {_PACKAGES[name]}")
    return found
