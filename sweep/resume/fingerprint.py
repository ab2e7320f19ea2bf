"""The fingerprint: everything that the scores of a study depend on. A study whose settings, images or weights
have changed is not resumed unless the user accepts the change.

It is stored in `runs/<study>/fingerprint.json` as `field -> key -> value`; a user accepts changes by field.
Searched settings are not part of it: ranges may change, and a setting may move between `space` and its fixed
place, as each trial records its own value. Title, `first`, sampler and budget do not affect scores; a data
folder is represented by its images.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import cast

from core.data.hub import as_local_folder
from core.files.files import read_json, write_json, write_text, write_whole
from core.fingerprint import NONE_YET, Change, Changes, Fields, FingerprintFile
from core.folders import Runs, StudyFolder, shown_path
from core.verdict import SCORES_AGREE, SCORING_VERSION, comparable_since, drift
from sweep.events import Ready
from sweep.resume.changes import changes_between, described, without_moves
from sweep.resume.lock import is_locked
from sweep.resume.score_inputs import fixed_values, images_of, search_kinds
from sweep.study.errors import StudyError, near, shown
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
NOT_IN_THE_FILE = {  # fields that are not in the study file: the message about a change, and how to undo it
    "scorer": ("it was started with another scorer", "go back to that scorer"),
    "weights": ("it was started with other weights of the base model", "go back to those weights"),
    "scoring_version": ("this lora-sweep scores otherwise than the one that it was started with", ""),
    "device": ("it was started on another kind of device", "go on with --device {before}"),
}
OF_THE_WORKER = set(NOT_IN_THE_FILE)  # known only once a worker has loaded the base model
OF_THE_BASE_STORY = {"story", "render", "precision", "backbone", "gate"}


class Fingerprint:
    """One study's fingerprint while a driver works on it: made by `record_start`; `record_worker` adds the
    base model and scorer that the worker has loaded.
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
        """`accept` has the fields that may change at this start; `next_trial` is the number of the first
        trial after a change; `note` shows a line to the user.
        """
        self._study, self._folder = study, folder
        self._accept, self._next_trial, self._note = accept, next_trial, note
        self._stored, self._now = stored, _with_space(stored, study)

    def record_worker(self, ready: Ready) -> None:
        """Compare and record the base model and scorer of a worker. Raises StudyError for a change that is
        not accepted.
        """
        # no trial was made with the weights of an earlier start: they do not count
        if not (self._next_trial or _has_base_story(self._folder)):
            self._now = _without_worker(self._now)
        weights = dict(ready.weights)
        scorer: dict[str, object] = {"scorer.name": ready.scorer, "scorer.sha256": weights.pop("scorer")}
        self._record(
            {
                "scorer": scorer | self._watched(ready),
                "weights": {f"weights.{part}": digest for part, digest in weights.items()},
                "scoring_version": {"scoring_version": ready.scoring_version},
                # the noise from a seed differs between GPU and CPU
                "device": {"device": ready.device.partition(":")[0]},
            }
        )

    def _watched(self, ready: Ready) -> dict[str, object]:
        """The scores of the shipped images to record: the stored ones, while a worker's agree with them.

        Raises StudyError where the same scorer rates the same images otherwise, which is not accepted.
        """
        now = {f"scorer.canary[{number}]": score for number, score in enumerate(ready.canary, start=1)}
        before = self._now.fields.get("scorer", {})
        stored = {key: before[key] for key in now if key in before}
        if len(stored) < len(now):  # nothing was loaded yet, or the study is older than these scores
            if before:
                self._now = replace(self._now, fields=self._now.fields | {"scorer": before | now})
            return {**now}
        base = self._folder.base.read_result()
        off = max(
            drift(cast(list[float], list(stored.values())), ready.canary),
            drift(base.aesthetic if base else (), ready.base_story),
        )
        if off <= SCORES_AGREE:
            return stored
        if before["scorer.sha256"] == ready.weights["scorer"] and "scorer" not in self._accept:
            then = {"processor": base.processor} | base.versions if base else {}
            changed = _changed(then, {"processor": ready.processor} | {**ready.versions})
            raise StudyError(
                f"study {self._study.name}: its scorer rates the same images otherwise than before, by up to "
                f"{off:.2f} points ({changed}); scores would not compare: restore what changed, give the "
                "study another name, or go on with --accept-change scorer"
            )
        return {**now}

    @property
    def since(self) -> int:
        """The first trial whose result may be reused for a trial with the same parameters."""
        if self._accept & OF_THE_WORKER:
            return self._next_trial
        return max((change.from_trial for change in self._now.history), default=0)

    @property
    def comparable_since(self) -> int:
        """The first trial whose score compares with that of the newest."""
        return comparable_since(self._now.accepted)

    @property
    def tags(self) -> dict[str, str]:
        """All changes so far, as tags for the study's run in MLflow."""
        lines: dict[str, list[str]] = {}
        for change in self._now.history:
            line = f"{change.at[:10]}, from trial {change.from_trial}: {described(change.changes)}"
            lines.setdefault(f"changed_{change.field}", []).append(line)
        return {tag: "\n".join(entries) for tag, entries in lines.items()}

    def record_study(self, fixed: Fields) -> None:
        """Compare and record what the study file fixes, and write a frozen copy of the study. Raises
        StudyError for a change that is not accepted.
        """
        self._record(fixed)
        # render the base story again: once a worker tells whether they changed it is too late for that
        if self._accept & OF_THE_WORKER:
            self._set_base_aside()
        if (
            not self._folder.frozen.exists()
            or self._folder.frozen.read_bytes() != self._study.to_yaml().encode()
        ):
            write_text(self._folder.frozen, self._study.to_yaml())

    def _record(self, now: Fields) -> None:
        """Write `now` and an entry of the history for each field that differs. Raises StudyError if a change
        is not accepted.
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
                told=described(changes),
                compares=field not in to_accept,
            )
            for field, changes in found.items()
        )
        self._now = replace(self._now, fields=before | now, history=(*self._now.history, *changes))
        if self._now != self._stored or not self._folder.fingerprint.exists():
            write_json(self._folder.fingerprint, self._now)
            self._stored = self._now
        for accepted in to_accept.values():
            self._note(
                f"accepted: {described(accepted)}; scores do not compare with those of trials before "
                f"{self._next_trial}"
            )

    def _keep_frozen(self) -> None:
        """Keep the frozen study for the trials that were made with it."""
        kept = self._folder.earlier(self._next_trial).frozen
        if self._next_trial and self._folder.frozen.exists() and not kept.exists():
            write_whole(kept, lambda to: shutil.copyfile(self._folder.frozen, to))

    def _set_base_aside(self) -> None:
        """Have the base story rendered again; the old one is kept for the trials that compare with it."""
        base, kept = self._folder.base, self._folder.earlier(self._next_trial).base
        if self._next_trial and base.read_result() and not kept.result.exists():
            kept.path.parent.mkdir(parents=True, exist_ok=True)
            base.path.rename(kept.path)
        shutil.rmtree(base.path, ignore_errors=True)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What changed of processor and versions, for a message; what was not recorded before counts as equal."""
    changed = [
        f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, "") not in ("", now[name])
    ]
    return ", ".join(changed) or "neither processor nor packages changed: perhaps a driver or the threads did"


