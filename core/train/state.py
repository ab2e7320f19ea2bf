"""How far a training has come: adapters, optimizer, losses and step in one safetensors file, so that it can
go on.

A file is believed only if its checksum holds and it was written for the same words; else training starts
again.
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
    """`losses` has one number per step done; `tensors` the adapters and AdamW's state by name, on the CPU."""

    losses: list[float]
    tensors: dict[str, Tensor]
    scaler: dict[str, float] = field(default_factory=dict)  # of fp16's loss scaling; empty without

    @property
    def step(self) -> int:
        return len(self.losses)


def save_state(path: Path, state: TrainState, words: str) -> None:
    """Write whole; what lay there stays until the new file was read back and found good. `words` is what it
    belongs to.
    """
    header, data = safetensors_header.split(save(state.tensors))
    facts = {"words": words, "losses": json.dumps(state.losses), "scaler": json.dumps(state.scaler)}
    content = safetensors_header.join(header, facts | {"sha256": _checksum(facts, header, data)}, data)

    def write(temporary: Path) -> None:
        fail_point("checkpoint")
        temporary.write_bytes(content)
        fail_point("checkpoint_written")
        if load_state(temporary, words) is None:
            raise OSError(f"{temporary}: does not read back as it was written")

    write_whole(path, write)


def load_state(path: Path, words: str) -> TrainState | None:
    """What `save_state` wrote for the same words; None when there is nothing, it is torn, or it is of other
    words.
    """
    try:
        content = path.read_bytes()
        header, data = safetensors_header.split(content)
        facts = header.pop("__metadata__")
        if facts["words"] != words or facts.pop("sha256") != _checksum(facts, header, data):
            return None
        return TrainState(json.loads(facts["losses"]), load(content), json.loads(facts["scaler"]))
    except (FileNotFoundError, ValueError, KeyError, safetensors.SafetensorError):
        return None


def _checksum(facts: dict[str, str], header: dict, data: bytes) -> str:
    digest = hashlib.sha256(json.dumps([facts, header], sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
