"""A disk below one folder whose calls are told one from the other: so that each may fail, stand still, or be the last.

Seen are the calls of this process's Python code to open, write, sync, name, remove and look at files. What SQLite and
a mapped file do is not: see `Mirror.trust`.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from typing_extensions import override

_SQLITE_NAMES = {errno.EIO: "SQLITE_IOERR", errno.ENOSPC: "SQLITE_FULL"}
# By what their first argument is.
_OF_A_NAME = (
    "open", "mkdir", "unlink", "remove", "rmdir", "truncate", "stat", "lstat", "listdir", "scandir",
)  # fmt: skip
_OF_TWO_NAMES = ("rename", "replace", "link")
_OF_A_FILE = ("pwritev", "write", "fsync", "fdatasync", "ftruncate", "posix_fallocate")
_LOOKS = ("stat", "lstat", "listdir", "scandir", "read")
_TAKES_ROOM = ("mkdir", "truncate", "rename", "replace", "link", *_OF_A_FILE)


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `changes`: it may change what is on the disk; `takes_room`: of which it may need more."""

    name: str
    path: str
    changes: bool
    takes_room: bool
    file: int | None = None

    @property
    def kind(self) -> str:
        """What is done to which kind of file."""
        suffix = Path(self.path).suffix or "folder"
        return f"{self.name} {suffix if len(suffix) < 10 else 'a name of its own'}"


