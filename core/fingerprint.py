"""fingerprint.json: what the scores of a study depend on, and what of it changed since the first start."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from core.files.files import read_json, write_json

# field (such as `weights`) -> key -> value
Fields = dict[str, dict[str, Any]]
Changes = dict[str, tuple[Any, Any]]  # key -> before, now
UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A change of one field at the time `at`: trials from `from_trial` on have the new values.

    `told` describes it in one line; `compares` says whether scores after it compare with those before.
    """

    at: str
    field: str
    from_trial: int
    changes: Changes
    told: str
    compares: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FingerprintFile:
    """The content of fingerprint.json.

    `fields` has every value by field and key. `space` has, of every setting that was ever searched, what an
    Optuna study cannot change later: its choices in their order, or the kind of its range. `history` has the
    changes, oldest first.
    """

    fields: Fields
    space: dict[str, Any]
    history: tuple[Change, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises one of UNREADABLE. Changes in files of earlier versions lack `told` and `compares`."""
        values = read_json(path)
        history = (
            Change(**{"told": entry["field"], "compares": False} | entry) for entry in values["history"]
        )
        return cls(**values | {"history": tuple(history)})

    def write(self, path: Path) -> None:
        """Write the file whole; a reader sees the old one or the new one."""
        write_json(path, asdict(self))

    @property
    def accepted(self) -> tuple[Change, ...]:
        """The changes after which scores do not compare with those before, oldest first."""
        return tuple(change for change in self.history if not change.compares)

    def weights_of(self, number: int) -> dict[str, str]:
        """Digests of the base model's parts and the scorer that trial `number` used, as far as known."""
        then: dict[str, str] = {**self.fields.get("weights", {}), **self.fields.get("scorer", {})}
        for change in reversed(self.history):
            if change.from_trial > number and change.field in ("weights", "scorer"):
                then |= {key: before for key, (before, _) in change.changes.items()}
        return then


def accepted_changes(path: Path) -> tuple[Change, ...]:
    """`FingerprintFile.accepted` of the file at `path`; empty where it is missing or unreadable."""
    try:
        return FingerprintFile.read(path).accepted
    except UNREADABLE:  # an unreadable file is reported by the next start
        return ()


def changed_weights(path: Path, number: int, weights: dict[str, str]) -> str:
    """Names of the parts whose weights differ from those of trial `number`, comma-separated.

    Empty where none is known to differ. `weights` maps each part, the scorer included, to its digest now.
    """
    try:
        before = FingerprintFile.read(path).weights_of(number)
    except UNREADABLE:  # missing, or reported by the next start
        return ""
    now = {f"weights.{part}": digest for part, digest in weights.items() if part != "scorer"}
    now["scorer.sha256"] = weights["scorer"]
    return ", ".join(
        key.partition(".")[2] if key.startswith("weights.") else "scorer"
        for key, digest in now.items()
        if before.get(key, digest) != digest
    )
