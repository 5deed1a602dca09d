"""The workers of one command: processes with one journal folder and one address, of which one can have the port.

Each of them answers on a socket of its own in that folder, which its user alone may open. Whoever has the port asks the
others there, and so serves them all. A worker has the lowest number that is free, so that as few series come about as
there ever are workers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from typing_extensions import override

from forebay.primitives import posix

_MOST = 1000
_TIMEOUT = 2.0  # seconds for a worker's answer
_SOCKET = re.compile(r"(\d+)\.sock")
_DESCRIPTORS = Path("/proc/self/fd")


class Answer(NamedTuple):
    """What a worker says; None where it is there and does not answer."""

    number: int
    said: Any


class Workers:
    """Those that share a journal folder and an address, as one of them sees them."""

    def __init__(self, journal_dir: Path, address: str) -> None:
        self.number: int | None = None
        self._folder = journal_dir / "workers" / re.sub(r"[^\w.]", "_", address)
        self._directory: int | None = None
        self._slot: int | None = None
        self._met = False

    @override
    def __repr__(self) -> str:
        return f"<Workers number {self.number}>"

    @property
    def met_others(self) -> bool:
        """Whether there have ever been others: from then on each series says whose it is."""
        return self._met

    def join(self) -> socket.socket:
        """Become one of them: take a number, and listen. Raises OSError where that can't be done."""
        posix.require_locks()
        self._directory = _private_folder(self._folder)
        try:
            self.number, self._slot = self._free_number()
            self._met = self._met or self.number > 0
            return self._listen()
        except BaseException:
            self.leave()
            raise

    def _free_number(self) -> tuple[int, int]:
        for number in range(_MOST):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | posix.CLOEXEC
            slot = os.open(f"{number}.lock", flags, 0o600, dir_fd=self._directory)
            try:
                posix.lock(slot)
            except OSError:
                os.close(slot)
            else:
                return number, slot
        raise OSError("there are too many workers")

    def _listen(self) -> socket.socket:
        name = f"{self.number}.sock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory)  # of one that has ended: the number is ours
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.bind(self._path(name))
            os.chmod(self._path(name), 0o600)
            listening.listen()
        except BaseException:
            listening.close()
            raise
        return listening

    def _path(self, name: str) -> str:
        """A socket's path takes some 100 bytes at most, so it goes through the folder's descriptor if it can."""
        if _DESCRIPTORS.exists():
            return f"{_DESCRIPTORS}/{self._directory}/{name}"
        return str(self._folder / name)

    def leave(self) -> None:
        """Be none of them any more."""
        if self._slot is not None:
            with contextlib.suppress(OSError):
                os.unlink(f"{self.number}.sock", dir_fd=self._directory)
        self.abandon()

    def abandon(self) -> None:
        """Let go of it in a forked child, whose parent goes on."""
        for descriptor in (self._slot, self._directory):
            if descriptor is not None:
                os.close(descriptor)
        self._slot = self._directory = self.number = None

    def _others(self) -> list[int]:
        if self._directory is None:
            return []
        found = (_SOCKET.fullmatch(name) for name in os.listdir(self._directory))
        return sorted(number for name in found if name and (number := int(name[1])) != self.number)

    async def ask(self, path: str) -> list[Answer]:
        """What each of the others that live answers to this path."""
        try:
            others = self._others()
        except OSError:  # the folder was removed
            others = []
        answers = await asyncio.gather(*(self._ask(number, path) for number in others))
        found = [answer for answer in answers if answer is not None]
        self._met = self._met or bool(found)
        return found

    async def _ask(self, number: int, path: str) -> Answer | None:
        connector = aiohttp.UnixConnector(self._path(f"{number}.sock"))
        limit = aiohttp.ClientTimeout(total=_TIMEOUT)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=limit) as session,
                session.get(f"http://worker{path}") as response,
            ):
                return Answer(number, await response.json(loads=json.loads))
        except aiohttp.ClientConnectorError:
            return None  # it has ended
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return Answer(number, None)


def _private_folder(folder: Path) -> int:
    """A descriptor of a folder that nobody else may look into. Raises OSError where it is another user's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | posix.CLOEXEC)
    status = os.fstat(directory)
    if status.st_uid != posix.user() or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(directory)
        raise PermissionError(f"{folder} may be opened by others")
    return directory


# ---- metrics, from one process to another, and those of several as one

Families = list[tuple[str, str, str, str, list[tuple[str, dict[str, str], float]]]]


def families_of(metrics: Iterable[Metric]) -> Families:
    """Metrics as JSON takes them."""
    return [
        (
            one.name,
            one.documentation,
            one.type,
            one.unit,
            [(s.name, dict(s.labels), s.value) for s in one.samples],
        )
        for one in metrics
    ]


class Together(Collector):
    """Several workers' metrics, each series with its worker's number as the label `worker`."""

    def __init__(self, of_workers: Mapping[int, Families]) -> None:
        self._of_workers = of_workers

    @override
    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        found: dict[str, Metric] = {}
        for number, families in sorted(self._of_workers.items()):
            for name, documentation, kind, unit, samples in families:
                metric = found.setdefault(name, Metric(name, documentation, kind, unit))
                for sample, labels, value in samples:
                    metric.samples.append(Sample(sample, {**labels, "worker": str(number)}, value))
        yield from found.values()
