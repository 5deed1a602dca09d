"""What the package says of itself: its floors, its pins, and where its README leads."""

from __future__ import annotations

import re

from packaging.requirements import Requirement

from tests.deploy import files

_REQUIREMENTS = [Requirement(text) for text in files.project()["dependencies"]]
_README = (files.ROOT / "README.md").read_text()


def _pins(name: str) -> dict[str, str]:
    lines = (files.ROOT / name).read_text().splitlines()
    return dict(line.split(" ;")[0].strip().split("==", 1) for line in lines if "==" in line)


def test_every_pin_is_within_the_declared_range() -> None:
    runtime, development = _pins("requirements.txt"), _pins("requirements-dev.txt")
    for requirement in _REQUIREMENTS:
        assert requirement.specifier.contains(runtime[requirement.name]), requirement
        assert development[requirement.name] == runtime[requirement.name]


def test_every_dependency_has_a_floor() -> None:
    for requirement in _REQUIREMENTS:
        assert any(part.operator in {">=", "=="} for part in requirement.specifier), requirement


def test_the_pages_name_the_floor_of_chainlit() -> None:
    (chainlit,) = [requirement for requirement in _REQUIREMENTS if requirement.name == "chainlit"]
    (floor,) = [part.version for part in chainlit.specifier if part.operator == ">="]
    for page in ("README.md", "SECURITY.md", "docs/operations/change-over.md"):
        text = (files.ROOT / page).read_text()
        assert re.search(rf"Chainlit (?:before |must be )?{re.escape(floor)}\b", text), page


def test_the_readme_leads_somewhere_when_it_is_read_elsewhere() -> None:
    text = _README
    for rule in files.pyproject()["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert all(re.match(r"https://|#", target) for target in targets), targets
    prefixes = (
        files.project()["urls"]["Repository"],
        "https://raw.githubusercontent.com/",
        "https://chainlit.io",
    )
    assert all(target.startswith(prefixes) for target in targets if target[0] != "#"), targets