def record_start(
    study: Study, folder: StudyFolder, accept: Iterable[str], after_finished: int, note: Callable[[str], None]
) -> Fingerprint:
    """Compare the study with its fingerprint, or make that if there is none. Raises StudyError for a change
    of a field that is not among those to `accept`.

    A study of a version without fingerprints is compared with its frozen copy; images, weights and scorer are
    taken as they are now. `after_finished` is the number after the last trial that Optuna has finished;
    trials with a result that Optuna does not have yet count as well.
    """
    next_trial = max(after_finished, _after_finished(folder))
    images = images_of(as_local_folder(study.data.value, Runs(folder.path.parent).cache))
    fingerprint = Fingerprint(study, folder, frozenset(accept), next_trial, note, _read(folder, images, note))
    fingerprint.record_study(fixed_values(study, images))
    return fingerprint


def check_changes(study: Study, folder: StudyFolder, accept: Iterable[str] = ()) -> None:
    """Raise the StudyError or StoreError that a start would raise for changes; writes nothing.

    Weights, scorer and kind of device are not compared: that needs a worker with the base model loaded.
    """
    # a driver that is at work may be creating the tables now; a start would be refused anyway
    if folder.db.exists() and not is_locked(folder):
        # imports Optuna, which takes time that a check of a new study does not need
        from sweep.search.storage import check_held

        check_held(folder.db, study.name)
    if not folder.frozen.exists() and not folder.fingerprint.exists():
        return
    images = images_of(as_local_folder(study.data.value, Runs(folder.path.parent).cache))
    kept = _with_space(_read(folder, images, lambda text: None), study)
    accepted, _ = _accepted_changes(study, kept, fixed_values(study, images), frozenset(accept))
    if "backbone" not in accepted and (_after_finished(folder) or _has_base_story(folder)):
        _accepted_changes(
            study, kept, {"scoring_version": {"scoring_version": SCORING_VERSION}}, frozenset(accept)
        )


