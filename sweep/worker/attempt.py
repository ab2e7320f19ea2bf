"""One try at a trial: why earlier ones ended, and how many rows at a time go through the UNet."""
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from core.files.files import read_json, write_json
from sweep.failures import CUDA_OOM, failure


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """`retried` holds the class of each earlier end, `micro_batch` divides the batch size."""
    micro_batch: int
    retried: tuple[str, ...] = ()

    @property
    def was_out_of_memory(self) -> bool:
        return CUDA_OOM.name in self.retried

    def after(self, reason: str | None) -> Self | None:
        """The next attempt after one that ended so; None when another would not help."""
        if not reason or not failure(reason).retried or reason in self.retried:
            return None
        again = replace(self, retried=(*self.retried, reason))
        if reason != CUDA_OOM.name:
            return again
        smaller = [size for size in range(1, self.micro_batch) if self.micro_batch % size == 0]
        return replace(again, micro_batch=smaller[-1]) if smaller else again  # the memory may have been another program's

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(micro_batch=values["micro_batch"], retried=tuple(values["retried"]))

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path, batch_size: int) -> Self:
        """What an earlier driver wrote down, if it did and it is about this batch size."""
        try:
            attempt = cls.from_json(read_json(path))
            return attempt if batch_size % attempt.micro_batch == 0 else cls(micro_batch=batch_size)
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            return cls(micro_batch=batch_size)
