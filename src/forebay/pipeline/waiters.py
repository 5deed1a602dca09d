"""Futures that wait until a change is written."""

from __future__ import annotations

import asyncio
import heapq
import itertools

from forebay.errors import RowError
from forebay.primitives.futures import fail, quiet_future


class Waiters:
    """Futures that are done when everything up to their `seq` is settled."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = itertools.count()  # tells entries of one seq apart, which futures can't be

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, seq: int, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that is done when everything up to `seq` is written; its error is not reported."""
        done = quiet_future(loop)
        self.join(seq, done)
        return done

    def join(self, seq: int, done: asyncio.Future[None]) -> None:
        """As `add`, with a future that is there already."""
        heapq.heappush(self._heap, (seq, next(self._number), done))

    def reached(self, seq: int) -> None:
        """Everything up to `seq` is written, or given up."""
        while self._heap and self._heap[0][0] <= seq:
            _, _, done = heapq.heappop(self._heap)
            if not done.done():
                done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Nothing is written at present: whoever waits is told so now."""
        for _, _, done in self._heap:
            fail(done, error)
        self._heap.clear()


class Commits:
    """Who waits for the database to have a change, since this machine's disk has not taken it."""

    def __init__(self) -> None:
        self._waiters = Waiters()
        self._by_row: dict[str, list[tuple[int, asyncio.Future[None]]]] = {}
        # Rows that were refused and no letter holds, up to which change, while the journal's answer is not there yet.
        self._refused: dict[str, tuple[int, RowError]] = {}

    def join(self, seq: int, key: str, done: asyncio.Future[None]) -> None:
        """`done` when it is there; `key`: of its row."""
        refused_seq, refusal = self._refused.get(key, (0, None))
        if refusal is not None and seq <= refused_seq:
            fail(done, refusal)
        self._waiters.join(seq, done)
        self._by_row.setdefault(key, []).append((seq, done))

    def refused(self, key: str, last_seq: int, error: RowError, *, is_quiet: bool) -> None:
        """A row was refused with what came up to `last_seq`, and no letter holds it: where no disk has it, it is lost.

        `is_quiet`: the journal has answered for all that it was given.
        """
        if not is_quiet:
            self._refused[key] = last_seq, error
        for seq, done in self._by_row.get(key, ()):
            if seq <= last_seq:
                fail(done, error)

    def answered(self) -> None:
        """The journal has answered for all that it was given."""
        self._refused.clear()

    def reached(self, seq: int) -> None:
        """Everything up to `seq` is written, or given up."""
        self._waiters.reached(seq)
        if self._by_row and not self._waiters:
            self._by_row.clear()

    def rebind(self) -> None:
        """Go on in another event loop; nobody waits in the one before."""
        self._waiters = Waiters()
        self._by_row.clear()

    def fail(self, error: Exception) -> None:
        """Nothing is written any more: whoever waits is told."""
        self._waiters.fail(error)
