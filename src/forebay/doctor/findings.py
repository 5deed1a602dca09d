"""A finding, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. A note could not be checked, or needs no change."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it. Neither holds a password or any content."""

    check: str
    level: Level
    found: str
    remedy: str | None = None


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, found)


def note(check: str, found: str, remedy: str | None = None) -> Finding:
    """Not checked, or nothing that must be changed."""
    return Finding(check, Level.NOTE, found, remedy)


def warning(check: str, found: str, remedy: str) -> Finding:
    """It works, but not well, or not for long."""
    return Finding(check, Level.WARNING, found, remedy)


def error(check: str, found: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(check, Level.ERROR, found, remedy)
