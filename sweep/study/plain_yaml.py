"""Reads YAML as plain data: tags, aliases, duplicate keys and keys that are not text are refused; `1e-4` is a
number and `on` is text.
"""

import re
from collections.abc import Hashable
from pathlib import Path

import yaml

from core.folders import shown_path
from sweep.study.errors import StudyError, shown

MAX_DIGITS = 40
# Pattern in PyYAML's error message for a common slip -> how to fix it.
HINTS = {
    r"expected (<block end>|',' or '[}\]]')|found unexpected end of stream": (
        "put text with { } or [ ] in quotes"
    ),
    r"mapping values are not allowed here": "put text with a colon in quotes, or look at the indentation",
    r"character '\\t' that cannot start": "indent with blanks, not with tabs",
    r"character '.' that cannot start": "put text that begins with it in quotes",
    r"unknown escape character": "put text with a backslash in single quotes",
}


def read_yaml(file: Path) -> object:
    """The values of a YAML file. Raises a StudyError of one line if it cannot be read."""
    try:
        return yaml.load(file.read_bytes().decode("utf-8-sig"), PlainLoader)  # a SafeLoader
    except OSError as error:
        raise StudyError(f"{shown_path(file)}: it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise StudyError(
            f"{shown_path(file)}: byte {error.start + 1} is {error.object[error.start]:#04x}, but the "
            f"file must be UTF-8; save it again with that encoding"
        ) from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise StudyError(
            f"{shown_path(file)}: {line}{error.problem or error.context}{_hint(error)}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-45
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise StudyError(f"{shown_path(file)}: it is not YAML: {reason}") from None


def _hint(error: yaml.MarkedYAMLError) -> str:
    return next(
        (f"; {hint}" for pattern, hint in HINTS.items() if re.search(pattern, error.problem or "")), ""
    )


class PlainLoader(yaml.SafeLoader):
    """A SafeLoader that refuses tags, aliases, duplicate keys and keys that are not text."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases and tags."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(f"the alias *{event.anchor} is not allowed, write the value again", event)
        if tag := getattr(event, "tag", None):
            raise _refusal(f"the tag {shown(tag)} is not allowed, a study is plain data", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Refuse keys that are not text and keys that are written twice."""
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _refusal(f"the key {shown(key.value)} is not a word, put it in quotes", key)
            if key.value in seen:
                raise _refusal(f"the key {shown(key.value)} is written twice, keep one", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse numbers of more than MAX_DIGITS digits."""
        if len(node.value) > MAX_DIGITS:  # Python 3.11 reads hexadecimal of any length, but cannot print it
            raise _refusal(f"the number {shown(node.value)} is too long", node)
        return super().construct_yaml_int(node)


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_yaml_int)
# PyYAML 6 follows YAML 1.1, where 1e-4 is text because it has no dot; in YAML 1.2 it is a number.
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
# In YAML 1.1 `on`, `off`, `yes` and `no` are booleans; in YAML 1.2 they are text, as settings that may be on,
# off or auto need it.
for letter in "oOyYnN":
    PlainLoader.yaml_implicit_resolvers[letter] = [
        (tag, pattern)
        for tag, pattern in PlainLoader.yaml_implicit_resolvers[letter]
        if tag != "tag:yaml.org,2002:bool"
    ]


def _refusal(problem: str, where: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    mark = where.start_mark
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)  # type: ignore[arg-type]  # the stubs add libyaml's marks
