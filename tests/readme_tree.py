"""The README's tree of rooms, from the rooms' docstrings: `python -m tests.readme_tree` writes it."""

import ast
from pathlib import Path

from core.files.install import ROOT

README = ROOT / "README.md"
BEGIN, END = "<!-- rooms: python -m tests.readme_tree -->\n", "<!-- end of rooms -->\n"
HOUSES = ("sweep", "core", "reports", "tests")


def tree() -> str:
    """One line for each room, and for each file at the top of a house, with what it is for."""
    lines = []
    for house in HOUSES:
        tops = [] if house == "tests" else sorted((ROOT / house).glob("[a-z]*.py"))
        rooms = sorted((ROOT / house).rglob("__init__.py"), key=lambda path: path.parts)
        lines.append((f"{house}/", purpose(ROOT / house / "__init__.py")))
        lines += [(f"  {path.name}", purpose(path)) for path in tops]
        for init in rooms[1:]:
            depth = len(init.parent.relative_to(ROOT).parts) - 1
            if house != "tests" or depth == 1:
                lines.append(("  " * depth + f"{init.parent.name}/", purpose(init)))
    width = max(len(name) for name, _ in lines) + 2
    return "```\n" + "".join(f"{name:{width}}{text}\n" for name, text in lines) + "```\n"


def purpose(path: Path) -> str:
    """The first line of a file's docstring without its full stop. Raises TypeError where it has none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise TypeError(f"{path} says nothing of what it is for")
    return docstring.split("\n\n")[0].replace("\n", " ").removesuffix(".")


def with_tree(text: str) -> str:
    """The README with the tree as the rooms are now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + tree() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_tree(README.read_text(encoding="utf-8")), encoding="utf-8")
