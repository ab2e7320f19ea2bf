"""YAML as plain data: no tags, no aliases, no key twice, keys are words, `1e-4` is a number, and `on` is a
word.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from core.folders import shown_path
from sweep.study.errors import StudyError, shown

MAX_DIGITS = 40
# What libyaml's grammar says of a common slip -> what to do about it; the pattern is looked for in the
# message.
HINTS = {
    r"expected (<block end>|',' or '[}\]]')|found unexpected end of stream": "put text with { } or [ ] in quotes",
    r"mapping values are not allowed here": "put text with a colon in quotes, or look at the indentation",
    r"character '\\t' that cannot start": "indent with blanks, not with tabs",
    r"character '.' that cannot start": "put text that begins with it in quotes",
    r"unknown escape character": "put text with a backslash in single quotes",
}


def read_yaml(file: Path) -> Any:
    """The file's values; a StudyError says in one line why it cannot be read."""
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
    """A SafeLoader that refuses what plain data does not need."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refusal(
                f"the alias *{event.anchor} is not allowed, write the value again", event.start_mark
            )
        if tag := getattr(event, "tag", None):
            raise _refusal(f"the tag {shown(tag)} is not allowed, a study is plain data", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _refusal(f"the key {shown(key.value)} is not a word, put it in quotes", key.start_mark)
            if key.value in seen:
                raise _refusal(f"the key {shown(key.value)} is written twice, keep one", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:  # Python 3.11 reads hexadecimal of any length, but cannot print it
            raise _refusal(f"the number {shown(node.value)} is too long", node.start_mark)
        return super().construct_yaml_int(node)


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_yaml_int)
# PyYAML 6 follows YAML 1.1, where 1e-4 is text for want of a dot; YAML 1.2 reads the number that was meant.
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
# There `on`, `off`, `yes` and `no` are booleans too; in YAML 1.2 they are words, and a setting may be on, off
# or auto.
for letter in "oOyYnN":
    PlainLoader.yaml_implicit_resolvers[letter] = [
        (tag, pattern)
        for tag, pattern in PlainLoader.yaml_implicit_resolvers[letter]
        if tag != "tag:yaml.org,2002:bool"
    ]


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)
