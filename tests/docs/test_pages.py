"""Every page: what is generated in it is up to date, its links lead somewhere, what it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from scripts.pages import GENERATORS, filled

from forebay.cli import main
from forebay.model import schema
from forebay.settings import ChainlitVariables, Settings, variable_of
from forebay.telemetry.catalogue import INSTRUMENTS
from tests.docs import texts

_README = texts.ROOT / "README.md"
_NOT_SETTINGS = {"FOREBAY_PORT", "FOREBAY_SERVICE_HOST"}  # what Kubernetes would set
_FORMER = {f"FOREBAY_FORMER_{name}".upper() for name in ChainlitVariables.model_fields}
_OF_COMMANDS = {str(parameter.envvar) for command in main.commands.values() for parameter in command.params}
_SETTINGS = {variable_of(name) for name in Settings.model_fields} | _NOT_SETTINGS | _FORMER | _OF_COMMANDS
_OWN = {"forebay_migrations", "forebay_owner", "forebay_imported", *schema.metadata.tables}
_INDEXES = {str(index.name) for table in schema.metadata.tables.values() for index in table.indexes}


@pytest.mark.parametrize("page", texts.PAGES, ids=texts.name_of)
def test_what_is_generated_is_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert filled(text) == text, "run `python -m scripts.pages`"


def test_everything_that_can_be_generated_is_on_a_page() -> None:
    used = {name for page in texts.PAGES for name in re.findall(r"<!-- generated: (\w+)", page.read_text())}
    assert used == set(GENERATORS)


def test_a_page_that_is_not_up_to_date_is_noticed() -> None:
    text = "<!-- generated: errors -->\nnothing\n<!-- end of errors -->\n"
    assert "`QueueFull`" in filled(text)
    assert filled(filled(text)) == filled(text)


@pytest.mark.parametrize("page", texts.PAGES, ids=texts.name_of)
def test_the_links_lead_somewhere(page: Path) -> None:
    for link in texts.links(page):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in texts.anchors(target), link


def test_every_page_can_be_reached() -> None:
    nav = yaml.safe_dump(yaml.load((texts.ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"])
    for page in texts.DOCS.rglob("*.md"):
        assert page.relative_to(texts.DOCS).as_posix() in nav
    for picture in (texts.DOCS / "pictures").iterdir():
        assert any(picture.name in link for page in texts.PAGES for link in texts.links(page)), picture.name


@pytest.mark.parametrize("page", texts.PAGES, ids=texts.name_of)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    settings = set(re.findall(r"\bFOREBAY_[A-Z_]+[A-Z]\b", text))
    others = {
        name for name in settings if name.startswith(("FOREBAY_TEST_", "FOREBAY_BENCH", "FOREBAY_DEMO"))
    }
    if page.name != "cli.md":  # whose twins are click's own
        assert settings - others <= _SETTINGS
    metrics = set(re.findall(r"\bforebay_[a-z_]+[a-z]\b", text)) - _OWN - _INDEXES
    assert metrics <= {instrument.exposed for instrument in INSTRUMENTS}
    commands = set(re.findall(r"(?:`|^    )forebay ([a-z][a-z-]+)", text, re.MULTILINE))
    assert commands <= set(main.commands)


def test_the_readme_is_a_first_page() -> None:
    assert len(_README.read_text().splitlines()) <= 150
    assert "on_app_startup" in _README.read_text()


# ---- the layout

_LAYOUT = texts.DOCS / "contributing" / "layout.md"
_SOURCE = texts.ROOT / "src" / "forebay"
_HAND_WRITTEN, _, _ROOMS = _LAYOUT.read_text().partition("<!-- generated: layout -->")


def test_the_layout_names_every_module_and_no_other() -> None:
    named, room = set(), Path()
    for heading, module in re.findall(r"^### ([\w/]+)$|^\| `(\w+\.py)` \|", _ROOMS, re.MULTILINE):
        if heading:
            room = Path(heading.removeprefix("forebay"))
        else:
            named.add(room / module)
    there = {path.relative_to(_SOURCE) for path in _SOURCE.rglob("*.py") if not path.name.startswith("__")}
    assert named == {path for path in there if path.parent.name != "versions"}


def _names_of_the_source() -> set[str]:
    trees = (ast.parse(path.read_text()) for path in _SOURCE.rglob("*.py"))
    kinds = ast.ClassDef | ast.FunctionDef
    return {node.name for tree in trees for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize("name", sorted({*re.findall(r"`([\w./]+)`", _HAND_WRITTEN)}))
def test_what_the_layout_names_is_there(name: str) -> None:
    if re.match(r"(?:\w+\.)?[A-Z]\w+$", name):
        assert name.rpartition(".")[2] in _names_of_the_source() | {"BaseStorageClient"}
    elif "/" in name or name.endswith(".py"):
        assert (texts.ROOT / name).exists() or [*_SOURCE.rglob(name.rstrip("/"))]
