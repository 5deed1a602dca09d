"""What one person may send to the real server costs that person alone."""

from __future__ import annotations

import uuid
from pathlib import Path

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.rows import rows

_RACE = Path(__file__).parent / "apps" / "race.py"
_MANY = 110  # refused rows that would make the writer pause


async def test_ids_that_no_row_can_have_harm_nobody_else(migrated_postgres_url: str, tmp_path: Path) -> None:
    with ChainlitServer(_RACE, tmp_path, {"TEST_DATABASE_URL": migrated_postgres_url}) as server:
        async with ChainlitClient(server.url, "ann") as ann, ChainlitClient(server.url, "eve") as eve:
            answer = await ann.say("before")
            for number in range(_MANY):
                feedback = {"forId": f"x{number}", "threadId": "nowhere", "value": 1, "comment": "c"}
                await eve.send("PUT", "/feedback", {"feedback": feedback})
            await eve.send("DELETE", "/feedback", {"feedbackId": "x"})
            assert (await eve.say("as well"))["output"].endswith("and all of it")
            assert (await ann.say("after"))["output"].endswith("and all of it")
            assert await ann.rate(answer["id"].upper(), 1)
            shown = await ann.thread(ann.thread_id.upper())
            assert shown["id"] == ann.thread_id
            assert {answer["id"]} <= {step["id"] for step in shown["steps"] if step["feedback"]}
            async with ChainlitClient(server.url, "eve", thread_id=str(uuid.uuid4())[:-1]) as lost:
                await lost.say("in a thread that can't be")
        server.stop()
    outputs = await rows(migrated_postgres_url, "SELECT output FROM steps WHERE type = 'user_message'")
    assert sorted(row["output"] for row in outputs) == ["after", "as well", "before"]
    assert list((tmp_path / ".forebay").glob("dead-letters*")) == []
