"""The log on the disk: what is reserved, what was written in part, and what is damaged, are told apart."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from forebay.journal import log as log_module
from forebay.journal.log import Log
from forebay.journal.log_format import FORMAT, MAGIC, About
from forebay.journal.log_reader import Reader, segments_of

_ABOUT = About(FORMAT, "j", "postgresql://localhost/chat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "j.journal"


def _body(number: int) -> bytes:
    return b'["group %d"%s]' % (number, b" " * 3000)


def _append(log: Log, number: int) -> None:
    body = _body(number)
    log.append(number, number, [body[:1000], body[1000:]], zlib.crc32(body))


def _log(folder: Path, groups: int = 3) -> Log:
    log = Log(folder, _ABOUT)
    for number in range(1, groups + 1):
        _append(log, number)
    return log


def _read(folder: Path) -> tuple[list[int], bool, bool]:
    reader = Reader(folder)
    found = reader.read(0, 2**63, 2**30)
    assert [group.body for group in found] == [_body(group.last_seq) for group in found]
    return [group.last_seq for group in found], reader.torn, reader.damaged


def _written(folder: Path) -> tuple[Path, bytes]:
    """The last segment, and what is written of it."""
    path = segments_of(folder)[-1]
    return path, path.read_bytes().rstrip(b"\0")


def test_what_is_reserved_is_the_end(folder: Path) -> None:
    log = _log(folder)
    path, written = _written(folder)
    assert path.stat().st_size > len(written)
    assert _read(folder) == ([1, 2, 3], False, False)
    _append(log, 4)
    assert _read(folder) == ([1, 2, 3, 4], False, False)
    log.close()


@pytest.mark.parametrize("kept", [3, 20, 28, 29, 600, 2000, 3000])
def test_a_group_whose_end_was_not_written_was_not_acknowledged(folder: Path, kept: int) -> None:
    _log(folder).close()
    path, written = _written(folder)
    begin = written.rindex(MAGIC)
    path.write_bytes(written[: begin + kept] + bytes(100_000))
    assert _read(folder) == ([1, 2], True, False)


def test_neither_was_one_that_lacks_a_sector(folder: Path) -> None:
    """A disk that loses its power writes sectors in any order."""
    _log(folder).close()
    path, written = _written(folder)
    begin = written.rindex(MAGIC)
    for sector in range(begin // 512 + 1, len(written) // 512):
        path.write_bytes(
            written[: sector * 512] + bytes(512) + written[sector * 512 + 512 :] + bytes(100_000)
        )
        assert _read(folder) == ([1, 2], True, False)
    first = -begin % 512
    path.write_bytes(written[:begin] + bytes(first) + written[begin + first :] + bytes(100_000))
    assert _read(folder) == ([1, 2], True, False)


@pytest.mark.parametrize("at", [0, 25, 40, 2000, 3010])
def test_one_that_was_changed_is_damaged(folder: Path, at: int) -> None:
    _log(folder).close()
    path, written = _written(folder)
    place = written.rindex(MAGIC) + at
    path.write_bytes(written[:place] + bytes([written[place] ^ 4]) + written[place + 1 :] + bytes(100_000))
    assert _read(folder) == ([1, 2], False, True)


def test_what_the_disk_takes_in_pieces_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.pwritev
    monkeypatch.setattr(
        os, "pwritev", lambda file, parts, at: really(file, [b"".join(parts)[: 1 + at % 700]], at)
    )
    _log(folder).close()
    assert _read(folder) == ([1, 2, 3], False, False)


def test_a_full_segment_keeps_nothing_reserved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 5000)
    log = _log(folder, 6)
    assert len(segments_of(folder)) == 3
    assert all(not path.read_bytes().endswith(b"\0") for path in segments_of(folder)[:-1])
    assert _read(folder) == ([1, 2, 3, 4, 5, 6], False, False)
    log.close()


def test_without_room_to_reserve_it_is_written_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    _log(folder).close()
    assert _read(folder) == ([1, 2, 3], False, False)
