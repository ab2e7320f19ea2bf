"""What was encoded once is never encoded again: by content, on disk, shared by all trials and studies.

A key is made of everything a value depends on (pixels or words, size, weights, dtype), so nothing needs
expiring.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files.files import content_key, write_json, write_whole

if TYPE_CHECKING:
    from torch import Tensor


class Cache:
    """Tensors and facts under `folder`, also kept in memory while the worker lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoded: Counter[str] = Counter()  # kind -> how many were made anew
        self._memory: dict[str, Any] = {}

    def tensors(self, key: tuple, make: Callable[[], "dict[str, Tensor]"]) -> "dict[str, Tensor]":
        """Tensors under `key` = (kind, ...), on the CPU; `make` is called only if nobody made them before."""
        found = self.find_tensors(key)
        return self.keep_tensors(key, make()) if found is None else found

    def find_tensors(self, key: tuple) -> "dict[str, Tensor] | None":
        """What was kept under `key`, by whomever."""
        import safetensors
        from safetensors.torch import load_file

        name = content_key(*key)
        if name not in self._memory:
            try:
                self._memory[name] = load_file(self._tensor_file(key))
            except (FileNotFoundError, safetensors.SafetensorError):  # missing, or cut short by a full disk
                return None
        return self._memory[name]

    def keep_tensors(self, key: tuple, made: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """Keep what was just made; returns it as it will be found."""
        from safetensors.torch import save_file

        value = {part: tensor.detach().cpu().contiguous() for part, tensor in made.items()}
        self.encoded[key[0]] += 1
        write_whole(self._tensor_file(key), lambda temporary: save_file(value, temporary))
        self._memory[content_key(*key)] = value
        return value

    def _tensor_file(self, key: tuple) -> Path:
        return self.folder / key[0] / f"{content_key(*key)}.safetensors"

    def facts(self, key: tuple, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The same for a small JSON object."""
        value = self.find_facts(key)
        if value is None:
            value = make()
            self.encoded[key[0]] += 1
            write_json(self._facts_file(key), value)
            self._memory[content_key(*key)] = value
        return value

    def find_facts(self, key: tuple) -> dict[str, Any] | None:
        """What was kept under `key`, by whomever."""
        name = content_key(*key)
        if name not in self._memory:
            try:
                self._memory[name] = json.loads(self._facts_file(key).read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):  # ValueError: neither JSON nor UTF-8
                return None
        return self._memory[name]

    def _facts_file(self, key: tuple) -> Path:
        return self.folder / key[0] / f"{content_key(*key)}.json"
