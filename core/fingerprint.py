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

    def changed_weights(self, number: int, weights: dict[str, str]) -> str:
        """Names of the parts whose weights differ from those of trial `number`, comma-separated.

        Empty where none is known to differ. `weights` maps each part, the scorer included, to its digest now.
        """
        then = {**self.fields.get("weights", {}), **self.fields.get("scorer", {})}
        for change in reversed(self.history):
            if change.from_trial > number and change.field in ("weights", "scorer"):
                then |= {key: before for key, (before, _) in change.changes.items()}
        keys = {part: "scorer.sha256" if part == "scorer" else f"weights.{part}" for part in weights}
        return ", ".join(part for part, key in keys.items() if then.get(key, weights[part]) != weights[part])


NONE_YET = FingerprintFile(fields={}, space={}, history=())


def read_fingerprint(path: Path) -> FingerprintFile:
    """The file at `path`; NONE_YET where it is missing or unreadable, which the next start reports."""
    try:
        return read_json(path, FingerprintFile)
    except (OSError, ValueError):
        return NONE_YET
