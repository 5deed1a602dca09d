"""SQLAlchemy sessions for the application's own statements, which see what was written before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only
from typing_extensions import override

_SETTLE = "forebay_settle"


def sessions(engine: AsyncEngine, settle: Callable[[], Awaitable[None]]) -> async_sessionmaker[AsyncSession]:
    """Makes sessions whose first statement in each transaction waits for `settle`."""
    return async_sessionmaker(
        engine, expire_on_commit=False, sync_session_class=_SettledSession, info={_SETTLE: settle}
    )


class _SettledSession(Session):
    """Waits before it takes a connection, which the writer may need; then no more, as it may hold locks."""

    is_settled = False

    @override
    def get_bind(self, *arguments: Any, **named: Any) -> Any:
        """Where the next statement goes: SQLAlchemy asks before each."""
        if not self.is_settled:
            self.is_settled = True
            try:
                await_only(self.info[_SETTLE]())
            except MissingGreenlet:  # somebody asks who runs no statement
                self.is_settled = False
        return super().get_bind(*arguments, **named)


@sa.event.listens_for(_SettledSession, "after_transaction_end")
def _begin_anew(session: _SettledSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.is_settled = False