class Disk:
    """What lies below `root`. Each call is carried out by `do`."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self._really = {name: getattr(os, name) for name in ("open", "stat", "listdir")}
        self._counting = threading.Lock()
        self._files: dict[
            int, tuple[str, tuple[int, int]]
        ] = {}  # by descriptor: the path, and which file it is

    def do(self, _call: Call, really: Callable[[], Any], _part: Callable[[], Any]) -> Any:
        """Carry a call out. `part` does what may be done of it where it fails."""
        return really()

    @contextmanager
    def in_use(self) -> Iterator[Self]:
        """While it lasts, calls go through here."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _OF_A_NAME:
                patch.setattr(os, name, self._by_name(name, getattr(os, name)))
            for name in _OF_TWO_NAMES:
                patch.setattr(os, name, self._by_two_names(name, getattr(os, name)))
            for name in _OF_A_FILE:
                if hasattr(os, name):
                    patch.setattr(os, name, self._by_file(name, getattr(os, name)))
            patch.setattr(io, "open", self._opening(io.open))
            patch.setattr(sqlite3, "connect", self._connecting(sqlite3.connect))
            yield self

    def _by_name(self, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any = ".", *given: Any, **named: Any) -> Any:
            where = self._below(path, named.get("dir_fd"))
            if where is None:
                return really(path, *given, **named)
            flags = given[0] if name == "open" else 0
            makes = bool(flags & (os.O_CREAT | os.O_TRUNC))
            changes = makes if name == "open" else name not in _LOOKS
            takes_room = makes or name in _TAKES_ROOM
            answer = self._call(name, where, lambda: really(path, *given, **named), changes, takes_room)
            if name == "open":
                self._note(answer, where)
            return answer

        return called

    def _by_two_names(self, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def called(source: Any, target: Any, **named: Any) -> Any:
            where = self._below(target, None)
            if where is None:
                return really(source, target, **named)
            return self._call(name, where, lambda: really(source, target, **named), True, True)

        return called

    def _by_file(self, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def called(descriptor: int, *given: Any) -> Any:
            where = self._path_of(descriptor)
            if where is None:
                return really(descriptor, *given)
            part: Callable[[], Any] = lambda: None  # noqa: E731
            if name == "pwritev":
                half = b"".join(given[0])[: sum(map(len, given[0])) // 2]
                part = partial(really, descriptor, [half], *given[1:])
            return self._call(
                name, where, lambda: really(descriptor, *given), True, name in _TAKES_ROOM, part, descriptor
            )

        return called

    def _opening(self, really: Callable[..., Any]) -> Callable[..., Any]:
        def called(file: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
            where = None if isinstance(file, int) else self._below(file, None)
            if where is None:
                return really(file, mode, *given, **named)
            makes = not mode.startswith("r")
            opened = self._call("open", where, lambda: really(file, mode, *given, **named), makes, makes)
            self._note(opened.fileno(), where)
            return _File(self, where, opened)

        return called

    def _connecting(self, really: Callable[..., Any]) -> Callable[..., Any]:
        """Of a SQLite file, each statement and each commit is a call."""

        def called(path: Any, *given: Any, **named: Any) -> Any:
            where = self._below(path, None)
            if where is None:
                return really(path, *given, **named)

            def call(do: Callable[[], Any]) -> Any:
                try:
                    return self._call("sqlite", where, do, True, True)
                except OSError as error:
                    failed = sqlite3.OperationalError(str(error))
                    failed.sqlite_errorname = _SQLITE_NAMES[error.errno or 0]
                    raise failed from None

            class Connection(sqlite3.Connection):
                @override
                def execute(self, *given: Any) -> Any:
                    return call(lambda: super(Connection, self).execute(*given))

                @override
                def __exit__(self, *given: Any) -> Any:
                    return call(lambda: super(Connection, self).__exit__(*given))

            return call(lambda: really(path, *given, **named, factory=Connection))

        return called

    def _call(
        self,
        name: str,
        path: str,
        really: Callable[[], Any],
        changes: bool,
        takes_room: bool,
        part: Callable[[], Any] = lambda: None,
        file: int | None = None,
    ) -> Any:
        return self.do(Call(name, path, changes, takes_room, file), really, part)

    def _below(self, path: Any, folder: int | None) -> str | None:
        """The path, if it lies below the root."""
        if isinstance(path, int):
            return self._path_of(path)
        whole = os.fsdecode(path)
        if folder is not None:
            whole = os.path.join(self._path_of(folder) or "", whole)
        return whole if whole == self.root or whole.startswith(self.root + os.sep) else None

    def _note(self, descriptor: int, path: str) -> None:
        self._files[descriptor] = (path, _which(descriptor))

    def _path_of(self, descriptor: int) -> str | None:
        path, which = self._files.get(descriptor, (None, None))
        try:
            return path if path is not None and _which(descriptor) == which else None
        except OSError:
            return None


def _which(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


class _File:
    """An open file whose reads and writes are calls, too."""

    def __init__(self, disk: Disk, path: str, file: Any) -> None:
        self._disk, self._path, self._file = disk, path, file

    def read(self, *given: Any) -> Any:
        return self._disk._call("read", self._path, lambda: self._file.read(*given), False, False)

    def write(self, content: Any) -> Any:
        def write() -> Any:
            written = self._file.write(content)
            self._file.flush()
            return written

        return self._disk._call("write", self._path, write, True, True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


class FailingDisk(Disk):
    """One on which a call fails: the one of this `kind` with this `number` among them.

    A full one, with ENOSPC, is so from then on, for all calls that need room, until `mend`. `kinds`: how often which
    kind of call was made that may fail so; with `reads`, also those that only look. `failed` are those that did.
    """

    def __init__(self, root: Path, kind: str, number: int, error: int, *, reads: bool = False) -> None:
        super().__init__(root)
        self.failed: list[Call] = []
        self.kinds: Counter[str] = Counter()
        self._kind = kind
        self._number = number
        self._error = error
        self._reads = reads
        self._is_full = False

    @override
    def do(self, call: Call, really: Callable[[], Any], part: Callable[[], Any]) -> Any:
        if self._fails(call):
            self.failed.append(call)
            part()
            raise OSError(self._error, os.strerror(self._error), call.path)
        return really()

    def _fails(self, call: Call) -> bool:
        is_full = self._error == errno.ENOSPC
        if not (call.takes_room if is_full else call.changes or self._reads):
            return False
        with self._counting:
            self.kinds[call.kind] += 1
            fails = call.kind == self._kind and self.kinds[call.kind] == self._number
            self._is_full = self._is_full or (fails and is_full)
        return fails or self._is_full

    def mend(self) -> None:
        """It works from now on."""
        self._kind, self._is_full = "", False


Tree = dict[str, Any]  # what is in a folder, by name: a file's bytes, or a folder's tree


class Mirror(Disk):
    """One of which is known at each moment what a loss of power would leave: what was synced, and no more.

    `on_call` gets that before and after each call that changes something. Without `loses_names`, names outlive a crash
    as soon as they are there, whatever their files hold then. `trusted`: the names of SQLite files, which take care of
    themselves.
    """

    def __init__(
        self, root: Path, on_call: Callable[[str, Tree], None], *, loses_names: bool, trusted: str
    ) -> None:
        super().__init__(root)
        self._on_call = on_call
        self._loses_names = loses_names
        self._trusted = trusted
        self._one_at_a_time = threading.RLock()
        self._held: dict[
            int, int
        ] = {}  # by number, a descriptor of each file, so that no other gets its number
        self._contents: dict[int, bytes] = {}  # of each file, as it is on the disk
        self._names: dict[int, dict[str, int]] = {}  # of each folder, as they are on the disk

    @override
    @contextmanager
    def in_use(self) -> Iterator[Self]:
        self._note_all(self.root)
        with super().in_use():
            yield self
        for descriptor in self._held.values():
            os.close(descriptor)

    def _note_all(self, folder: str) -> None:
        """What is there at the beginning is on the disk."""
        self._note_names(folder)
        for path in Path(folder).iterdir():
            if path.is_dir():
                self._note_all(str(path))
            else:
                self._note_content(self._number(str(path)))

    @override
    def do(self, call: Call, really: Callable[[], Any], _part: Callable[[], Any]) -> Any:
        if not call.changes:
            return really()
        with self._one_at_a_time:
            self._on_call(f"before {call.kind}", self.after_a_crash())
            answer = really()
            self._note_call(call, answer)
            self._on_call(f"after {call.kind}", self.after_a_crash())
            return answer

    def _note_call(self, call: Call, answer: Any) -> None:
        if call.name in ("open", "mkdir"):
            self._number(call.path)
        if call.name in ("fsync", "fdatasync") and call.file is not None:
            number = os.fstat(call.file).st_ino
            if stat.S_ISDIR(os.fstat(call.file).st_mode):
                self._note_names(call.path)
            else:
                self._note_content(number)
        if call.name == "pwritev" and call.file is not None:
            assert fcntl.fcntl(call.file, fcntl.F_GETFL) & os.O_DSYNC
            self._note_content(os.fstat(call.file).st_ino)
        if call.name == "sqlite" and os.path.exists(call.path):
            self._note_content(self._number(call.path))
            self._note_names(os.path.dirname(call.path), only=os.path.basename(call.path))
        if not self._loses_names and call.name not in _OF_A_FILE:
            self._note_names(os.path.dirname(call.path))

    def _number(self, path: str) -> int:
        number = self._really["stat"](path).st_ino
        if number not in self._held:
            self._held[number] = self._really["open"](path, os.O_RDONLY)
            self._names.setdefault(number, {})
        return int(number)

    def _note_content(self, number: int) -> None:
        held = self._held[number]
        self._contents[number] = os.pread(held, os.fstat(held).st_size, 0)

    def _note_names(self, folder: str, only: str | None = None) -> None:
        names = {
            name: self._number(os.path.join(folder, name))
            for name in self._really["listdir"](folder)
            if only in (None, name) and not name.startswith(self._trusted + "-")
        }
        kept = self._names.get(self._number(folder), {}) if only is not None else {}
        self._names[self._number(folder)] = {**kept, **names}

    def after_a_crash(self) -> Tree:
        """What is left then."""
        return self._tree(self._number(self.root))

    def _tree(self, number: int) -> Tree:
        return {
            name: self._tree(each)
            if stat.S_ISDIR(os.fstat(self._held[each]).st_mode)
            else self._contents.get(each, b"")
            for name, each in self._names[number].items()
        }


def lay_out(tree: Tree, folder: Path) -> None:
    """Make a folder with this in it."""
    folder.mkdir(parents=True)
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            lay_out(content, folder / name)
