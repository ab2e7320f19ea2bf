"""The state of an unfinished training, to resume from: adapters, optimizer, losses in one safetensors file.

A file is used only if its checksum and its key match; else training starts again. The key is a digest of
everything that the training depends on (`_checkpoint_key` in sweep/trial.py).
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from core.files import safetensors_header
from core.files.fail_point import fail_point
from core.files.files import write_whole


@dataclass(frozen=True, slots=True)
class TrainState:
    """`losses` has one number per finished step; `tensors` has the adapters and AdamW's state, on the CPU."""

    losses: list[float]
    tensors: dict[str, Tensor]
    scaler: dict[str, float] = field(default_factory=dict)  # state of fp16's loss scaling; empty without

    @property
    def step(self) -> int:
        """How many steps are finished."""
        return len(self.losses)


def save_state(path: Path, state: TrainState, key: str) -> None:
    """Write the state; an earlier file stays until the new one was read back and found correct.

    Raises OSError, also where the file does not read back as it was written.
    """
    header, data = safetensors_header.split(save(state.tensors))
    # "words" is what older versions called the key
    facts = {"words": key, "losses": json.dumps(state.losses), "scaler": json.dumps(state.scaler)}
    content = safetensors_header.join(header, facts | {"sha256": _checksum(facts, header, data)}, data)

    def write(temporary: Path) -> None:
        fail_point("checkpoint")
        temporary.write_bytes(content)
        fail_point("checkpoint_written")
        if load_state(temporary, key) is None:
            raise OSError(f"{temporary}: does not read back as it was written")

    write_whole(path, write)


def load_state(path: Path, key: str) -> TrainState | None:
    """What `save_state` wrote; None where the file is missing, damaged, or has another key."""
    try:
        content = path.read_bytes()
        header, data = safetensors_header.split(content)
        facts = header.pop("__metadata__")
        if facts["words"] != key or facts.pop("sha256") != _checksum(facts, header, data):
            return None
        return TrainState(json.loads(facts["losses"]), load(content), json.loads(facts["scaler"]))
    except (FileNotFoundError, ValueError, KeyError, safetensors.SafetensorError):
        return None


def _checksum(facts: dict[str, str], header: dict[str, object], data: bytes) -> str:
    digest = hashlib.sha256(json.dumps([facts, header], sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
