"""Bringing a database to `forebay.schema`: an empty one, or one of Chainlit's SQLAlchemy layer since 2.0.

The revisions are Alembic's, in `versions`; the version table is `forebay_migrations`, so that an
application's own Alembic history stays its own. There is no env.py and no alembic.ini: neither Alembic's
command line nor its global proxies are used, so that one process can migrate two databases at the same time.

Reading order: `runner` (lock, retry, Alembic), `shape` (what is there), `todo` (what is missing, pure),
`work` (doing it), `activity` (the newest step of each thread), `failures` (which error is which).
"""

from forebay.database.migrations.runner import VERSION_TABLE, head, is_current, plan, upgrade

__all__ = ["VERSION_TABLE", "head", "is_current", "plan", "upgrade"]
