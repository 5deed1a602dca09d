"""How many asked, and how they liked the answers, day by day, from the file of `forebay export`. It takes pandas."""

from __future__ import annotations

import sys

import pandas

COLUMNS = ["kind", "id", "createdAt", "threadId", "type", "userIdentifier", "forId", "value"]


def days(path: str) -> pandas.DataFrame:
    """A row a day: its questions, the people who asked, the answers that were rated, and those with thumbs up."""
    # A line a row; what has no value in any row is no column of the file.
    rows = pandas.read_json(path, lines=True, dtype=False, convert_dates=False).reindex(columns=COLUMNS)
    threads, steps, feedback = (rows[rows.kind == kind] for kind in ("thread", "step", "feedback"))
    steps = steps.assign(
        day=steps.createdAt.str[:10],
        person=steps.threadId.map(threads.set_index("id").userIdentifier),
        thumb=steps.id.map(feedback.groupby("forId").value.last()),
    )
    by_day = steps.groupby("day")
    return by_day.agg(
        questions=("type", lambda types: (types == "user_message").sum()),
        people=("person", "nunique"),
        rated=("thumb", "count"),
        liked=("thumb", "sum"),
    )


if __name__ == "__main__":
    print(days(sys.argv[1]).to_string())
