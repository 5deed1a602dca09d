"""Contents whose elements do not name them any more are noted as garbage, in the transaction that has it so."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from forebay.database.sql.dialect import Expression, Sql
from forebay.model.schema import garbage


def note_garbage(sql: Sql, object_keys: Expression, which: Expression) -> Any:
    """Note those of the keys, each of which is there once, for which `which` is true."""
    found = sa.select(sql.digest(object_keys), object_keys, sql.moment()).where(which)
    insert = sql.insert(garbage).from_select(["key_hash", "object_key", "noted_at"], found)
    return insert.on_conflict_do_update(
        index_elements=["key_hash"], set_={"noted_at": insert.excluded.noted_at}
    )
