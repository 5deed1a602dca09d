"""Elements' content in a folder: a Chainlit storage client that needs no cloud.

An object is two files under the SHA-256 of its key, so no key can lead out of the folder, whatever is in it:
the content under a name of its own, and a note that names it, which is put in place last. A reader sees the
whole of the old content or the whole of the new one. `serving` gives the files to browsers.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from anyio import CapacityLimiter
from chainlit.data.storage_clients.base import BaseStorageClient, storage_expiry_time
from typing_extensions import override

from forebay.attachments.file_route import Signer, StoredFile, publish, served_root, unsigned_url
from forebay.errors import StorageError
from forebay.primitives import posix, threads
from forebay.primitives.posix import sync_folder
from forebay.settings import ChainlitVariables, Settings

OBJECTS = "objects"
_MARKS = "databases"
_NOTE = ".json"
_KEY_FILE = "signing-key"
_THREADS = 16  # syncs side by side share what the disk does
_CHUNK_BYTES = 1024 * 1024
_TRIES = 3
_LEFTOVER_AGE = 3600.0  # seconds after which a content file that no note names is not being written any more

_Result = TypeVar("_Result")


class _IsThere(StorageError):
    def __init__(self) -> None:
        super().__init__("the object is there already, and may not be overwritten")


class LocalStorageClient(BaseStorageClient):
    """A storage client on a local folder, which is created with the first upload.

    `folder` defaults to `FOREBAY_STORAGE_DIR`. Its files are served by the Chainlit app of this process at URLs
    that are signed and expire after `expires` seconds (Chainlit's STORAGE_EXPIRY_TIME by default). Servers that
    share the folder must share CHAINLIT_AUTH_SECRET; a key that is made and kept in the folder goes with it. URLs
    begin at the root of the server; with `base_url` ("https://chat.example.org") they are absolute.
    Raises StorageError for what the disk refuses.
    """

    def __init__(
        self, folder: str | Path | None = None, *, expires: int = storage_expiry_time, base_url: str = ""
    ) -> None:
        self.folder: Path = Path(folder) if folder is not None else Settings().storage_dir
        self._expires = expires
        self._base_url = base_url.rstrip("/")
        self._root: str | None = None
        self._signer: Signer | None = None
        self._threads: CapacityLimiter | None = None
        publish(self)

    @override
    def __repr__(self) -> str:
        return f"<LocalStorageClient {self.folder}>"

    # ---- Chainlit's methods

    @override
    async def upload_file(
        self,
        object_key: str,
        data: bytes | str,
        mime: str = "application/octet-stream",
        overwrite: bool = True,
        content_disposition: str | None = None,
    ) -> dict[str, Any]:
        """Store `data`; a browser's disposition is decided when it is served."""
        content = data.encode("utf-8", "replace") if isinstance(data, str) else data

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(content)
                sync_file(file)

        return await self._store(object_key, write, mime, overwrite)

    async def upload_path(self, object_key: str, path: Path, mime: str) -> dict[str, Any]:
        """Store the file at `path`, which nobody changes any more: linked where that can be, else copied."""
        return await self._store(object_key, lambda target: link_or_copy(path, target), mime, True)

    async def add_path(self, object_key: str, path: Path, mime: str) -> bool:
        """As `upload_path`, but what is there already stays: False then, whoever comes first."""
        try:
            await self._store(object_key, lambda target: link_or_copy(path, target), mime, False)
        except _IsThere:
            return False
        return True

    @override
    async def delete_file(self, object_key: str) -> bool:
        """Delete an object; True also when there was none, as with S3."""
        await self._in_thread(lambda: self._delete(object_key))
        return True

    @override
    async def get_read_url(self, object_key: str) -> str:
        """A URL that opens this object and no other, for a while."""
        publish(self)
        signer = self._signer if self._signer is not None else await self._in_thread(self.signer)
        return self._base_url + signer.url(object_key, self._expires)

    @override
    async def close(self) -> None:
        """There is nothing to close."""

    # ---- for serving and for `forebay blobs`

    def stored_url(self, object_key: str) -> str:
        """What an element's row says of an object: a URL without a signature, which opens nothing."""
        return self._base_url + unsigned_url(object_key, self._served_root())

    def find(self, object_key: str) -> StoredFile | None:
        """The object, or None. It reads the disk."""
        for _ in range(2):  # it may be replaced between its note and its content
            with contextlib.suppress(*_NOT_THERE):
                return _read_note(self._note(object_key))
        return None

    def signer(self) -> Signer:
        """What signs and checks the URLs. It reads the disk."""
        if self._signer is None:
            secret = ChainlitVariables().chainlit_auth_secret
            # With its own key in it, so that a URL of one folder opens nothing of another that has the same secret.
            own = self._own_key()
            self._signer = Signer(secret.encode() if secret else own, self._served_root(), folder=own)
        return self._signer

    def stored(self) -> Iterator[StoredFile]:
        """All objects, in no order. It reads the disk."""
        for note in self._objects.glob(f"*/*{_NOTE}"):
            with contextlib.suppress(*_NOT_THERE):
                yield _read_note(note)

    def sweep(self) -> int:
        """Remove what a crash left half-written, and folders that are empty: the number of files. It reads the disk."""
        removed = 0
        for path in self._objects.glob("*/*"):
            # A linked file has the time of its writing, but ctime is that of the link.
            if path.suffix == _NOTE or time.time() - path.stat().st_ctime < _LEFTOVER_AGE:
                continue
            note = path.with_name(path.name.split(".")[0] + _NOTE)
            with contextlib.suppress(*_NOT_THERE):
                if _read_note(note).path == path:
                    continue
            path.unlink(missing_ok=True)
            removed += 1
        for folder in self._objects.glob("*"):
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()
        return removed

    def marks(self) -> set[str]:
        """The marks of the databases whose contents are in it. It reads the disk."""
        return {path.name for path in (self.folder / _MARKS).glob("*")}

    def mark(self, name: str) -> None:
        """Add one."""
        place = self.folder / _MARKS
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place / name).touch(mode=0o600)

    def unmark(self, names: Iterable[str]) -> None:
        """Take some away."""
        for name in names:
            (self.folder / _MARKS / name).unlink(missing_ok=True)

    # ---- on the disk

    @property
    def _objects(self) -> Path:
        return self.folder / OBJECTS

    def _note(self, object_key: str) -> Path:
        name = hashlib.sha256(object_key.encode("utf-8", "surrogatepass")).hexdigest()
        return self._objects / name[:2] / (name + _NOTE)

    async def _store(
        self, object_key: str, write: Callable[[Path], None], mime: str, overwrite: bool
    ) -> dict[str, Any]:
        await self._in_thread(lambda: self._put(object_key, write, mime, overwrite))
        return {"object_key": object_key, "url": self.stored_url(object_key)}

    def _put(self, object_key: str, write: Callable[[Path], None], mime: str, overwrite: bool) -> None:
        """As `_put_once`, again where a sweep has taken the empty folder away in between."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(FileNotFoundError):
                return self._put_once(object_key, write, mime, overwrite)
        return self._put_once(object_key, write, mime, overwrite)

    def _put_once(self, object_key: str, write: Callable[[Path], None], mime: str, overwrite: bool) -> None:
        note = self._note(object_key)
        before = self.find(object_key)
        if before is not None and not overwrite:
            raise _IsThere
        _make_folder(note.parent, self.folder)
        content = note.with_suffix(f".{secrets.token_hex(8)}")
        try:
            write(content)
            about = {"key": object_key, "mime": mime, "content": content.name}
            replace(note, json.dumps(about).encode(), place=os.replace if overwrite else _place_first)
        except BaseException:
            content.unlink(missing_ok=True)
            raise
        sync_folder(note.parent)
        if before is not None:
            before.path.unlink(missing_ok=True)

    def _delete(self, object_key: str) -> None:
        found = self.find(object_key)
        self._note(object_key).unlink(missing_ok=True)
        if found is not None:
            found.path.unlink(missing_ok=True)

    def _served_root(self) -> str:
        if (
            self._root is None
        ):  # Chainlit sets it before it loads the app, but after this class may be imported
            self._root = served_root()
        return self._root

    def _own_key(self) -> bytes:
        """A random key, made by whoever comes first; a link can't replace what is there."""
        path = self.folder / _KEY_FILE
        if not path.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self.folder / f"{_KEY_FILE}.{secrets.token_hex(8)}"
            descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                if posix.is_root():  # an operator looks after the folder; whose it is must read the key too
                    owner = self.folder.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.write(secrets.token_bytes(32))
                sync_file(file)
            try:
                os.link(fresh, path)
                fresh.unlink()
            except FileExistsError:
                fresh.unlink()
            except OSError:  # a disk without links
                fresh.replace(path)
        return path.read_bytes()

    async def _in_thread(self, act: Callable[[], _Result]) -> _Result:
        if self._threads is None:
            self._threads = CapacityLimiter(_THREADS)
        try:
            return await threads.run(act, self._threads)
        except OSError as error:
            raise StorageError(
                f"the attachments' folder can't be used ({error.strerror}); make room, or set FOREBAY_STORAGE_DIR to"
                " a folder that this process may write to",
                location=str(self.folder),
            ) from None


