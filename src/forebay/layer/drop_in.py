"""What subclasses written for Chainlit's SQLAlchemy layer rely on: that their methods are called from inside.

Which of them a class has is found out once, when the class is made. Who overrides nothing pays nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields

from chainlit.types import PageInfo, PaginatedResponse, Pagination, ThreadDict, ThreadFilter

from forebay.errors import OverrideError

# Chainlit's layer runs every statement through the first and what it returns through the last, looks owners up with the
# second, and asks the third when a row is made.
_NEVER_CALLED = ("execute_sql", "_get_user_identifer_by_id", "get_current_timestamp", "clean_result")


@dataclass(frozen=True, slots=True)
class Overrides:
    """Which methods a subclass has its own of, among those that Chainlit's layer calls from others."""

    create_step: bool = False  # from update_step
    update_step: bool = False  # from set_step_favorite
    update_thread: bool = False  # from create_step
    get_all_user_threads: bool = False  # from get_thread and list_threads
    get_user: bool = False  # from create_user
    # from create_element
    owner_lookup: bool = field(default=False, metadata={"method": "_get_user_id_by_thread"})


def overrides_of(made: type, base: type, for_own_calls: Collection[str]) -> Overrides:
    """Those of the class `made`. Raises OverrideError for one that nothing calls, unless it is named."""
    for name in _NEVER_CALLED:
        if _has_own(made, base, name) and name not in for_own_calls:
            raise OverrideError(
                f"{made.__name__} overrides {name}, which forebay's own statements do not go through: do what it does"
                " in the methods that Chainlit calls; or, if it is for your own calls alone, write"
                f" `class {made.__name__}({base.__name__}, for_own_calls=({name!r},))`"
            )
    methods = {one.name: one.metadata.get("method", one.name) for one in fields(Overrides)}
    return Overrides(**{name: _has_own(made, base, method) for name, method in methods.items()})


def _has_own(made: type, base: type, name: str) -> bool:
    return getattr(made, name) is not getattr(base, name)


def page_of(
    threads: Sequence[ThreadDict], pagination: Pagination, filters: ThreadFilter
) -> PaginatedResponse[ThreadDict]:
    """One page of a user's threads, which are all here and in order; an unknown cursor gives an empty one."""
    wanted = [
        thread for thread in threads if _said(thread, filters.search) and _rated(thread, filters.feedback)
    ]
    start = 0
    if pagination.cursor:
        before = (place for place, thread in enumerate(wanted) if thread["id"] == pagination.cursor)
        start = next(before, len(wanted)) + 1
    page = wanted[start : start + max(0, pagination.first)]
    info = PageInfo(
        hasNextPage=len(wanted) > start + len(page),
        startCursor=page[0]["id"] if page else None,
        endCursor=page[-1]["id"] if page else None,
    )
    return PaginatedResponse(pageInfo=info, data=page)


def _said(thread: ThreadDict, search: str | None) -> bool:
    if not search:
        return True
    texts = [thread.get("name")]
    for step in thread.get("steps") or ():
        texts += (step.get("output"), step.get("input"))
    needle = search.casefold()
    return any(needle in text.casefold() for text in texts if text)


def _rated(thread: ThreadDict, value: int | None) -> bool:
    if value is None:
        return True
    rated = (step.get("feedback") for step in thread.get("steps") or ())
    return any(feedback is not None and feedback["value"] == value for feedback in rated)