def fields_of(names: Iterable[str]) -> frozenset[str]:
    """The fields that the user named in --accept-change. Raises StudyError for an unknown one."""
    for name in names:
        if name not in FIELDS:
            guess = near(name, FIELDS)
            raise StudyError(
                f"--accept-change is {shown(name)}, but there is no such field (allowed: {', '.join(FIELDS)})"
                + (f"; did you mean {guess}?" if guess else "")
            )
    return frozenset(names)


def _read(folder: StudyFolder, images: dict[str, object], note: Callable[[str], None]) -> FingerprintFile:
    if folder.fingerprint.exists():
        try:
            return read_json(folder.fingerprint, FingerprintFile)
        except ValueError as error:
            raise StudyError(
                f"{shown_path(folder.fingerprint)}: it cannot be read ({error}); remove it to go on "
                f"with story, images and base model as they are now"
            ) from None
    if not folder.frozen.exists():
        return NONE_YET
    note(
        "note: this study is older than its fingerprint: images, base model and scorer are taken as they "
        "are now"
    )
    before = load_frozen(folder.frozen)
    return FingerprintFile(fields=fixed_values(before, images), space=search_kinds(before), history=())


def _after_finished(folder: StudyFolder) -> int:
    """The number after that of the last trial with a result.json."""
    return max((n + 1 for n in folder.numbers() if folder.trial(n).result.exists()), default=0)


def _has_base_story(folder: StudyFolder) -> bool:
    base = folder.base.read_result()
    return base is not None and base.state == "complete"


def _without_worker(kept: FingerprintFile) -> FingerprintFile:
    return replace(
        kept, fields={field: values for field, values in kept.fields.items() if field not in OF_THE_WORKER}
    )


def _with_space(kept: FingerprintFile, study: Study) -> FingerprintFile:
    kinds = search_kinds(study)
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
    """All changes by field, and those of them that must be accepted. Raises StudyError if one is not."""
    found = {
        field: changes
        for field, values in now.items()
        if (changes := changes_between(kept.fields.get(field, values), values))
    }
    to_accept = {field: others for field, changes in found.items() if (others := without_moves(changes))}
    if unaccepted := {field: changes for field, changes in to_accept.items() if field not in accept}:
        options = " ".join(f"--accept-change {field}" for field in to_accept)
        what, undo = _what_and_undo(study, unaccepted)
        raise StudyError(
            f"{what}; scores would not compare: {undo}give the study another name, or go on with {options}"
        )
    return found, to_accept


def _what_and_undo(study: Study, unaccepted: dict[str, Changes]) -> tuple[str, str]:
    """The message about changes that are not accepted, and how to undo them. The changes are all in the study
    file and its images, or all outside them.
    """
    if not unaccepted.keys() <= OF_THE_WORKER:
        changed = "; ".join(map(described, unaccepted.values()))
        return f"{shown_path(study.file)}: changed since the study was started: {changed}", "undo it, "
    changed = "; ".join(
        f"{NOT_IN_THE_FILE[field][0]}: {described(changes)}" for field, changes in unaccepted.items()
    )
    ways = [
        NOT_IN_THE_FILE[field][1].format(before=next(iter(changes.values()))[0])
        for field, changes in unaccepted.items()
    ]
    return f"study {study.name}: {changed}", f"{' and '.join(ways)}, " if all(ways) else ""
