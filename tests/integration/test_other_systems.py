"""A system that is not POSIX, as far as it can be stood in for: what only POSIX has is hidden from a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_HIDDEN = """
import os, signal, sys
sys.modules["fcntl"] = None
for name in ("fork", "register_at_fork", "pwritev", "O_DSYNC", "O_CLOEXEC", "geteuid", "fchown", "posix_fallocate"):
    delattr(os, name)
del signal.SIGKILL
"""
_CHAT = """
import asyncio, pkgutil
import forebay
for module in pkgutil.walk_packages(forebay.__path__, "forebay."):
    # Measuring needs processes of its own, and a cloud's client its package.
    if not any(part in module.name for part in (".bench", ".migrations", ".demo", "azure_", "google_", "__main__")):
        __import__(module.name)
from chainlit.context import init_http_context
from chainlit.element import File

async def main() -> None:
    init_http_context()
    layer = forebay.ForebayDataLayer(sys.argv[1], settings=forebay.Settings(durability=sys.argv[2]))
    thread, step = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    await layer.update_thread(thread, name="a chat")
    await layer.create_element(File(thread_id=thread, name="f", content=b"kept", for_id=step))
    await layer.close()
    layer = forebay.ForebayDataLayer(sys.argv[1], settings=forebay.Settings(durability=sys.argv[2]))
    found = await layer.get_thread(thread)
    print(found["name"], layer.storage_provider.find(found["elements"][0]["objectKey"]).path.read_bytes().decode())
    await layer.close()

asyncio.run(main())
"""


def _run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {"CHAINLIT_APP_ROOT": str(folder), "FOREBAY_METRICS_ADDRESS": "off"}
    left = {name: value for name, value in os.environ.items() if not name.startswith(("FOREBAY_", "APP_"))}
    command = [sys.executable, "-c", _HIDDEN + program, *arguments]
    return subprocess.run(command, env={**left, **own}, capture_output=True, text=True)


@pytest.mark.parametrize("durability", ["memory", "commit"])
def test_chats_are_kept_without_a_journal(migrated_url: str, tmp_path: Path, durability: str) -> None:
    done = _run(tmp_path, _CHAT, migrated_url, durability)
    assert done.stdout.splitlines()[-1:] == ["a chat kept"], done.stderr


def test_the_journal_says_what_it_needs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    done = _run(tmp_path, _CHAT, url, "journal")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("forebay.errors.SettingsError: FOREBAY_DURABILITY=journal needs a POSIX system")
    assert not [*tmp_path.glob(".forebay/*.lock")]


def test_the_commands_start(tmp_path: Path) -> None:
    program = "from forebay.cli import main\nmain(['migrate', '--database-url', sys.argv[1]])"
    done = _run(tmp_path, program, f"sqlite:///{tmp_path / 'chat.db'}")
    assert done.returncode == 0, done.stderr
