"""The data layer itself: Chainlit's methods, each a few lines on the pipeline.

It has the parameters, the helpers and the tables of `chainlit.data.sql_alchemy.SQLAlchemyDataLayer`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import Any, ClassVar, Literal, TypeVar, cast

from chainlit.data.base import BaseDataLayer
from chainlit.data.storage_clients.base import BaseStorageClient
from chainlit.element import Element, ElementDict
from chainlit.session import WebsocketSession
from chainlit.step import StepDict
from chainlit.types import Feedback, PageInfo, PaginatedResponse, Pagination, ThreadDict, ThreadFilter
from chainlit.user import PersistedUser, User
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from typing_extensions import override

from forebay.attachments import attachments_of
from forebay.database.outdated import Outdated
from forebay.database.own_sessions import sessions
from forebay.database.reads import Page, Reads
from forebay.database.sql.deletes import FOREVER
from forebay.database.store import Store
from forebay.errors import DatabaseError, RowError
from forebay.layer import dicts
from forebay.layer.beginnings import Beginnings, is_in_a_chat
from forebay.layer.cursors import Cursor, Positions
from forebay.layer.deletion import Deleted, Deletion, patience_for
from forebay.layer.drop_in import Overrides, overrides_of, page_of
from forebay.layer.monitor import Operations
from forebay.layer.owners import Owners
from forebay.layer.people import People
from forebay.layer.purge import purge
from forebay.layer.queued import Door, placed
from forebay.layer.searches import Searches, bounded
from forebay.layer.sessions import (
    Variables,
    chat_at_hand,
    claim_of,
    claimant_of,
    is_elsewhere,
    user_at_hand,
    variables_of,
    who_calls,
)
from forebay.model import changes, cleaning
from forebay.model.changes import STAR, Claimant, Delete, Upsert
from forebay.model.schema import EXTRA
from forebay.pipeline import Pipeline
from forebay.primitives.awaitables import NOTHING, Deferred
from forebay.primitives.threads import run as run_in_thread
from forebay.settings import Settings
from forebay.telemetry.collector import Metrics
from forebay.telemetry.logs import limit_repeats

logger = logging.getLogger("forebay")

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _at_home(method: _Method) -> _Method:
    """A method that runs in the event loop that writes, whichever loop it is called in."""

    @wraps(method)
    async def at_home(self: ForebayDataLayer, *arguments: Any, **named: Any) -> Any:
        if self._home.is_away():
            return await self._home.bring(partial(method, self, *arguments, **named))
        return await method(self, *arguments, **named)

    return cast("_Method", at_home)


def _timed(method: _Method) -> _Method:
    """A read whose duration is measured, under its name."""

    @wraps(method)
    async def timed(self: ForebayDataLayer, *arguments: Any, **named: Any) -> Any:
        with self._metrics.reading(method.__name__):
            if self._home.is_away():
                return await self._home.bring(partial(method, self, *arguments, **named))
            return await method(self, *arguments, **named)

    return cast("_Method", timed)


_MANY_STEPS = 500  # from here on they are made Chainlit's beside the event loop, which would stand still
_ANY_SIZE = 2**62  # of the answer for a class whose own methods have asked for all
_changing: ContextVar[bool] = ContextVar("forebay_changing", default=False)
_changed_step = partial(changes.step, made=False)


@contextmanager
def _as_changing() -> Iterator[None]:
    changing = _changing.set(True)
    try:
        yield
    finally:
        _changing.reset(changing)


class ForebayDataLayer(BaseDataLayer):
    """A Chainlit data layer whose writes are batched and whose reads are one statement each.

    `conninfo` is a PostgreSQL or SQLite URL, `connect_args` go to the driver, `ssl_require` demands TLS with a
    verified certificate, `storage_provider` keeps elements' content (None: the storage that is configured, or
    else a folder), `user_thread_limit` caps a page of threads (None: no cap), `show_logger` logs each call's
    name. `settings` default to the environment's, and metrics go to `registry`. Raises SettingsError for what
    can't be used.

    A subclass's methods are called where Chainlit's SQLAlchemy layer would call them; a class with one that could
    not be is refused when it is made, with OverrideError, unless `for_own_calls` names it.
    """

    _own: ClassVar[Overrides] = Overrides()
    _for_own_calls: ClassVar[frozenset[str]] = frozenset()

    @override
    def __init_subclass__(cls, *, for_own_calls: Collection[str] = (), **named: Any) -> None:
        super().__init_subclass__(**named)
        cls._for_own_calls |= frozenset(for_own_calls)
        cls._own = overrides_of(cls, ForebayDataLayer, cls._for_own_calls)

    def __init__(
        self,
        conninfo: str,
        connect_args: dict[str, Any] | None = None,
        ssl_require: bool = False,
        storage_provider: BaseStorageClient | None = None,
        user_thread_limit: int | None = 1000,
        show_logger: bool | None = False,
        *,
        settings: Settings | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        limit_repeats()
        self.settings: Settings = settings if settings is not None else Settings()
        self.user_thread_limit = user_thread_limit
        self.show_logger = show_logger
        self.conninfo: str = conninfo
        self.connect_args: dict[str, Any] | None = connect_args
        self.ssl_require: bool = ssl_require
        self._store = Store(conninfo, self.settings, connect_args=connect_args, ssl_require=ssl_require)
        self._metrics = Metrics(registry)
        self._engine = Pipeline(self.settings, self._store, self._metrics, whose=who_calls)
        self._home, self._barrier = self._engine.home, self._engine.barrier
        self._submit = self._engine.intake.submit
        self._beginnings = Beginnings()
        counts = self._engine.counts
        self._door = Door(
            self._submit,
            self._engine.refusals.note,
            self.settings.queue_max_bytes,
            counts,
            self._home,
            self._store.ids.spell,
        )
        self._operations = Operations(self.settings, self._engine, self._metrics)
        self._statements = self._store.statements
        self._reads = Reads(self._store, self._barrier, self.settings)
        self._people = People(self._find_user, self._save_user)
        self._positions = Positions()
        self._searches = Searches(counts.searches_refused)
        self._variables = Variables(self._store.ids.spell)
        self._attachments = attachments_of(
            storage_provider,
            self.settings,
            self._store,
            self._engine.intake.write,
            self._barrier,
            counts,
            self._metrics,
        )
        self._engine.on_start.append(self._attachments.start)
        self._owners = Owners(self._get_user_id_by_thread, always=self._own.owner_lookup)
        self.async_session: async_sessionmaker[AsyncSession] = sessions(self.engine, self._settle_all)

    @classmethod
    def from_env(
        cls, *, storage_provider: BaseStorageClient | None = None, registry: CollectorRegistry | None = None
    ) -> ForebayDataLayer:
        """A layer on FOREBAY_DATABASE_URL, or else DATABASE_URL, with the environment's settings."""
        settings = Settings()
        return cls(
            settings.database_url or "",
            storage_provider=storage_provider,
            settings=settings,
            registry=registry,
        )

    @override
    def __repr__(self) -> str:
        return f"<ForebayDataLayer {self._store.location}, {self._engine!r}>"

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine, for statements of the application's own."""
        return self._store.engine

    @property
    def storage_provider(self) -> BaseStorageClient | None:
        """The storage client of elements' content."""
        return self._attachments.client

    @property
    def registry(self) -> CollectorRegistry:
        """Where the metrics are."""
        return self._metrics.registry

    @property
    def metrics_url(self) -> str | None:
        """Where /metrics, /healthz and /readyz are served, as in `http://127.0.0.1:9464`; None while nowhere."""
        return self._operations.listener.url

    # ---- life

    async def start(self) -> None:
        """Start now instead of at the first use, for probes and for journals that a process before has left.

        Raises JournalError where the journal can't be written, and nothing for a database that can't be reached.
        """
        self._home.start()
        await self._engine.check_folder()
        self._operations.look_once()

    @_at_home
    async def flush(self) -> None:
        """Return when everything that was accepted is in the database, however long that takes."""
        await self._barrier.flush()

    @override
    async def close(self) -> None:
        """Write out what is queued, within `close_timeout`, and disconnect. A second call does nothing."""
        if self._home.has_begun and self._home.is_away():
            await self._home.bring(self._close)
            await self._home.leave()
        else:
            await self._close()

    async def _close(self) -> None:
        if self._home.is_forked:  # all that runs is the parent's
            await self._engine.close()
            return
        await self._operations.closing()
        await self._attachments.drain(self.settings.close_timeout / 2)
        await self._engine.close()
        await self._attachments.close()
        await self._operations.close()

    @override
    async def build_debug_url(self) -> str:
        """There is no debugger to link to: an empty string, as in Chainlit's layer."""
        return ""

    # ---- helpers that subclasses of Chainlit's layer use

    @_at_home
    async def execute_sql(self, query: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]] | int:
        """Run a statement after everything that is queued: its rows, or how many rows it changed.

        Raises a DatabaseError, where Chainlit's layer logs the parameters and returns None.
        """
        await self._barrier.settle(None)
        result = await self._store.execute_sql(query, parameters)
        return cast("list[dict[str, Any]] | int", self.clean_result(result))

    @_at_home
    async def _get_user_id_by_thread(self, thread_id: str) -> str | None:
        """The owner's id, which is part of the names of elements' contents; None for a thread that is nobody's."""
        return (await self._reads.author(thread_id)).get("userId")

    async def _get_user_identifer_by_id(self, user_id: str) -> str:
        """A user's login name. Raises KeyError for one who is unknown."""
        found = await self.execute_sql(
            "SELECT identifier FROM users WHERE id = :user_id", {"user_id": user_id}
        )
        if not isinstance(found, list) or not found:
            raise KeyError("no user has this id")
        return str(found[0]["identifier"])

    async def get_current_timestamp(self) -> str:
        """The present time: UTC, ISO 8601, with a `Z`."""
        return cleaning.now()

    def clean_result(self, obj: Any) -> Any:
        """`obj` with every UUID in its dicts and lists as text."""
        if isinstance(obj, dict):
            return {key: self.clean_result(value) for key, value in obj.items()}
        if isinstance(obj, list):
            return [self.clean_result(item) for item in obj]
        return str(obj) if isinstance(obj, uuid.UUID) else obj

    # ---- users

    @override
    @_timed
    async def get_user(self, identifier: str) -> PersistedUser | None:
        """The user with this login name, or None. Who was seen before is known also while the database is away."""
        self._log_call("get_user")
        return await self._people.find(identifier)

    @override
    @_at_home
    async def create_user(self, user: User) -> PersistedUser | None:
        """Store a user, or replace the metadata of the one with this identifier; the stored user."""
        self._log_call("create_user")
        stored = await self._people.save(user)
        return await self.get_user(user.identifier) if self._own.get_user else stored

    async def _find_user(self, identifier: str) -> PersistedUser | None:
        found = await self._reads.user(identifier)
        return dicts.user(found) if found else None

    async def _save_user(self, user: User, moment: int | None) -> PersistedUser | None:
        """`moment`: of a login that the database hears of late; who was deleted since is not made again."""
        identifier, metadata = cleaning.text(user.identifier), cleaning.json(user.metadata or {})
        size, most = len(identifier.encode()) + len(metadata), self.settings.change_max_bytes
        if size > most:
            error = changes.too_large("users", size, most)
            self._engine.refusals.note(error)
            raise error
        if moment is not None:
            await self._store.prepare()  # the name's id is the database's
        stored = await self._barrier.write_now(
            self._statements.create_user,
            id=str(uuid.uuid4()),
            identifier=identifier,
            metadata=metadata.decode(),
            createdAt=cleaning.now(),
            name_id=self._store.name_id(identifier),
            moment=FOREVER if moment is None else moment,
        )
        return dicts.user(stored) if stored else None

    # ---- threads

    @override
    @placed
    def update_thread(
        self,
        thread_id: str,
        name: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[Any, Any] | None = None,
        tags: list[str] | None = None,
    ) -> Awaitable[None]:
        """Create or change a thread. None leaves a field alone; `metadata` is merged, None deletes a key.

        Within a chat, `user_id` becomes the owner where there is none; elsewhere the thread is passed on to them.
        A chat that was begun while the database could not tell who is there belongs to whoever began it.
        """
        self._log_call("update_thread")
        claimant = claimant_of(thread_id, self._store.ids.spell) if user_id is None else None
        variables = variables_of(metadata)
        if variables is not None:
            metadata = self._variables.changed(thread_id, variables)
        # A variable may be called `name`; the thread has been named by its first message, or by hand.
        named = variables is None
        passes_on = user_id is not None and not is_in_a_chat()
        owner = self._owner(user_id) if user_id is not None else None
        make = partial(changes.thread, claimant=claimant, owner=owner, names=named, passes_on=passes_on)
        change = self._made(make, thread_id, name, user_id, metadata, tags)
        if user_id is not None:
            self._owners.forget(change.key)
        return self._door.pass_through(partial(self._submit, change), change.size)

    def _owner(self, user_id: str) -> Claimant | None:
        user = user_at_hand(user_id) or self._people.known(self._store.ids.spell(user_id) or "")
        return claim_of(user) if user is not None else None

    @override
    @_timed
    async def get_thread(self, thread_id: str) -> ThreadDict | None:
        """The thread with its steps by time, their feedback, and its elements with fresh URLs; or None."""
        self._log_call("get_thread")
        if self._own.get_all_user_threads:
            found = await self.get_all_user_threads(thread_id=thread_id)
            return found[0] if found else None
        return await self._thread(thread_id)

    async def _thread(self, thread_id: str) -> ThreadDict | None:
        await self._attachments.settle(self._store.ids.spell(thread_id) or "")
        found = await self._reads.thread(thread_id)
        if not found:
            return None
        (thread,) = await self._signed([found])
        self._variables.give(thread_id, thread["metadata"] or {})
        return thread

    async def _signed(self, found: list[dicts.Document]) -> list[ThreadDict]:
        def convert() -> list[ThreadDict]:
            return [dicts.thread(document) for document in found]

        many = sum(len(document.get("steps", ())) for document in found) > _MANY_STEPS
        threads = await run_in_thread(convert) if many else convert()
        await self._attachments.sign([element for thread in threads for element in thread["elements"] or ()])
        return threads

    @override
    @_timed
    async def get_thread_author(self, thread_id: str) -> str:
        """The owner's identifier; empty for a thread that is unknown or nobody's."""
        self._log_call("get_thread_author")
        owner = await self._reads.author(thread_id)
        return owner.get("userIdentifier") or ""

    @override
    @placed
    def delete_thread(self, thread_id: str) -> Awaitable[None]:
        """Delete a thread and all that is in it, then its elements' content. Later writes to it are dropped."""
        self._log_call("delete_thread")
        key = self._store.ids.spell(thread_id)
        return self._door.pass_through(partial(self._delete, "threads", key, key, thread_id=key))

    @_at_home
    async def purge(
        self,
        older_than: timedelta,
        *,
        by: Literal["activity", "created"] = "activity",
        user: str | None = None,
        without_owner: bool = False,
        keep_favorites: bool = False,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Delete the threads without a step for so long, with all that is in them; how many.

        `by`: "created" goes by when a thread was begun. `user`: one login name's only; `without_owner`: nobody's only;
        `keep_favorites`: not where a step is marked. `dry_run`: only count them. `progress` gets how many are deleted
        so far. A job for one process; what it deletes is deleted as by `delete_thread`. Raises a DatabaseError.
        """
        before = (datetime.now(UTC) - older_than).strftime("%Y-%m-%dT%H:%M:%S")
        outdated = Outdated(before, by, user, without_owner, keep_favorites)
        await self._barrier.settle(None)
        if dry_run:
            return await outdated.count(self._store)
        return await purge(self._store, self.delete_thread, outdated, progress=progress)

    @_at_home
    async def delete_user(
        self,
        identifier: str,
        *,
        dry_run: bool = False,
        patience: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Deleted:
        """Delete a person: their row, their threads with all that is in them and its contents; what there was.

        What their open sessions still write is dropped. Who logs in with this name from now on is somebody else.
        Returns when also the journals' folder, with its dead letters and uploads, has nothing of it any more; for that
        it waits `patience` seconds at most, by default as long as journals are kept and a minute. `dry_run`: only
        look. `progress` gets how many threads are deleted so far. Raises a DatabaseError, or DeletionIncomplete where
        something is left; then it is to be called again.
        """
        if patience is None:
            patience = patience_for(self.settings.journal_keep)
        identifier = cleaning.text(identifier)
        folder = self.settings.journal_dir
        deletion = Deletion(
            identifier, self._store, self.delete_thread, self._attachments, self._engine, folder, patience
        )
        await self._barrier.settle(None)
        if dry_run:
            return await deletion.look()
        self._people.forget(identifier)
        return await deletion.carry_out(progress)

    @override
    @_timed
    async def list_threads(
        self, pagination: Pagination, filters: ThreadFilter
    ) -> PaginatedResponse[ThreadDict]:
        """A page of a user's threads, newest activity first, which stands in their `createdAt`.

        The cursor is the last thread's id; an unknown one gives an empty page. `search` looks, in whatever
        case, into names, inputs and outputs, by its first 200 characters; `feedback` keeps threads with a step
        so rated. Raises ValueError without `userId`, and SearchBusy where too many search at once.
        """
        self._log_call("list_threads")
        if not filters.userId:
            raise ValueError("userId is required")
        if not filters.search:
            return await self._list_threads(pagination, filters)
        async with self._searches.slot(filters.userId):
            return await self._list_threads(pagination, bounded(filters))

    @property
    def _most_threads(self) -> int:
        """Of one page; without a limit, what the databases can count and one more."""
        return 2**31 - 2 if self.user_thread_limit is None else self.user_thread_limit

    async def _list_threads(
        self, pagination: Pagination, filters: ThreadFilter
    ) -> PaginatedResponse[ThreadDict]:
        if self._own.get_all_user_threads:
            cursor = pagination.cursor and (self._store.ids.spell(pagination.cursor) or pagination.cursor)
            pagination = Pagination(first=pagination.first, cursor=cursor)
            return page_of(await self.get_all_user_threads(user_id=filters.userId) or (), pagination, filters)
        first = min(max(0, pagination.first), self._most_threads)
        found = await self._page(filters, pagination.cursor, first + 1, self.settings.list_include_steps)
        page = found[:first]
        info = PageInfo(
            hasNextPage=bool(page[-1]["followed"] if page else found),
            startCursor=page[0]["id"] if page else None,
            endCursor=page[-1]["id"] if page else None,
        )
        if page:
            self._positions.remember(Cursor.of(filters, page[-1]["id"]), page[-1]["activity"])
        for thread in page:
            # Chainlit's page sorts and groups by this: a chat that goes on would stand where it began.
            thread["createdAt"] = thread["activity"] or thread["createdAt"]
        return PaginatedResponse(pageInfo=info, data=await self._signed(page))

    async def _page(
        self,
        filters: ThreadFilter,
        cursor: str | None,
        first: int,
        with_steps: bool,
        most_bytes: int | None = None,
    ) -> list[dicts.Document]:
        if with_steps:
            await self._attachments.settle(None)
        return await self._reads.page(
            Page(
                filters.userId or "",
                first,
                cursor,
                self._positions.of(Cursor.of(filters, self._store.ids.spell(cursor or ""))),
                filters.search,
                filters.feedback,
                with_steps,
                most_bytes,
            )
        )

    @_at_home
    async def get_all_user_threads(
        self, user_id: str | None = None, thread_id: str | None = None
    ) -> list[ThreadDict] | None:
        """A user's threads up to `user_thread_limit`, of any size, or one thread, with steps and elements."""
        self._log_call("get_all_user_threads")
        if thread_id is not None:
            thread = await self._thread(thread_id)
            return [thread] if thread else []
        everything = ThreadFilter(userId=user_id)
        if not user_id:
            return []
        found = await self._page(everything, None, self._most_threads, with_steps=True, most_bytes=_ANY_SIZE)
        return await self._signed(found)

    # ---- steps

    @override
    @placed
    def create_step(self, step_dict: StepDict) -> Awaitable[None]:
        """Create or change a step; what `step_dict` leaves out or has as None stays as it is."""
        self._log_call("create_step")
        change = self._made(_changed_step if _changing.get() else changes.step, step_dict)
        return self._after_its_thread(change) if self._own.update_thread else self._door.write(change)

    def _after_its_thread(self, change: Upsert) -> Awaitable[None]:
        """As Chainlit's layer does it, which makes the thread of each step by `update_thread`."""

        async def write() -> None:
            if change.thread_id is not None:
                await self.update_thread(change.thread_id)
            await self._door.write(change)

        return self._door.enter(partial(Deferred, write), change.size)

    @override
    @placed
    def update_step(self, step_dict: StepDict) -> Awaitable[None]:
        """The same as `create_step`: whichever comes first creates the row; but not one that was deleted."""
        self._log_call("update_step")
        if self._own.create_step:
            return self._as_a_change(step_dict)
        change = self._made(_changed_step, step_dict)
        return self._after_its_thread(change) if self._own.update_thread else self._door.write(change)

    def _as_a_change(self, step_dict: StepDict) -> Awaitable[None]:
        """What a subclass has `create_step` do with it; it changes a step all the same, and makes none."""
        with _as_changing():
            waiting = self.create_step(step_dict)

        async def wait() -> None:
            with _as_changing():
                await waiting

        return wait()

    @override
    @placed
    def delete_step(self, step_id: str) -> Awaitable[None]:
        """Delete a step, its descendants, their feedback and elements, then the elements' content."""
        self._log_call("delete_step")
        key, thread_id = self._to_delete(step_id)
        if key is None:
            return NOTHING
        return self._door.enter(partial(self._delete_step, key, thread_id))

    def _delete_step(self, key: str, thread_id: str | None) -> Awaitable[None]:
        if self._attachments.steps - {key}:
            # Which of them are below this one can't be asked any more once it is deleted.
            return Deferred(partial(self._delete_with_uploads_below, key, thread_id))
        return self._delete("steps", key, thread_id, steps={key})

    async def _delete_with_uploads_below(self, key: str, thread_id: str | None) -> None:
        try:
            below = await self._reads.steps_below(key)
        except DatabaseError:  # the delete itself will wait for the database; its own elements are known
            below = []
        await self._delete("steps", key, thread_id, steps={key, *below})

    @_timed
    async def get_step(self, step_id: str) -> StepDict | None:
        """The step with its feedback, or None."""
        self._log_call("get_step")
        found = await self._reads.step(step_id)
        return dicts.step(found) if found else None

    @override
    @_timed
    async def get_favorite_steps(self, user_id: str) -> list[StepDict]:
        """The steps of the user's threads whose metadata says `favorite`, newest first."""
        self._log_call("get_favorite_steps")
        return [dicts.step(document) for document in await self._reads.favorite_steps(user_id)]

    @override
    async def set_step_favorite(self, step_dict: StepDict, favorite: bool) -> StepDict:
        """Mark a step as a favourite, or no longer; the step as it is then.

        Chainlit lists a person's favourites in each of their chats: the step may be of another thread, and is not one
        of those that wait for this chat's first message.
        """
        step_dict["metadata"] = {**(step_dict.get("metadata") or {}), STAR: favorite}
        session = chat_at_hand()
        is_here = not self._is_elsewhere(session, step_dict["threadId"])
        if self._own.create_step or self._own.update_step or is_here:
            await self.update_step(step_dict)
            return step_dict
        starred = {key: step_dict.get(key) for key in ("id", "threadId", "metadata")}
        await self._door.pass_through(partial(self._submit, self._made(changes.step, starred)))
        return step_dict

    # ---- feedback

    @override
    @placed
    def upsert_feedback(self, feedback: Feedback) -> Awaitable[str]:
        """Store a feedback and return its id. Its thread is the step's where it names none.

        Raises RowError when it names no thread and the step is unknown, as far as the database can tell.
        """
        self._log_call("upsert_feedback")
        values = {**asdict(feedback), "id": feedback.id or str(uuid.uuid4())}
        if feedback.id and feedback.comment is None:
            values["comment"] = ""  # a feedback is changed whole
        values["threadId"] = values["threadId"] or None
        change = self._made(partial(changes.feedback, in_its_steps_thread=True), values)
        if self._is_elsewhere(chat_at_hand(), change.thread_id):
            queued = self._door.drop("feedbacks")
        else:
            queued = self._door.pass_through(partial(self._submit, change), change.size)
        return Deferred(partial(self._stored_feedback, feedback, change, queued))

    async def _stored_feedback(self, feedback: Feedback, change: Upsert, queued: Awaitable[None]) -> str:
        await queued
        if change.thread_id is None and await self._is_unknown(feedback.forId):
            raise RowError("feedbacks: the feedback names no thread, and its step is unknown")
        feedback.id = change.key
        return change.key

    async def _is_unknown(self, step_id: str) -> bool:
        """Whether there is no such step, behind all that is queued; not while the database can't tell."""
        try:
            return await self.get_step(step_id) is None
        except DatabaseError:
            return False

    @override
    @placed
    def delete_feedback(self, feedback_id: str) -> Awaitable[bool]:
        """Delete a feedback, if it is there."""
        self._log_call("delete_feedback")
        key, thread_id = self._to_delete(feedback_id)
        deleted = self._door.pass_through(partial(self._delete, "feedbacks", key, thread_id))

        async def true() -> bool:
            await deleted
            return True

        return Deferred(true)

    # ---- elements

    @override
    @placed
    def create_element(self, element: Element) -> Awaitable[None]:
        """Store an element's content, then its row. Without `for_id`: nothing.

        Returns when both are done or, where the storage fails, when the content is on this machine's disk, from where
        it is tried again.
        """
        self._log_call("create_element")
        if not element.for_id:
            return NOTHING
        # At once: Chainlit changes the element afterwards.
        change = self._made(changes.element, element.to_dict())
        content = self._attachments.note(element, change.key)
        if content is None or self._is_elsewhere(chat_at_hand(), change.thread_id):
            return self._door.write(change)
        owner = partial(self._owners.of, change.thread_id)
        size = change.size + len(content.content or "")
        return self._door.enter(partial(self._attachments.store, content, change, owner), size)

    @override
    @_timed
    async def get_element(self, thread_id: str, element_id: str) -> ElementDict | None:
        """The element with a fresh URL, or None."""
        self._log_call("get_element")
        await self._attachments.settle(self._store.ids.spell(thread_id) or "")
        found = await self._reads.element(thread_id, element_id)
        if not found:
            return None
        element = dicts.element(found)
        await self._attachments.sign([element])
        return element

    @override
    @placed
    def delete_element(self, element_id: str, thread_id: str | None = None) -> Awaitable[None]:
        """Delete an element's row, then its content."""
        self._log_call("delete_element")
        key, chats_thread = self._to_delete(element_id)
        thread_key = self._store.ids.spell(thread_id) if thread_id else None
        if key is None or (thread_id and thread_key is None):
            return NOTHING  # no row can have them
        if self._is_elsewhere(chat_at_hand(), thread_key):
            return self._door.drop("elements")
        thread_key = chats_thread or thread_key
        return self._door.enter(partial(self._delete, "elements", key, thread_key, element_id=key))

    # ---- what they share

    def _made(self, make: Callable[..., Upsert], *arguments: Any) -> Upsert:
        try:
            change = self._store.ids.enter(self._in_its_chat(make(*arguments)))
            changes.check_size(change, self.settings.change_max_bytes)
        except RowError as error:
            self._engine.refusals.note(error)
            raise
        self._beginnings.note(change)
        if EXTRA in change.row:
            self._engine.counts.unknown_keys[change.table] += len(change.row[EXTRA])
        return change

    def _in_its_chat(self, change: Upsert) -> Upsert:
        """What a chat writes is in the chat's thread where it names none: its client may name a row of another's."""
        session = chat_at_hand() if change.thread_id is None else None
        return changes.put_into(change, session.thread_id) if session is not None else change

    def _is_elsewhere(self, session: WebsocketSession | None, thread_id: str | None) -> bool:
        return is_elsewhere(session, thread_id, self._store.ids.spell)

    def _to_delete(self, row_id: str) -> tuple[str | None, str | None]:
        """A row's id, and the thread that it is deleted in: the chat's at hand, or any. No id where no row is meant."""
        spell, session = self._store.ids.spell, chat_at_hand()
        if session is None:
            return spell(row_id), None
        thread_id = spell(session.thread_id)
        return (spell(row_id) if thread_id is not None else None), thread_id

    def _delete(
        self, table: str, key: str | None, in_thread: str | None = None, **contents: Any
    ) -> Awaitable[None]:
        """Queue a delete at once; with it go `contents` that are on their way, named as for `Attachments.drop`."""
        if key is None:
            return NOTHING  # no row can have it
        delete = Delete(table, key, in_thread)
        deleted = self._submit(delete, committed=True)
        done: Awaitable[None] = Deferred(partial(self._carried_out, delete, deleted))
        if contents:
            done = self._attachments.follow(self._attachments.drop(**contents), done)
        return Deferred(partial(self._deleted, delete, done))

    async def _carried_out(self, delete: Delete, deleted: Awaitable[None]) -> None:
        await deleted
        if self.settings.writer == "external":
            await self._confirm(delete)

    async def _deleted(self, delete: Delete, done: Awaitable[None]) -> None:
        await done
        if delete.table != "feedbacks":
            await self._attachments.collect()

    async def _confirm(self, delete: Delete) -> None:
        """Raises a RowError for a delete that the writing process has given up, as the database refuses it."""
        undone = self._statements.undone(delete.table)
        named = {"id": delete.key, "thread_id": delete.thread_id, "moment": delete.moment}
        if await self._barrier.write_now(undone, **named):
            raise RowError("the database refuses the deletion; `forebay dead-letters list` says why")

    @_at_home
    async def _settle_all(self) -> None:
        await self._barrier.settle(None)

    def _log_call(self, method: str) -> None:
        if self.show_logger:
            logger.info("call method=%s", method)
