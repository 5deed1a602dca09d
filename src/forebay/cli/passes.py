"""What `forebay import` does of every source that is copied in passes: run them, and tell of the last."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from forebay.cli import options

if TYPE_CHECKING:
    from forebay.transfer.bring import Brought, Progress
    from forebay.transfer.passes import Pass

_SHORT_PASS = 5.0  # seconds; what is left after such a pass, the last one takes while nobody writes


class Copy(Protocol):
    """A source on its way into a database."""

    async def run(self, progress: Progress) -> Pass:
        """One pass."""


async def pass_by_pass(copy: Copy, *, follow: bool) -> Pass:
    """One pass, or, to `follow`, as many until one is short or has copied no less than the one before; the last.

    To look through a large source may alone take longer than a short pass.
    """
    done = await _pass(copy)
    while follow and done.took >= _SHORT_PASS and done.threads:
        before, done = done.threads, await _pass(copy)
        if done.threads >= before:
            break
    return done


async def _pass(copy: Copy) -> Pass:
    began = monotonic()
    with options.bar("chats") as advance:
        done = await copy.run(advance)
    done.took = monotonic() - began
    return done


def told(done: Pass) -> dict[str, Any]:
    """A pass, as it is reported."""
    return {
        "threads": done.threads,
        "seconds": round(done.took, 1),
        **told_rows(done.brought),
        "removed": dict(done.brought.removed),
        "left_out": dict(done.left_out),
    }


def told_rows(brought: Brought) -> dict[str, Any]:
    """What became of rows, as it is reported."""
    return {
        "rows": dict(brought.rows),
        "deleted": dict(brought.deleted),
        "refused": dict(brought.refused),
        "files": brought.files,
    }
