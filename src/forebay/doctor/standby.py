"""The standby of FOREBAY_READ_URL: does it follow this database, how closely, and has it connections enough."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import sqlalchemy as sa

from forebay.database.migrations.failures import translated
from forebay.database.store import Store
from forebay.doctor.findings import Finding, error, ok, warning
from forebay.errors import DatabaseError

_LAG_BYTES, _LAG_SECONDS = 64 * 1024 * 1024, 30.0
_SAME = (
    "SELECT (SELECT system_identifier FROM pg_control_system()) AS system,"
    " (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline"
)
_PRIMARY = sa.text(
    f"{_SAME}, pg_wal_lsn_diff(CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn() END, '0/0')::bigint AS place"
)
_STANDBY = sa.text(
    f"{_SAME}, pg_is_in_recovery() AS follows, pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint AS place,"
    " extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS seconds,"
    " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS most"
)


async def check_standby(
    store: Store, pool_size: int, replicas: int, patience: float
) -> AsyncIterator[Finding]:
    """Nothing where none is set. `patience` in seconds."""
    if store.replica is None:
        return
    try:
        with translated(), anyio.fail_after(patience):
            async with store.replica.engine.connect() as standby, store.engine.connect() as primary:
                # First the standby, or what is written in between would look as if it were ahead.
                there = (await standby.execute(_STANDBY)).mappings().one()
                here = (await primary.execute(_PRIMARY)).mappings().one()
    except (DatabaseError, TimeoutError) as failed:
        said = f"{store.replica.location}: {failed or 'no answer in time'}; reads go to the primary"
        yield error(
            "replica", said, "check FOREBAY_READ_URL, and whether the standby runs and accepts readers"
        )
        return
    yield _follows(store.replica.location, here, there)
    wanted = (pool_size - 1) * replicas
    said = f"{wanted} wanted ({replicas} times FOREBAY_POOL_SIZE - 1), {there['most']} allowed"
    if wanted > there["most"]:
        yield error("replica pool", said, "raise the standby's max_connections, or lower FOREBAY_POOL_SIZE")
    else:
        yield ok("replica pool", said)


def _follows(location: str, here: sa.RowMapping, there: sa.RowMapping) -> Finding:
    if here["system"] != there["system"]:
        return error(
            "replica",
            f"{location} is of another cluster",
            "let FOREBAY_READ_URL name a standby of this database",
        )
    if not there["follows"]:
        return error(
            "replica",
            f"{location} is no standby; reads go to the primary",
            "let FOREBAY_READ_URL name a standby",
        )
    behind = max(0, (here["place"] or 0) - (there["place"] or 0))
    # On a quiet primary the last transaction is old, and the standby has it all the same.
    seconds = (there["seconds"] or 0.0) if behind else 0.0
    said = f"{location} is {behind} bytes and {seconds:.1f} s behind"
    if here["timeline"] != there["timeline"]:
        return warning(
            "replica",
            f"{said}; its last checkpoint is of another timeline ({there['timeline']}, here {here['timeline']})",
            "there was a failover: if this stays for longer than checkpoint_timeout, the standby must be made anew",
        )
    if behind > _LAG_BYTES and seconds > _LAG_SECONDS:
        return warning(
            "replica", said, "look at its disk, at the network, and at long queries that hold it up"
        )
    return ok("replica", said)
