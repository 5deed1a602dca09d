"""Who waits until a change is written: readers of its thread, and `flush`."""

from __future__ import annotations

import asyncio
import heapq
import itertools

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
