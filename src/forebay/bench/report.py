"""What was measured, as it is kept: every round's figures; medians are taken from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from forebay.bench.plan import WRITERS
from forebay.errors import ForebayError

Result = dict[str, float | None]
Runs = dict[str, list[Result]]


class NoReport(ForebayError):
    """A file holds no saved result; the message names it."""


class Saved:
    """What is kept as JSON: a dataclass whose fields are plain values."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """A saved one. Raises NoReport."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise NoReport(
                f"{path} is no result of `forebay bench --save` ({type(error).__name__})"
            ) from None

    def save(self, path: Path) -> None:
        """Keep it as JSON. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(vars(self), indent=1) + "\n")


@dataclass
class Report(Saved):
    """Each subject's results by round. `writes`: chats that write; `rows`: each write a new row; `steady`: at a given
    rate; `light`: at a rate that is a server's usual one; `paced`: at people's pace; `start`: from the import to the
    first row; `reads`: by kind of read."""

    about: dict[str, str] = field(default_factory=dict)
    scale: dict[str, Any] = field(default_factory=dict)
    command: str = "forebay bench"
    writes: Runs = field(default_factory=dict)
    rows: Runs = field(default_factory=dict)
    steady: Runs = field(default_factory=dict)
    light: Runs = field(default_factory=dict)
    paced: Runs = field(default_factory=dict)
    start: Runs = field(default_factory=dict)
    reads: dict[str, Runs] = field(default_factory=dict)

    def write(self, subject: str, figure: str, runs: Runs | None = None) -> float | None:
        """The median of a figure of a subject's writes."""
        return _median_of((self.writes if runs is None else runs).get(subject, ()), figure)

    def read(self, subject: str, reading: str, figure: str = "p50_ms") -> float | None:
        """The median of a figure of a kind of read; None also where it took too long, see `over`."""
        return _median_of(self.reads.get(subject, {}).get(reading, ()), figure)

    def over(self, subject: str, reading: str) -> float | None:
        """The milliseconds after which a read was ended, if it was."""
        ended = [one["over_ms"] for one in self.reads.get(subject, {}).get(reading, ()) if "over_ms" in one]
        return ended[0] if ended else None

    @property
    def readings(self) -> list[str]:
        """Every kind of read."""
        return list(dict.fromkeys(name for by_name in self.reads.values() for name in by_name))

    @property
    def lost(self) -> int:
        """Steps that forebay has left stale or missing, in any round."""
        mine = {subject.name for subject in WRITERS if subject.kind == "forebay"}
        results = [
            result
            for runs in (self.writes, self.rows, self.steady, self.light, self.paced)
            for name, found in runs.items()
            if name in mine
            for result in found
        ]
        return int(sum((one.get("stale_steps") or 0) + (one.get("missing_steps") or 0) for one in results))


def _median_of(results: Sequence[Result], figure: str) -> float | None:
    values = [value for result in results if (value := result.get(figure)) is not None]
    return statistics.median(values) if values else None
