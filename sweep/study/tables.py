"""The tables of keys in studies/README.md, made from the models that study files are validated with."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from sweep.study.setting import SECTIONS, Checked, Section, Setting

BLOCK = re.compile(
    r"(<!-- (\w+), made by `python -m sweep\.study --tables` -->\n).*?(<!-- end of the table -->)", re.DOTALL
)
HEAD = "| {} | meaning | allowed | default |\n|---|---|---|---|\n"


def with_tables(page: str, **files: type[Section]) -> str:
    """`page` with its tables up to date: the keys of each model in `files` between the marks of that name,
    and the keys of each section of settings between the marks `settings`."""
    tables = {name: table("key", file) for name, file in files.items()}
    tables["settings"] = "\n".join(
        table(f"`{home}`", Checked().model(section)) for home, section in SECTIONS.items()
    )
    return BLOCK.sub(lambda block: f"{block[1]}{tables[block[2]]}{block[3]}", page)


def table(title: str, section: type[Section]) -> str:
    """A Markdown table with a row for each key; keys of inner sections by path (`filters.max_width`)."""
    return HEAD.format(title) + "".join(f"| {' | '.join(cells)} |\n" for cells in _rows(section, ""))


def _rows(section: type[Section], path: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        inner = next((mark.model(kind) for mark in field.metadata if isinstance(mark, Checked)), None)
        setting = next((mark for mark in field.metadata if isinstance(mark, Setting)), None)
        if inner and kind not in SECTIONS.values():
            yield from _rows(inner, f"{path}{name}.")
            continue
        allowed = "[settings](#settings)" if inner else _allowed(setting) if setting else ""
        default = "required" if field.is_required() else "" if inner else _default(field)
        yield f"`{path}{name}`", setting.meaning if setting else field.description or "", allowed, default
        for entry in get_args(kind):
            if isinstance(entry, type) and issubclass(entry, Section):
                yield from _rows(entry, f"{path}{name}[n].")


def _allowed(setting: Setting) -> str:
    """The choices as they are written in a file, or else the text of the error line."""
    return ", ".join(f"`{choice}`" for choice in setting.choices) or setting.allowed


def _default(field: FieldInfo) -> str:
    if field.default_factory:  # depends on other keys: described in its meaning
        return ""
    default: Any = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{yaml.safe_dump(default, default_flow_style=True).splitlines()[0]}`"
