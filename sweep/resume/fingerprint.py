"""The fingerprint: what the scores of a study stand on. Going on under other words, pictures or weights is
refused.

It lies in `runs/<study>/fingerprint.json` as `field -> key -> value`, the fields being what a user may accept
a change of. A searched setting is in none of them: ranges may change, and a setting may move between `space`
and its fixed home, for each trial has its own value. Title, `first`, sampler and budget decide about no
score; a data folder counts by its pictures.
"""

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from core.data.audit import read_folder
from core.data.hub import local_data
from core.files.files import sha256, write_text, write_whole
from core.fingerprint import Change, Changes, Fields, FingerprintFile
from core.folders import Runs, StudyFolder, shown_path
from core.trial.spec import Data
from core.verdict import SCORING_VERSION, comparable_since
from sweep.events import Ready
from sweep.resume.lock import is_locked
from sweep.study.errors import SHOWN_CHARACTERS, StudyError, near, shown
from sweep.study.setting import HOMES
from sweep.study.space import Choices, Range
from sweep.study.study import Study, load_frozen

FIELDS = (
    "story",
    "data",
    "scorer",
    "weights",
    "render",
    "train",
    "seed",
    "precision",
    "backbone",
    "gate",
    "scoring_version",
    "device",
)
NOT_IN_THE_FILE = {  # what a user did not write: how that changed, and what would undo it
    "scorer": ("it was started with another scorer", "go back to that scorer"),
    "weights": ("it was started with other weights of the base model", "go back to those weights"),
    "scoring_version": ("this lora-sweep scores otherwise than the one that it was started with", ""),
    "device": ("it was started on another kind of device", "go on with --device {before}"),
}
OF_THE_WORKER = set(NOT_IN_THE_FILE)  # known only once a worker has loaded the base model
OF_THE_BASE_STORY = {"story", "render", "precision", "backbone", "gate"}
MOVABLE = {f"{home}.{name}" for name, home in HOMES.items()}
ABSENT, SEARCHED = "not there", "searched"


class Fingerprint:
    """One study's fingerprint while a driver works on it: `record_start` makes it, `record_worker` adds what
    a worker loaded.
    """

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        accept: frozenset[str],
        next_trial: int,
        note: Callable[[str], None],
        stored: FingerprintFile,
    ) -> None:
        """`accept` holds the fields that may change this time; `next_trial` is the first that would be made
        under a change.
        """
        self._study, self._folder, self._accept, self._next_trial, self._note = (
            study,
            folder,
            accept,
            next_trial,
            note,
        )
        self._stored, self._now = stored, _with_space(stored, study)

    def record_worker(self, ready: Ready) -> None:
        """Compare what a worker says of base model and scorer, and write it down. Raises StudyError."""
        # nothing was made with what was found before
        if not (self._next_trial or _has_base_story(self._folder)):
            self._now = _without_worker(self._now)
        weights = dict(ready.weights)
        scorer = {"scorer.name": ready.scorer, "scorer.sha256": weights.pop("scorer")}
        self._record(
            {
                "scorer": scorer,
                "weights": {f"weights.{part}": digest for part, digest in weights.items()},
                "scoring_version": {"scoring_version": ready.scoring_version},
                # a GPU draws other noise than a CPU
                "device": {"device": ready.device.partition(":")[0]},
            }
        )

    @property
    def since(self) -> int:
        """The first trial that answers an exact repeat: a repeat of an earlier one is a trial of its own."""
        if self._accept & OF_THE_WORKER:
            return self._next_trial
        return max((change.from_trial for change in self._now.history), default=0)

    @property
    def comparable_since(self) -> int:
        """The first trial whose score compares with the newest."""
        return comparable_since(self._now.accepted)

    @property
    def tags(self) -> dict[str, str]:
        """What changed so far, for the study's run in MLflow."""
        lines: dict[str, list[str]] = {}
        for change in self._now.history:
            line = f"{change.at[:10]}, from trial {change.from_trial}: {_told(change.changes)}"
            lines.setdefault(f"changed_{change.field}", []).append(line)
        return {tag: "\n".join(entries) for tag, entries in lines.items()}

    def record_words(self, words: Fields) -> None:
        """Compare what the study file fixes, and write it down, with a frozen copy of the study. Raises
        StudyError.
        """
        self._record(words)
        # whether they did change will be known too late to tell the base story again
        if self._accept & OF_THE_WORKER:
            self._set_base_aside()
        if (
            not self._folder.frozen.exists()
            or self._folder.frozen.read_bytes() != self._study.to_yaml().encode()
        ):
            write_text(self._folder.frozen, self._study.to_yaml())

    def _record(self, now: Fields) -> None:
        """Write `now`, with a line of history for each field that differs; a StudyError if one of them is not
        accepted.
        """
        found, to_accept = _accepted_changes(self._study, self._now, now, self._accept)
        if to_accept:
            self._keep_frozen()
        if found.keys() & OF_THE_BASE_STORY:
            self._set_base_aside()
        before = self._now.fields
        if "backbone" in found:  # another model has other weights
            before = _without_worker(self._now).fields
        at = datetime.now().astimezone().isoformat(timespec="seconds")
        changes = (
            Change(
                at=at,
                field=field,
                from_trial=self._next_trial,
                changes=changes,
                told=_told(changes),
                compares=field not in to_accept,
            )
            for field, changes in found.items()
        )
        self._now = replace(self._now, fields=before | now, history=(*self._now.history, *changes))
        if self._now != self._stored or not self._folder.fingerprint.exists():
            self._now.write(self._folder.fingerprint)
            self._stored = self._now
        for accepted in to_accept.values():
            self._note(
                f"accepted: {_told(accepted)}; scores do not compare with those of trials before {self._next_trial}"
            )

    def _keep_frozen(self) -> None:
        """Trials made so far keep the study that they were made under."""
        kept = self._folder.earlier(self._next_trial).frozen
        if self._next_trial and self._folder.frozen.exists() and not kept.exists():
            write_whole(kept, lambda to: shutil.copyfile(self._folder.frozen, to))

    def _set_base_aside(self) -> None:
        """It is told again; trials made so far keep the one that they compare with."""
        base, kept = self._folder.base, self._folder.earlier(self._next_trial).base
        if self._next_trial and base.read_result() and not kept.result.exists():
            kept.path.parent.mkdir(parents=True, exist_ok=True)
            base.path.rename(kept.path)
        shutil.rmtree(base.path, ignore_errors=True)


