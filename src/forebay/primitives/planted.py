"""Whether somebody else may have put a file there, so that what is in it would be taken for this application's."""

from __future__ import annotations

import stat
from pathlib import Path

from forebay.primitives import posix


def distrusted(path: Path) -> str | None:
    """Why what is at `path` may be another user's, and what to do; None where nobody else could have put it there.

    It has to be this user's. Another's is believed where it is the folder's owner's, or root's, and nobody else can
    write into the folder: so an administrator drains what an app's user has left. Raises OSError.
    """
    there, folder, me = path.lstat(), path.parent.stat(), posix.user()
    if stat.S_ISLNK(there.st_mode):
        return "it is a symbolic link, so somebody has put it there; look at it, and remove it"
    if there.st_mode & stat.S_IWOTH:
        return "everybody may write into it; look at it, then `chmod -R go-w` it"
    owners = {me} if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else {me, folder.st_uid, 0}
    if there.st_uid not in owners:
        return (
            "another user has put it there; look at it, and if it is yours, `chown -R` it to the app's user"
        )
    return None
