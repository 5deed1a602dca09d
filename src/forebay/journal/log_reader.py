"""Reading a log back: what is reserved, written in part, and damaged, are told apart."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import orjson

from forebay.journal.log_format import (
    HEADER,
    SUFFIX,
    About,
    Group,
    group_at,
    is_partial,
    next_intact,
)


class Reader:
    """Reads a log from its beginning, also while it is being written.

    `damaged` tells whether something could not be read; `torn` whether the last segment ends within a group,
    which a crash leaves behind of one that was never acknowledged.
    """

    def __init__(self, folder: Path) -> None:
        self.damaged = False
        self.torn = False
        self._folder = folder
        self._segment: Path | None = None
        self._offset = 0
        self._behind = -1

    def read(self, after_seq: int, up_to_seq: int, max_bytes: int) -> list[Group]:
        """The next groups with something behind `after_seq`, none behind `up_to_seq`: at least one, about so much."""
        if after_seq < self._behind:
            self._segment, self._offset = None, 0
        self._behind = after_seq
        groups: list[Group] = []
        size = 0
        for group, segment, end in self._groups(after_seq, up_to_seq):
            groups.append(group)
            self._segment, self._offset = segment, end
            size += len(group.body)
            if size >= max_bytes:
                break
        return groups

    def _groups(self, after_seq: int, up_to_seq: int) -> Iterator[tuple[Group, Path, int]]:
        segments = segments_of(self._folder)
        self._check_for_gaps(segments)
        for segment in segments:
            if self._segment is not None and segment < self._segment:
                continue
            offset = self._offset if segment == self._segment else 0
            is_last = segment == segments[-1]
            for group, end in self._scan(segment, offset, is_last=is_last):
                if group.last_seq > up_to_seq:
                    return
                if group.last_seq > after_seq:
                    yield group, segment, end

    def _check_for_gaps(self, segments: list[Path]) -> None:
        """The oldest are removed when the database has them; one that is missing behind another is lost."""
        numbers = [int(segment.stem) for segment in segments]
        if numbers and numbers[-1] - numbers[0] >= len(numbers):
            self.damaged = True

    def _scan(self, segment: Path, offset: int, *, is_last: bool) -> Iterator[tuple[Group, int]]:
        try:
            content = _read_from(segment, offset)
        except FileNotFoundError:  # trimmed in between
            return
        except OSError:  # a disk that can't read it back
            self.damaged = True
            return
        at = 0
        self.torn = self.torn or (is_last and offset == 0 and not content)
        while at < len(content):
            group = group_at(content, at)
            if group is None:
                following = next_intact(content, at + 1)
                if following is None:
                    self._note_end(content[at:], offset + at, is_last=is_last)
                    return
                self.damaged, at = True, following
                continue
            at += HEADER.size + len(group.body)
            if group.last_seq:  # not the record that says whose it is
                yield group, offset + at

    def _note_end(self, rest: bytes, offset: int, *, is_last: bool) -> None:
        """What is left has no intact group in it: it is reserved, or written in part, or damaged."""
        if is_last and not rest.strip(b"\0"):
            return
        if is_last and is_partial(rest, offset):
            self.torn = True
        else:
            self.damaged = True


def read_about(folder: Path) -> About | None:
    """Whose the log in the folder is; None where no segment says it."""
    for segment in segments_of(folder):
        try:
            group = group_at(_read_from(segment, 0, HEADER.size + 64 * 1024), 0)
            if group is not None and group.last_seq == 0:
                return About(**orjson.loads(group.body))
        except (OSError, TypeError, orjson.JSONDecodeError):
            continue
    return None


def segments_of(folder: Path) -> list[Path]:
    """The log's files, in order."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdecimal())


def remove(folder: Path) -> None:
    """Delete a log."""
    for path in folder.iterdir() if folder.is_dir() else ():
        path.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _read_from(path: Path, offset: int, size: int = -1) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
