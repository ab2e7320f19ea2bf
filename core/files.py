"""Files written whole: temporary name, flush, rename. A reader sees the old file or the new one, never half of one."""
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.fail_point import fail_point


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary path beside `path`, flush what it wrote, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fail_point(f"write {path.name}")
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """NaN and infinity are refused: a number we cannot read back is a mistake of ours."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def content_key(*parts: Any) -> str:
    """A name made of what a thing was computed from: equal parts, equal key."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
