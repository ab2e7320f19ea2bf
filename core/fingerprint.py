"""fingerprint.json: what the scores of a study stand on, and what of it was changed since the study was
started.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from core.files.files import read_json, write_json

Fields = dict[str, dict[str, Any]]
Changes = dict[str, tuple[Any, Any]]  # key -> before, now
UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One field's change, dated: trials from `from_trial` on have the new values. `compares` says whether
    their scores compare with those before, `told` is the change in one line."""

    at: str
    field: str
    from_trial: int
    changes: Changes
    told: str
    compares: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FingerprintFile:
    """`fields` has every value by field and key. `space` has what Optuna never changes of any setting that
    was ever searched: its choices in their order, or the kind of its range."""

    fields: Fields
    space: dict[str, Any]
    history: tuple[Change, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises one of UNREADABLE. Files of earlier versions have changes without `told` and `compares`."""
        values = read_json(path)
        history = (
            Change(**{"told": entry["field"], "compares": False} | entry) for entry in values["history"]
        )
        return cls(**values | {"history": tuple(history)})

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @property
    def accepted(self) -> tuple[Change, ...]:
        """The changes after which scores do not compare with those before, in their order."""
        return tuple(change for change in self.history if not change.compares)

    def weights_of(self, number: int) -> dict[str, str]:
        """The digests of the base model's parts and of the scorer as trial `number` had them, as far as they
        are known.
        """
        then: dict[str, str] = {**self.fields.get("weights", {}), **self.fields.get("scorer", {})}
        for change in reversed(self.history):
            if change.from_trial > number and change.field in ("weights", "scorer"):
                then |= {key: before for key, (before, _) in change.changes.items()}
        return then


def accepted_changes(path: Path) -> tuple[Change, ...]:
    """Those of the file; none where there is no file, or one that the next start refuses."""
    try:
        return FingerprintFile.read(path).accepted
    except UNREADABLE:
        return ()


def changed_weights(path: Path, number: int, weights: dict[str, str]) -> str:
    """The parts of the base model whose weights are not those of trial `number`; empty if none is known to
    be.
    """
    try:
        before = FingerprintFile.read(path).weights_of(number)
    except UNREADABLE:  # none, or one that the next start refuses
        return ""
    now = {f"weights.{part}": digest for part, digest in weights.items() if part != "scorer"}
    now["scorer.sha256"] = weights["scorer"]
    return ", ".join(
        key.partition(".")[2] if key.startswith("weights.") else "scorer"
        for key, digest in now.items()
        if before.get(key, digest) != digest
    )
