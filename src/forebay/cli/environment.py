"""Chainlit's `.env`, which the app reads when it starts, and so the commands that speak of the app read too."""

from __future__ import annotations

import os
from pathlib import Path

from dotenv import dotenv_values


def env_file() -> Path:
    """The file that Chainlit reads: `.env` in the working folder, unless CHAINLIT_ENV_FILE names another."""
    return Path.cwd() / os.environ.get("CHAINLIT_ENV_FILE", ".env")


def load() -> dict[str, str]:
    """Add the file's variables to the environment, which wins, as Chainlit does; those that were added."""
    path = env_file()
    if not path.is_file():
        return {}
    added = {name: value for name, value in dotenv_values(path).items() if value and name not in os.environ}
    os.environ.update(added)
    return added
