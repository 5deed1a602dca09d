"""What a dead letter says of why its row was refused."""

from __future__ import annotations

from forebay.journal.dead_letters import DeadLetters
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, accounted_for, dead_letters, new_id


async def test_a_letter_names_the_constraint_and_no_value(
    migrated_postgres_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(migrated_postgres_url)
    thread_id = await a_thread(layer)
    await layer.execute_sql("ALTER TABLE steps ADD CONSTRAINT no_shouting CHECK (output <> 'SECRET')", {})
    await layer.create_step(a_step(thread_id, id=new_id(), output="SECRET"))
    await layer.flush()
    assert dead_letters(layer) == 1
    (letter,) = DeadLetters(layer.settings.journal_dir).find()
    assert "constraint no_shouting" in letter.error
    assert "SECRET" not in letter.error
    assert letter.sqlstate == "23514"
    assert accounted_for(layer)