# Deleted meanwhile, damaged, or not ours.
_NOT_THERE = (FileNotFoundError, ValueError, KeyError, TypeError)


def _read_note(note: Path) -> StoredFile:
    about = json.loads(note.read_bytes())
    path = note.with_name(about["content"])  # raises ValueError for what is no plain name
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("the content is no plain file")
    # A linked file has the time of its writing; the note has that of its storing.
    return StoredFile(str(about["key"]), str(about["mime"]), path, found.st_size, note.stat().st_mtime)


# ---- files, for `secured` too


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the file where the disk gives one, else a copy, synced. `target` must not be there."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as file:
            copy(file.fileno(), target)


def copy(descriptor: int, target: Path, *, sync: bool = True) -> None:
    """A copy of an open file from its beginning, in chunks."""
    with os.fdopen(os.dup(descriptor), "rb") as source, target.open("xb") as file:
        source.seek(0)
        shutil.copyfileobj(source, file, _CHUNK_BYTES)
        if sync:
            sync_file(file)


def replace(
    path: Path, content: bytes, *, sync: bool = True, place: Callable[[Path, Path], None] = os.replace
) -> None:
    """Write a file whole or not at all: under another name, synced, then renamed, or as `place` does it."""
    fresh = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.new")
    try:
        with fresh.open("xb") as file:
            file.write(content)
            if sync:
                sync_file(file)
        place(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _place_first(fresh: Path, path: Path) -> None:
    """Give a file its name unless another has it: FileExistsError then."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        raise _IsThere from None
    except OSError:  # a disk without links
        if path.exists():
            raise _IsThere from None
        fresh.replace(path)
    else:
        fresh.unlink()


def sync_file(file: IO[bytes]) -> None:
    """Put what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())


class FolderSync:
    """Syncs one folder's names for many threads at once: those that come during a sync share the next one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._newest = self._synced = 0
        self._turn = threading.Lock()

    def __call__(self) -> None:
        """Return when the names that were in the folder before the call are on the disk."""
        mine = self._newest = next(self._numbers)
        with self._turn:
            if self._synced < mine:
                newest = self._newest
                sync_folder(self._folder)
                self._synced = newest


def _make_folder(folder: Path, root: Path) -> None:
    if folder.is_dir():
        return
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_folder(folder.parent)
