"""Reads and writes the header of a safetensors file, so that equal content gives equal files.

safetensors 0.8 writes metadata in the random order of a hash map.
Layout: header length (8 bytes, little endian), JSON header, tensor data (its README, "Format").
"""

import json
from typing import Any


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """-> the header and the tensor data of a file's content."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def join(header: dict[str, Any], metadata: dict[str, str], tensors: bytes) -> bytes:
    """The content of a file with exactly this metadata, sorted by key, and the tensor data as it is."""
    entries = {"__metadata__": dict(sorted(metadata.items()))} | {
        k: v for k, v in header.items() if k != "__metadata__"
    }
    text = json.dumps(entries, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format requires tensor data aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + tensors