def record_start(
    study: Study, folder: StudyFolder, accept: Iterable[str], after_told: int, note: Callable[[str], None]
) -> Fingerprint:
    """Compare the study with what it was started under, or start its fingerprint. Raises StudyError where a
    change of it is not among those to `accept`.

    A study from before there were fingerprints is compared with its frozen words; the rest is taken as it is
    now. A finished trial that was not told yet counts as told.
    """
    next_trial = max(after_told, _after_finished(folder))
    pictures = _pictures(local_data(study.data_value, Runs(folder.path.parent).cache))
    fingerprint = Fingerprint(
        study, folder, frozenset(accept), next_trial, note, _read(folder, pictures, note)
    )
    fingerprint.record_words(_words(study, pictures))
    return fingerprint


def check_changes(study: Study, folder: StudyFolder, accept: Iterable[str] = ()) -> None:
    """Raises the StudyError or StoreError that a start would raise for what changed; writes nothing.

    Weights, scorer and kind of device are compared only once a worker has loaded the base model.
    """
    # a driver at work may just be making its tables, and refuses a second one
    if folder.db.exists() and not is_locked(folder):
        # with Optuna, which whoever looks at a new study need not wait for
        from sweep.search.optuna_study import check_held

        check_held(folder.db, study.name)
    if not folder.frozen.exists() and not folder.fingerprint.exists():
        return
    pictures = _pictures(local_data(study.data_value, Runs(folder.path.parent).cache))
    kept = _with_space(_read(folder, pictures, lambda text: None), study)
    accepted, _ = _accepted_changes(study, kept, _words(study, pictures), frozenset(accept))
    if "backbone" not in accepted and (_after_finished(folder) or _has_base_story(folder)):
        _accepted_changes(
            study, kept, {"scoring_version": {"scoring_version": SCORING_VERSION}}, frozenset(accept)
        )


def fields_of(words: Iterable[str]) -> frozenset[str]:
    """The fields that a user names. Raises StudyError."""
    for word in words:
        if word not in FIELDS:
            guess = near(word, FIELDS)
            raise StudyError(
                f"--accept-change is {shown(word)}, but there is no such field (allowed: {', '.join(FIELDS)})"
                + (f"; did you mean {guess}?" if guess else "")
            )
    return frozenset(words)


def _read(folder: StudyFolder, pictures: dict[str, Any], note: Callable[[str], None]) -> FingerprintFile:
    if folder.fingerprint.exists():
        try:
            return FingerprintFile.read(folder.fingerprint)
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"{shown_path(folder.fingerprint)}: it cannot be read ({error}); remove it to go on "
                f"with story, pictures and base model as they are now"
            ) from None
    if not folder.frozen.exists():
        return FingerprintFile(fields={}, space={}, history=())
    note(
        "note: this study is older than its fingerprint: pictures, base model and scorer are taken as they are now"
    )
    before = load_frozen(folder.frozen)
    return FingerprintFile(fields=_words(before, pictures), space=_kinds(before), history=())


def _after_finished(folder: StudyFolder) -> int:
    """The number after the last finished trial's."""
    return max(
        (int(path.parent.name) + 1 for path in folder.path.glob("trials/[0-9]*/result.json")), default=0
    )


def _has_base_story(folder: StudyFolder) -> bool:
    base = folder.base.read_result()
    return base is not None and base.state == "complete"


def _without_worker(kept: FingerprintFile) -> FingerprintFile:
    return replace(
        kept, fields={field: values for field, values in kept.fields.items() if field not in OF_THE_WORKER}
    )


