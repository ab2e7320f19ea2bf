"""The house: what lies in which room, and which room may import which. See CONTRIBUTING.md."""

import ast
import graphlib
from pathlib import Path

import pytest

from core.files.install import ROOT
from tests.readme_tree import HOUSES, README, with_tree

MODULES = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path
    for house in ("core", "sweep", "reports")
    for path in sorted((ROOT / house).rglob("*.py"))
    if path.name != "__init__.py"
}
FILES_IN_A_ROOM = 8
MAY_IMPORT = {  # room -> of `sweep` and `reports`, all that its files may import; every room may import core
    "core": set(),
    "reports": set(),
    "sweep.study": set(),
    "sweep.tracking": {"sweep.events", "sweep.failures", "sweep.stop"},
    "sweep.trial": {"sweep.events"},
    "sweep.plan": {"sweep.study", "sweep.stop", "reports.leaderboard", "reports.units"},
}
NEVER = {"sweep.worker": {"sweep.search", "sweep.tracking", "sweep.study"}}


def imports(path: Path) -> set[str]:
    """The modules of this repository that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & MODULES.keys()


def within(module: str, rooms: set[str]) -> bool:
    """Whether a module is one of these rooms' or modules' own."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


IMPORTS = {module: imports(path) for module, path in MODULES.items()}


def test_the_rooms_are_found() -> None:
    assert len(MODULES) > 80
    assert "core.files.files" in IMPORTS["sweep.driver"]


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_its_door_lets_in(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room, "core"}
    inside = [module for module in MODULES if within(module, {room})]
    assert inside
    assert [
        (module, found)
        for module in inside
        for found in sorted(IMPORTS[module])
        if not within(found, allowed)
    ] == []


@pytest.mark.parametrize("room", sorted(NEVER))
def test_a_room_does_not_know_some_others(room: str) -> None:
    inside = [module for module in MODULES if within(module, {room})]
    assert inside
    assert [
        (module, found) for module in inside for found in IMPORTS[module] if within(found, NEVER[room])
    ] == []


def test_no_circle() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()


@pytest.mark.parametrize(
    "room", sorted({path.parent for house in HOUSES for path in (ROOT / house).rglob("*.py")})
)
def test_a_room_is_small_and_says_what_it_is_for(room: Path) -> None:
    files = [
        path for path in room.glob("*.py") if path.name not in ("__init__.py", "__main__.py", "conftest.py")
    ]
    assert len(files) <= FILES_IN_A_ROOM
    body = ast.parse((room / "__init__.py").read_text(encoding="utf-8")).body
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    # which puts the import path in order before anything else
    assert len(body) == 1 or room == ROOT / "sweep"


def test_the_readme_s_tree_is_that_of_the_rooms() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tree(text) == text, "run python -m tests.readme_tree"
