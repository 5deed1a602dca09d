"""Programs that pip can't bring: where they are, or the test skips and says what installs them."""

from __future__ import annotations

import os
import shutil

import pytest

_PACKAGES = {
    "chromium": "chromium",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "pgbouncer": "pgbouncer",
    "patroni": "patroni",
    "etcd": "etcd-server",
}
_OTHER_NAMES = {"chromium": ("chromium-browser", "google-chrome")}
_SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))  # where users other than root don't look


def program(name: str) -> str:
    """The program's path. Skips the test where it is missing."""
    candidates: tuple[str, ...] = (name, *_OTHER_NAMES.get(name, ()))
    for candidate in candidates:
        found = shutil.which(candidate) or shutil.which(candidate, path=_SBIN)
        if found is not None:
            return found
    pytest.skip(f"there is no {name} here; on Debian: apt-get install {_PACKAGES[name]}")
