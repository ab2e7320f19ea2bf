"""Atomic writing of files, JSON as typed values, and checksums."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from core.errors import UserError
from core.files.fail_point import fail_point

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Kind = TypeVar("Kind")
ENDS_BYTES, SAMPLE_BYTES, SAMPLE_EVERY_BYTES = 2**20, 2**12, 2**22
FORBID_UNKNOWN = {"extra": "forbid"}


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary path beside `path`, flush what it wrote, then rename it to `path`.

    Readers see the old file or the new one, never a part of it.
    """
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
    """`write_whole` a text in UTF-8."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> Path:
    """`write_whole` a value as indented JSON, a dataclass as an object with its fields.

    NaN and infinity are no JSON and raise ValueError.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=asdict)
    return write_text(path, text + "\n")


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """The content of a JSON file as `kind`. Raises OSError, ValueError."""
    return from_json(json.loads(path.read_text(encoding="utf-8")), kind)


def from_json(value: object, kind: type[Kind]) -> Kind:
    """A value read from JSON as `kind`, such as a dataclass. Raises ValueError, in one line, if it is none.

    Unknown keys are ignored, unless the dataclass has FORBID_UNKNOWN as its `__pydantic_config__`.
    """
    from pydantic import ValidationError

    try:
        made: Kind = _reader(kind).validate_python(value)  # type: ignore[arg-type]  # a class has a hash
    except ValidationError as found:
        error = found.errors()[0]
        where = ".".join(map(str, error["loc"])) or "the whole"
        raise ValueError(f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}") from None
    return made


@cache
def _reader(kind: type[object]) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def at_home(path: Path) -> Path:
    """The path with `~` replaced by the home folder, as a shell would. Raises UserError."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(
            f"{path}: whose home {path.parts[0]} is cannot be told here; write the whole path"
        ) from None


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sampled_sha256(path: Path) -> str:
    """A digest that tells weight files apart in moments, where sha256 takes minutes.

    It covers the size, both ends (1 MiB each) and 4 KiB of every 4 MiB. That is enough, because the ends hold
    names and shapes (safetensors' header; the zip directory of a .bin, with a checksum of each tensor), and
    because training changes nearly every number, so two models differ in nearly every sample. It is not meant
    to find a flipped bit: downloads are verified in full when they are fetched.
    """
    size_bytes = path.stat().st_size
    digest = hashlib.sha256(size_bytes.to_bytes(8, "little"))
    with path.open("rb", buffering=0) as handle:
        ends = {0, max(0, size_bytes - ENDS_BYTES)}
        for start in sorted(ends | set(range(0, size_bytes, SAMPLE_EVERY_BYTES))):
            digest.update(os.pread(handle.fileno(), ENDS_BYTES if start in ends else SAMPLE_BYTES, start))
    return digest.hexdigest()


def content_key(*parts: object) -> str:
    """A key of 32 hex digits, equal for equal `parts`: all that a cached value was computed from."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
