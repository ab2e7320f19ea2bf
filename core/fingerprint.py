"""fingerprint.json: what the scores of a study depend on, and what of it changed since the first start."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from core.files.files import FORBID_UNKNOWN, read_json

# field (such as `weights`) -> key -> value
Fields = dict[str, dict[str, object]]
Changes = dict[str, tuple[object, object]]  # key -> before, now


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A change of one field at the time `at`: trials from `from_trial` on have the new values.

    `told` describes it in one line; `compares` says whether scores after it compare with those before. Files
    of earlier versions have neither.
    """

    at: str
    field: str
    from_trial: int
    changes: Changes
    told: str = ""
    compares: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FingerprintFile:
    """The content of fingerprint.json.

    `fields` has every value by field and key. `space` has, of every setting that was ever searched, what an
    Optuna study cannot change later: its choices in their order, or the kind of its range. `history` has the
    changes, oldest first.
    """

    __pydantic_config__: ClassVar = FORBID_UNKNOWN

    fields: Fields
    space: dict[str, object]
    history: tuple[Change, ...]

    @property
    def accepted(self) -> tuple[Change, ...]:
        """The changes after which scores do not compare with those before, oldest first."""
        return tuple(change for change in self.history if not change.compares)

    def weights_of(self, number: int) -> dict[str, object]:
        """Digests of the base model's parts and the scorer that trial `number` used, as far as known."""
        then = {**self.fields.get("weights", {}), **self.fields.get("scorer", {})}
        for change in reversed(self.history):
            if change.from_trial > number and change.field in ("weights", "scorer"):
                then |= {key: before for key, (before, _) in change.changes.items()}
        return then


def accepted_changes(path: Path) -> tuple[Change, ...]:
    """`FingerprintFile.accepted` of the file at `path`; empty where it is missing or unreadable."""
    try:
        return read_json(path, FingerprintFile).accepted
    except (OSError, ValueError):  # an unreadable file is reported by the next start
        return ()


def changed_weights(path: Path, number: int, weights: dict[str, str]) -> str:
    """Names of the parts whose weights differ from those of trial `number`, comma-separated.

    Empty where none is known to differ. `weights` maps each part, the scorer included, to its digest now.
    """
    try:
        before = read_json(path, FingerprintFile).weights_of(number)
    except (OSError, ValueError):  # missing, or reported by the next start
        return ""
    now = {f"weights.{part}": digest for part, digest in weights.items() if part != "scorer"}
    now["scorer.sha256"] = weights["scorer"]
    return ", ".join(
        key.partition(".")[2] if key.startswith("weights.") else "scorer"
        for key, digest in now.items()
        if before.get(key, digest) != digest
    )
