"""On-disk cache of everything that is encoded, by content; shared by all trials and studies.

A key holds everything that its value depends on (image or text, size, weights, dtype), so nothing expires.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files.files import content_key, read_json, write_json, write_whole

if TYPE_CHECKING:
    from torch import Tensor

Key = tuple[str, *tuple[object, ...]]  # the kind, such as "text" or "latents", and what the value depends on


class Cache:
    """Tensors and facts (small JSON objects) under `folder`, also held in memory while the process lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoded: Counter[str] = Counter()  # kind -> how many were not in the cache
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def tensors(self, key: Key, make: Callable[[], "dict[str, Tensor]"]) -> "dict[str, Tensor]":
        """Tensors under `key`, on the CPU; `make` is called only if they are not in the cache."""
        found = self.find_tensors(key)
        return self.keep_tensors(key, make()) if found is None else found

    def find_tensors(self, key: Key) -> "dict[str, Tensor] | None":
        """Tensors under `key`, on the CPU; None where there are none or the file is damaged."""
        import safetensors
        from safetensors.torch import load_file

        name = content_key(*key)
        if name not in self._tensors:
            try:
                self._tensors[name] = load_file(self._tensor_file(key))
            except (FileNotFoundError, safetensors.SafetensorError):  # missing, or cut short by a full disk
                return None
        return self._tensors[name]

    def keep_tensors(self, key: Key, made: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """Write tensors under `key`; returns them as `find_tensors` will."""
        from safetensors.torch import save_file

        value = {part: tensor.detach().cpu().contiguous() for part, tensor in made.items()}
        self.encoded[key[0]] += 1
        write_whole(self._tensor_file(key), lambda temporary: save_file(value, temporary))
        self._tensors[content_key(*key)] = value
        return value

    def _tensor_file(self, key: Key) -> Path:
        return self.folder / key[0] / f"{content_key(*key)}.safetensors"

    def facts(self, key: Key, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The JSON object under `key`; `make` is called only if it is not in the cache."""
        value = self.find_facts(key)
        if value is None:
            value = make()
            self.encoded[key[0]] += 1
            write_json(self._facts_file(key), value)
            self._facts[content_key(*key)] = value
        return value

    def find_facts(self, key: Key) -> dict[str, Any] | None:
        """The JSON object under `key`; None where there is none or the file is damaged."""
        name = content_key(*key)
        if name not in self._facts:
            try:
                self._facts[name] = read_json(self._facts_file(key), dict[str, Any])
            except (FileNotFoundError, ValueError):
                return None
        return self._facts[name]

    def _facts_file(self, key: Key) -> Path:
        return self.folder / key[0] / f"{content_key(*key)}.json"
