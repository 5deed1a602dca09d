"""The measurement of people who chat: it runs, sees every turn, and notices what is lost."""

from __future__ import annotations

import pytest
from loadtests.people import markdown, measure, medians
from loadtests.site import Layer

from tests.support.postgres import PostgresServer


@pytest.mark.parametrize("layer", ["forebay", "external"])
def test_people_on_forebay_lose_nothing(postgres_server: PostgresServer, layer: Layer) -> None:
    url = postgres_server.create_database()
    measured = measure(layer, url, people=3, turns=2, think=0)
    postgres_server.drop_database(url)

    assert (measured["answers"], measured["outputs"]) == (6, 12)
    assert (measured["answers_lost"], measured["outputs_lost"], measured["misplaced"]) == (0, 0, 0)
    assert measured["cpu_seconds"] > 0
    assert measured["turn_p95_ms"] >= measured["turn_p50_ms"] >= measured["first_token_p50_ms"] > 0


def test_people_can_chat_on_a_layer_that_does_nothing() -> None:
    measured = measure("nothing", "", people=2, turns=2, think=0)

    assert measured["turns_per_second"] > 0
    assert "answers_lost" not in measured  # there is nothing to look at


def test_the_table_compares_each_round_with_no_layer() -> None:
    def run(cpu: float, rate: float) -> dict[str, float]:
        times = {f"{name}_p{part}_ms": 1.0 for name in ("turn", "first_token") for part in (50, 95)}
        rest = {"cpu_ms_per_turn": cpu, "daemon_cpu_ms_per_turn": 0.0}
        return {"cpu_seconds": cpu, "turns_per_second": rate, **rest, **times}

    found = medians({"none": [run(2, 10), run(4, 10)], "forebay": [run(3, 9), run(5, 9)]})

    assert found["forebay"]["extra_cpu_percent"] == pytest.approx((50 + 25) / 2)
    assert found["forebay"]["turns_percent"] == pytest.approx(90)
    report = {"medians": found, "rounds_made": 2, "cpus": 2, "command": "this"}
    assert "| forebay, journal | 9.0 | 90 % | 4.00 | +38 % |" in markdown(report)
