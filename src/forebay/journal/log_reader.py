"""Reading a log back: what is reserved, written in part, and damaged, are told apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from forebay.journal.log_format import (
    HEADER,
    SUFFIX,
    About,
    Group,
    Head,
    group_at,
    heads_of,
    is_beside,
    is_partial,
    next_intact,
)

_HEADS_BYTES = 8 * 1024


class Reader:
    """Reads a log from its beginning, also while it is being written. Raises OSError where the disk does not give it.

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
            for group, end in self._scan(segment, offset, _end_of(segment, segments)):
                if group.last_seq > up_to_seq:
                    return
                if group.last_seq > after_seq:
                    yield group, segment, end

    def _check_for_gaps(self, segments: list[Path]) -> None:
        """The oldest are removed when the database has them; one that is missing behind another is lost."""
        numbers = [int(segment.stem) for segment in segments]
        if numbers and numbers[-1] - numbers[0] >= len(numbers):
            self.damaged = True

    def _scan(self, segment: Path, offset: int, end: int | None) -> Iterator[tuple[Group, int]]:
        """The groups behind `offset`, up to `end`, where that is known, and where each ends."""
        try:
            content = _read_from(segment, offset)
        except FileNotFoundError:  # removed in between
            return
        if end is not None:
            self.damaged = self.damaged or offset + len(content) < end
            content = content[: max(0, end - offset)]
        at = 0
        self.torn = self.torn or (end is None and offset == 0 and not content)
        while at < len(content):
            group = group_at(content, at)
            if group is None:
                following = next_intact(content, at + 1)
                if following is None:
                    self._note_end(content[at:], offset + at, is_last=end is None)
                    return
                self.damaged, at = True, following
                continue
            at += HEADER.size + len(group.body)
            if group.last_seq:  # not a record that says whose it is
                yield group, offset + at

    def _note_end(self, rest: bytes, offset: int, *, is_last: bool) -> None:
        """What is left has no intact group in it: it is reserved, or written in part, or damaged."""
        if is_last and not rest.strip(b"\0"):
            return
        if is_last and is_partial(rest, offset):
            self.torn = True
        else:
            self.damaged = True


def _end_of(segment: Path, segments: list[Path]) -> int | None:
    """Up to which byte a segment holds groups: the next one says it. None of the last that was begun whole."""
    behind = segments[segments.index(segment) + 1 :]
    for following in behind:
        about, head = _heads_of(following)
        if head is not None and following == behind[0]:
            return head.before
        if (about, head) != (None, None):  # as of the first release, which cut off what was reserved
            with contextlib.suppress(FileNotFoundError):
                return segment.stat().st_size
    return None


def read_heads(folder: Path) -> tuple[About | None, Head | None]:
    """Whose the log in the folder is, by the newest segment that says it; None for what none says.

    Raises OSError where the disk does not give it.
    """
    about: About | None = None
    head: Head | None = None
    for segment in reversed(segments_of(folder)):
        its_about, its_head = _heads_of(segment)
        about, head = about or its_about, head or its_head
        if about is not None and head is not None:
            break
    return about, head


@lru_cache(maxsize=1024)
def comes_first(folder: Path) -> bool:
    """Whether the log in the folder, which has been begun, is one beside its process's own.

    Raises OSError where the disk does not give it.
    """
    return any(is_beside(_read_from(segment, 0, _HEADS_BYTES)) for segment in segments_of(folder)[:1])


def _heads_of(segment: Path) -> tuple[About | None, Head | None]:
    try:
        return heads_of(_read_from(segment, 0, _HEADS_BYTES))
    except FileNotFoundError:  # removed in between
        return None, None


def segments_of(folder: Path) -> list[Path]:
    """The log's files, in order."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdecimal())


def _read_from(path: Path, offset: int, size: int = -1) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
