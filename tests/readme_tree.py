"""The README's tree of rooms, from the rooms' docstrings: `python -m tests.readme_tree` writes it."""

import ast
from pathlib import Path

from core.files.install import ROOT

README = ROOT / "README.md"
BEGIN, END = "<!-- rooms: python -m tests.readme_tree -->\n", "<!-- end of rooms -->\n"
HOUSES = ("sweep", "core", "reports", "tests")


def tree() -> str:
    """One line for each room, houses first, with what it is for."""
    rooms = [
        path.parent.relative_to(ROOT)
        for house in HOUSES
        for path in sorted((ROOT / house).rglob("__init__.py"), key=lambda path: path.parts)
        if house != "tests" or path.parent.parent in (ROOT, ROOT / "tests")
    ]
    names = ["  " * (len(room.parts) - 1) + f"{room.name}/" for room in rooms]
    width = max(map(len, names)) + 2
    lines = [f"{name:{width}}{purpose(ROOT / room)}" for name, room in zip(names, rooms, strict=True)]
    return "```\n" + "\n".join(lines) + "\n```\n"


def purpose(room: Path) -> str:
    """The room's docstring without its full stop. Raises TypeError where it has none."""
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    if not docstring:
        raise TypeError(f"{room}/__init__.py says nothing of what the room is for")
    return docstring.splitlines()[0].removesuffix(".")


def with_tree(text: str) -> str:
    """The README with the tree as the rooms are now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + tree() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_tree(README.read_text(encoding="utf-8")), encoding="utf-8")
