"""Tables of what was measured, from the saved results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadtests import load as load_test
from loadtests import people as people_test

from forebay.bench import tables
from forebay.bench.growth import Growth
from forebay.bench.plan import CHAINLIT, FOREBAY, FOREBAY_READS, SQLALCHEMY
from forebay.bench.report import Report
from scripts.markdown import table

_ROOT = Path(__file__).parents[1]
_RESULTS = _ROOT / "loadtests" / "results"
_PEERS = (SQLALCHEMY, CHAINLIT)
_KEYS = {SQLALCHEMY: "sqlalchemy", CHAINLIT: "chainlit"}  # what the tests with people call them
_LOADS = {"small": "1,000 of 100 KB", "large": "20 of 50 MB"}
_STORAGES = {"folder": "the folder", "bytes": "a cloud of 50 ms"}
_LAYERS = {"forebay": "**forebay**", "sqlalchemy": f"`{SQLALCHEMY}`"}


def bench(path: str) -> str:
    """All tables of `forebay bench`."""
    return tables.markdown(Report.load(_ROOT / path))


def growth(path: str) -> str:
    """All tables of `forebay bench --growth`."""
    return tables.markdown(Growth.load(_ROOT / path))


def people() -> str:
    """How much of a server the layers take."""
    return people_test.markdown(_read(people_test.RESULTS))


def load() -> str:
    """What people met, and what was lost of it."""
    return load_test.markdown(_read(load_test.RESULTS))


def elements() -> str:
    """Storing files, beside Chainlit's layer."""
    header = ("files", "storage", "layer", "MB/s", "peak memory, MiB")
    rows = []
    for name, values in _read(_RESULTS / "elements.json")["medians"].items():
        kind, storage, layer = name.split()
        speed, peak = f"{values['mb_per_second']:,.0f}", f"{values['peak_mib']:,.0f}"
        rows.append((_LOADS[kind], _STORAGES[storage], _LAYERS[layer], speed, peak))
    return table(header, rows, right=2)


def costs() -> str:
    """What one person can make the others wait."""
    found = _read(_RESULTS / "costs.json")
    header = ("case", "took", "loop", "read", "write", "answer", "Chainlit")
    blocks = [f"On {found['machine']}."]
    for database, name in (("postgresql", "PostgreSQL"), ("sqlite", "SQLite")):
        rows = [
            (
                one["case"] if one["outcome"] == "done" else f"{one['case']}: {one['outcome']}",
                *(f"{one[figure]:.2f}" for figure in ("took", "loop", "read", "write")),
                f"{one['answer']:.1f}",
                f"{one['chainlit']:.2f}",
            )
            for one in found["figures"]
            if one["database"] == database
        ]
        blocks.append(f"**{name}**\n\n{table(header, rows, right=6)}")
    return "\n\n".join(blocks)


def ratios(path: str) -> str:
    """forebay beside its peers, in one small table."""
    report = Report.load(_ROOT / path)
    header = ("forebay beside …", *(f"`{peer}`" for peer in _PEERS))
    readings = {
        "to open a chat of 50 steps": "get_thread, 50 steps",
        "the sidebar of somebody with 1,000 chats": "first page, 1,000 threads",
    }
    rows = [
        ("durable writes a second", *(_times(_writes(report, FOREBAY), _writes(report, peer)) for peer in _PEERS)),
        ("CPU a write", *(_part(_cpu(report, FOREBAY), _cpu(report, peer)) for peer in _PEERS)),
        *(
            (label, *(_part(report.read(FOREBAY_READS, name), report.read(peer, name)) for peer in _PEERS))
            for label, name in readings.items()
        ),
        ("answers that were shown, and are stale or missing in the database", *map(_lost, _PEERS)),
    ]  # fmt: skip
    return table(header, rows, right=2)


def _writes(report: Report, layer: str) -> float | None:
    return report.write(layer, "writes_per_second")


def _cpu(report: Report, layer: str) -> float | None:
    return report.write(layer, "cpu_us_per_write")


def _times(mine: float | None, theirs: float | None) -> str:
    return f"{mine / theirs:,.0f} ×" if mine and theirs else "-"  # noqa: RUF001 - that is the sign


def _part(mine: float | None, theirs: float | None) -> str:
    """`1/8`: an eighth of theirs. Beside what is close, with a figure more."""
    if not (mine and theirs):
        return "-"
    share = theirs / mine
    return f"1/{share:,.0f}" if share >= 10 else f"1/{share:.1f}"


def _lost(peer: str) -> str:
    medians = _read(people_test.RESULTS)["medians"]
    mine, theirs = (f"{one['answers_lost']:.0f}" for one in (medians["forebay"], medians[_KEYS[peer]]))
    return f"{mine}, not {theirs}, of {medians['forebay']['answers']:.0f}"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
