"""What kind of file system a folder is on, and what that means for a journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.doctor import disk
from forebay.doctor.findings import Level

_MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
server:/export /srv/shared nfs4 rw 0 0
/dev/sdb1 /srv/shared/local\\040disk xfs rw 0 0
sshfs /home/me/far fuse.sshfs rw 0 0
overlay /var overlay rw 0 0
/dev/sdc1 /var xfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/opt/chat", "ext4"),
        ("/run/chat", "tmpfs"),
        ("/running", "ext4"),
        ("/srv/shared/journals", "nfs4"),
        ("/srv/shared/local disk/journals", "xfs"),
        ("/var/lib", "xfs"),
    ],
)
def test_the_longest_and_latest_mount_point_counts(path: str, kind: str) -> None:
    assert disk.file_system(Path(path), _MOUNTS) == kind


def test_no_mount_point_is_not_known() -> None:
    assert disk.file_system(Path("/opt"), "tmpfs /run tmpfs rw 0 0\n") is None


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("ext4", Level.OK),
        ("nfs4", Level.ERROR),
        ("fuse.sshfs", Level.ERROR),
        ("tmpfs", Level.WARNING),
        ("overlay", Level.WARNING),
        (None, Level.NOTE),
    ],
)
def test_a_remote_or_passing_file_system_is_told(
    kind: str | None, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "file_system", lambda _path: kind)
    (finding,) = disk.check_file_system("journal folder", Path("/somewhere/new"))
    assert finding.level is level
    assert (finding.remedy is None) == (level in (Level.OK, Level.NOTE))
