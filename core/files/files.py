"""Files written whole: temporary name, flush, rename. A reader sees the old file or the new one, never half
of one.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files.fail_point import fail_point

ENDS_BYTES, SAMPLE_BYTES, SAMPLE_EVERY_BYTES = 2**20, 2**12, 2**22


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


def at_home(path: Path) -> Path:
    """The path with `~` as the home folder, also where no shell has seen it. Raises UserError."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(
            f"{path}: whose home {path.parts[0]} is cannot be told here; write the whole path"
        ) from None


def sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sampled_sha256(path: Path) -> str:
    """Tells weight files apart in moments where sha256 takes minutes: their size, both ends, 4 KiB of every 4
    MiB.

    Enough, because the ends hold the names and shapes (safetensors' header, the zip directory of a .bin with
    a checksum of each tensor), and because training moves nearly every number, so that two models differ in
    nearly every sample. Not made to find a flipped bit: a download is checked in full when it is fetched.
    """
    size_bytes = path.stat().st_size
    digest = hashlib.sha256(size_bytes.to_bytes(8, "little"))
    with path.open("rb", buffering=0) as handle:
        ends = {0, max(0, size_bytes - ENDS_BYTES)}
        for start in sorted(ends | set(range(0, size_bytes, SAMPLE_EVERY_BYTES))):
            digest.update(os.pread(handle.fileno(), ENDS_BYTES if start in ends else SAMPLE_BYTES, start))
    return digest.hexdigest()


def content_key(*parts: Any) -> str:
    """A name made of what a thing was computed from: equal parts, equal key."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