def _with_space(kept: FingerprintFile, study: Study) -> FingerprintFile:
    kinds = _kinds(study)
    for name, now in kinds.items():
        if (before := kept.space.get(name, now)) != now:
            raise StudyError(
                f"{shown_path(study.file)}: space.{name} changed since the study was started ({before} -> "
                f"{now}), but Optuna never changes choices, their order or log; undo it, or give the "
                f"study another name"
            )
    return replace(kept, space=kept.space | kinds)


def _accepted_changes(
    study: Study, kept: FingerprintFile, now: Fields, accept: frozenset[str]
) -> tuple[dict[str, Changes], dict[str, Changes]]:
    """What differs by field, and of that what had to be accepted. Raises StudyError where it was not."""
    found = {
        field: changes
        for field, values in now.items()
        if (changes := _changes(kept.fields.get(field, values), values))
    }
    to_accept = {field: others for field, changes in found.items() if (others := _without_moves(changes))}
    if refused := {field: changes for field, changes in to_accept.items() if field not in accept}:
        options = " ".join(f"--accept-change {field}" for field in to_accept)
        what, undo = _what_and_undo(study, refused)
        raise StudyError(
            f"{what}; scores would not compare: {undo}give the study another name, or go on with {options}"
        )
    return found, to_accept


def _what_and_undo(study: Study, refused: dict[str, Changes]) -> tuple[str, str]:
    """What changed, all of it in the study and its pictures or none of it, and what a user may do to have it
    as it was.
    """
    if not refused.keys() <= OF_THE_WORKER:
        told = "; ".join(map(_told, refused.values()))
        return f"{shown_path(study.file)}: changed since the study was started: {told}", "undo it, "
    told = "; ".join(f"{NOT_IN_THE_FILE[field][0]}: {_told(changes)}" for field, changes in refused.items())
    ways = [
        NOT_IN_THE_FILE[field][1].format(before=next(iter(changes.values()))[0])
        for field, changes in refused.items()
    ]
    return f"study {study.name}: {told}", f"{' and '.join(ways)}, " if all(ways) else ""


def _words(study: Study, pictures: dict[str, Any]) -> Fields:
    """What the study file fixes that a score stands on; scenes as the prompter gets them."""

    def fixed(home: str, section: Any) -> dict[str, Any]:
        return {f"{home}.{name}": value for name, value in asdict(section).items() if name not in study.space}

    scenes = {
        f"story.scenes[{number}].{key}": value
        for number, scene in enumerate(study.story_value.scenes, start=1)
        for key, value in asdict(scene).items()
    }
    words = {"data.caption": study.data.caption, "data.min_images": study.data.min_images}
    return {
        "story": scenes,
        "data": words | fixed("data.filters", study.data.filters) | pictures,
        "render": fixed("render", study.render),
        "train": fixed("train", study.train),
        "seed": {"seed": study.seed},
        "precision": {"precision": study.precision},
        "backbone": {"backbone": study.backbone},
        "gate": {"objective.gate": study.objective.gate},
    }


def _pictures(data: Data) -> dict[str, Any]:
    """Every picture that is meant, in its order: file, caption and content, as in the audit table. Reads each
    file once.
    """
    found: dict[str, Any] = {}
    meant = [picture for picture in read_folder(data).pictures if picture.in_table]
    for number, picture in enumerate(meant, start=1):
        facts = {"file": picture.file, "caption": picture.prompt, "sha256": _content(picture.path)}
        found |= {f"data.pictures[{number}].{key}": value for key, value in facts.items()}
    return found


def _content(path: Path) -> str:
    try:
        return sha256(path) if path.is_file() else "not a file"
    except OSError:  # the audit says what is wrong with it
        return "cannot be read"


def _kinds(study: Study) -> dict[str, Any]:
    def kind(search: Choices | Range) -> Any:
        if isinstance(search, Choices):
            return list(search.choices)
        return "log range" if search.log else "range"

    return {name: kind(search) for name, search in study.space.items()}


def _changes(before: dict[str, Any], now: dict[str, Any]) -> Changes:
    def value(values: dict[str, Any], key: str) -> Any:
        return values.get(key, SEARCHED if key in MOVABLE else ABSENT)

    return {
        key: (value(before, key), value(now, key))
        for key in dict.fromkeys((*before, *now))
        if value(before, key) != value(now, key)
    }


def _without_moves(changes: Changes) -> Changes:
    return {key: values for key, values in changes.items() if key not in MOVABLE or SEARCHED not in values}


def _told(changes: Changes) -> str:
    """`story.scenes[3].prompt ('a' -> 'b') and 2 more`"""
    key, values = next(iter(changes.items()))
    more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
    return f"{key} ({' -> '.join(_short(*values))}){more}"


def _short(before: Any, now: Any) -> tuple[str, str]:
    """Both as text; of hashes the first digits, of long words what differs."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return shown(before), shown(now)
    if re.fullmatch(r"[0-9a-f]{64}", before) or re.fullmatch(r"[0-9a-f]{64}", now):
        return before[:12], now[:12]
    same = next(
        (i for i, (old, new) in enumerate(zip(before, now, strict=False)) if old != new),
        min(len(before), len(now)),
    )
    if same > SHOWN_CHARACTERS // 2:
        before, now = (f"...{text[same - 10 :]}" for text in (before, now))
    return shown(before), shown(now)
