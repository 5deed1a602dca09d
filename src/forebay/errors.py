"""Every error that forebay raises, in one tree.

An error's docstring says what happened; its message says what to do. No message holds a chat's content, a password or a
user's id, nor where the database or a folder is: Chainlit shows it to whoever chats. `told` says where, too.
"""

from __future__ import annotations


class ForebayError(Exception):
    """The base of every error of this package.

    `location` is where it happened, a database without its password or a path: for the operator alone, so it is no
    part of the message.
    """

    def __init__(self, message: str = "", *, location: str | None = None) -> None:
        super().__init__(message)
        self.location = location


class SettingsError(ForebayError, ValueError):
    """A setting has a wrong value; the message names its variable."""


class OverrideError(ForebayError, TypeError):
    """A subclass overrides a method that forebay does not call; the message names it, and the way."""


class QueueFull(ForebayError):
    """The queue was full for longer than `queue_timeout`, or one person's part of it is; the change was not taken."""


class JournalError(ForebayError):
    """The journal on this machine's disk can't be written or read; the message says what to look at."""


class StorageError(ForebayError):
    """The storage of elements' content refuses or fails; the message says what to look at."""


class DeletionIncomplete(ForebayError):
    """Something of a deleted person is left for now; the message says what. Doing it again goes on with it."""


class FetchError(ForebayError):
    """An element's URL was not fetched: it is not allowed, too large, or does not answer."""


class SearchBusy(ForebayError):
    """Too many searches at once, of one person or of all, or one that took too long; nothing was found."""


class LayerClosed(ForebayError):
    """The data layer was closed; it takes no further calls."""


class WrongLoop(ForebayError):
    """The event loop that the data layer runs in stands still or has ended, and did not take another loop's call."""


class LayerForked(ForebayError):
    """The process was forked off the one that the data layer runs in; the child needs a layer of its own."""


class DatabaseError(ForebayError):
    """The database refused or failed a statement."""

    def __init__(self, message: str, *, sqlstate: str | None = None, location: str | None = None) -> None:
        super().__init__(message, location=location)
        self.sqlstate = sqlstate


class TransientError(DatabaseError):
    """The database can't be reached or is busy; the same statement may succeed later."""


class ThreadHeldUp(TransientError):
    """The database holds one thread up, by a lock or a change that takes too long; others are not concerned."""


class RowError(DatabaseError):
    """The database refuses a row for what is in it; trying again will not help."""


class InvalidId(RowError, ValueError):
    """An id is no UUID, and PostgreSQL's tables take nothing else; the change was not taken."""


class ChangeTooLarge(RowError, ValueError):
    """One change is above `change_max_bytes`; it was not taken."""


class SchemaError(DatabaseError):
    """The database's tables are not forebay's; `forebay migrate` brings them there."""


class AccessError(DatabaseError):
    """The database refuses the login, the database's name or a right."""


class StatementError(DatabaseError):
    """A statement of the caller's own is wrong."""


def told(error: object) -> str:
    """An error as the operator reads it, in a log line or from a command: with where it happened."""
    location = error.location if isinstance(error, ForebayError) else None
    return f"{error} [{location}]" if location else str(error)
