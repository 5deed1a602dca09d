"""About how long an import takes and how much room, by a sample of its rows, made ready as if they were written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from forebay.errors import RowError
from forebay.model import changes

SAMPLED = 200  # threads
# To write a row takes half as long as to read it and make it ready; and it takes so much of its size in memory, with
# what indexes take. Of 5,000 and 20,000 steps, PostgreSQL and SQLite.
_SECONDS, _BYTES = 1.5, 0.7


@dataclass
class Sample:
    """Some of a source's rows. Their time is from when it is made to when the last were added."""

    clock: Callable[[], float] = time.perf_counter
    rows: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._took = 0.0

    def add(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Rows as they would be written, by table."""
        for table, row in rows:
            if table == "users":
                continue
            try:
                change = changes.stored(table, row)
            except RowError:  # it will be counted as refused
                continue
            changes.encode([change])
            self.rows += 1
            self.size += change.size
        self._took = self.clock() - self._began

    def of(self, share: float) -> dict[str, int]:
        """The seconds and megabytes of all, of which these are the `share`; rounded up."""
        if not self.rows or share <= 0:
            return {"second": 0, "megabyte": 0}
        seconds = self._took * _SECONDS / share
        return {"second": math.ceil(seconds), "megabyte": math.ceil(self.size * _BYTES / share / 1e6)}
