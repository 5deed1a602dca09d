"""Bringing a database to `forebay.schema`: an empty one, or one of Chainlit's SQLAlchemy layer since 2.0.

The revisions are Alembic's, in `versions`; the version table is `forebay_migrations`, so that an
application's own Alembic history stays its own. There is no env.py and no alembic.ini: neither Alembic's
command line nor its global proxies are used, so that one process can migrate two databases at the same time.

Reading order: `revision` (where it stands), `runner` (lock, retry, Alembic), `shape` (what is there), `todo` (what is
missing, pure), `work` (doing it), `activity` (the newest step of each thread), `failures` (which error is which).
Only who has something to do loads Alembic, which takes a tenth of a second.
"""

from sqlalchemy.ext.asyncio import AsyncEngine

from forebay.database.migrations.revision import VERSION_TABLE, head, is_complete, is_current

__all__ = ["VERSION_TABLE", "head", "is_current", "plan", "upgrade"]


async def upgrade(engine: AsyncEngine) -> list[str]:
    """Bring the database to `forebay.schema`, keeping every row; returns what was done, a line each.

    Nothing is done, and the list is empty, when it is there already. Several processes may call it at once:
    one works, the others wait. Writers go on meanwhile: on PostgreSQL, tables in use are altered within a
    short lock, and their indexes are built concurrently. That needs a connection of its own: no pooler in
    transaction mode, and no `command_timeout` of asyncpg's.

    Raises SchemaError when the tables are such that an operator must decide, and AccessError when they are not
    the user's (nothing was changed then); TransientError when they stay locked or can't be reached. Whatever
    ends it, the database works as before, and the next upgrade goes on from there.
    """
    if await is_complete(engine):
        return []
    from forebay.database.migrations import runner

    return await runner.upgrade(engine)


async def plan(engine: AsyncEngine) -> str:
    """The SQL that `upgrade` would run, or "" when there is nothing to do. Changes nothing.

    Raises what `upgrade` raises.
    """
    from forebay.database.migrations import runner

    return await runner.plan(engine)
