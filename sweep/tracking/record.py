"""A trial's files in MLflow's words, and what its study's folder notes of the runs that it has there.

Every time comes from the files, never from the clock: sent again, it is the same.
"""

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Self

from mlflow.entities import Metric, Param, Run

from core.files.files import read_json, write_json, write_text
from core.folders import StudyFolder, TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec
from sweep.events import Epoch, read_journal
from sweep.failures import CUDA_OOM

MAX_PARAMS, MAX_PARAM_CHARS = 100, 6000  # MLflow's own limits, for one call and for one value
STUDY_ID, REQUEST_ID = "study_id", "request_id"  # tags on every run, where a store is shared
ID = re.compile(r"\b[0-9a-f]{32}\b")


def as_params(values: Mapping[str, object]) -> list[Param]:
    assert len(values) <= MAX_PARAMS
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [Param(name, word[:MAX_PARAM_CHARS]) for name, word in words.items()]


def loss_points(spec: TrialSpec, folder: TrialFolder) -> list[Metric]:
    """The losses of the epochs done, one point a step from 1; of an epoch that was done twice the first."""
    if spec.train is None:
        return []
    points: dict[int, Metric] = {}
    for message in read_journal(folder.events):
        if isinstance(message.event, Epoch):
            first = message.event.epoch * spec.train.steps_per_epoch - len(message.event.losses) + 1
            for step, loss in enumerate(message.event.losses, start=first):
                points.setdefault(step, Metric("train_loss", loss, _ms(message.time), step))
    return [points[step] for step in sorted(points)]


def result_points(result: Result, folder: TrialFolder, prefix: str = "") -> list[Metric]:
    """Scores and duration, what there is of them."""
    values = {
        "aesthetic_mean": result.aesthetic_mean,
        "aesthetic_min": result.aesthetic_min,
        "aesthetic_std": result.aesthetic_std,
        "coherence": result.coherence,
        "duration_s": result.duration_s,
    }
    values |= {f"aesthetic_{number}": value for number, value in enumerate(result.aesthetic, start=1)}
    at_ms = written_ms(folder)
    return [Metric(prefix + name, value, at_ms, 0) for name, value in values.items() if value is not None]


def result_tags(result: Result) -> dict[str, str]:
    tags = {
        "state": result.state,
        "scorer": result.scorer,
        "device": result.device,
        "micro_batch": str(result.micro_batch),
    }
    if result.same_as is not None:
        tags["same_as"] = str(result.same_as)
    if (
        result.spec.train
        and CUDA_OOM.name in result.retried
        and result.micro_batch != result.spec.train.batch_size
    ):
        tags["micro_batch_changed"] = f"{result.spec.train.batch_size} -> {result.micro_batch}"
    if result.state == "complete":
        return tags | {"gate": "pass" if result.passed_gate else "fail"}
    return tags | {"reason": result.reason or "", "message": result.message or ""}


def artifact_files(result: Result, folder: TrialFolder) -> list[tuple[Path, str | None]]:
    """Files and the artifact folder of each; weights may have been tidied away since. A repeat has none: its
    twin does.
    """
    if result.same_as is not None:
        return []
    if result.state == "failed":
        wanted: list[tuple[Path, str | None]] = [(folder.path / "traceback.txt", None)]
    else:
        pictures = [folder.picture(number) for number in range(1, len(result.spec.story.scenes) + 1)]
        wanted = [
            (folder.sheet, None),
            (folder.recipe, None),
            (folder.lora, "lora"),
            *((path, "story") for path in pictures),
        ]
    return [(path, where) for path, where in wanted if path.exists()]


def started_ms(folder: TrialFolder) -> int:
    """When the worker noted its first event; now if it has not yet."""
    messages = read_journal(folder.events)
    return _ms(messages[0].time if messages else time.time())


def written_ms(folder: TrialFolder) -> int:
    """When the result was written; now if the folder of a trial that was told long ago is gone."""
    return _ms(folder.result.stat().st_mtime if folder.result.exists() else time.time())


def _ms(time_s: float) -> int:
    return int(time_s * 1000)


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A trial's run. `written_ms`: the date of the result that it has with all that belongs to it; None while
    at work.

    `deleted`: by the user, so that it stays deleted and is not sent again.
    """

    run_id: str
    written_ms: int | None = None
    deleted: bool = False


class Tracked:
    """The runs that this folder made in one store, and what tells them from those of other folders.

    On a store that others use too, a run of ours has the study's id and the id of the request that made it.
    Both are noted here first: a copy of this folder knows the id, but not the runs that are made after it was
    copied.
    """

    def __init__(
        self,
        folder: StudyFolder,
        *,
        shared: bool,
        store: int | None = None,
        parent: str | None = None,
        trials: dict[int, TrackedRun] | None = None,
        ids: Sequence[str] = (),
    ) -> None:
        """`store` is the one of which all this is true, and `parent` the study's run in it."""
        self._folder, self._shared = folder, shared
        self.store, self.parent, self.trials = store, parent, trials or {}
        self._id, self._requests = next(iter(ids), ""), list(ids[1:])

    @classmethod
    def read(cls, folder: StudyFolder, *, shared: bool) -> Self:
        """As noted in the folder, where a store is `shared` with an id from now on; whatever cannot be read
        is sent again.
        """
        ids = (
            ID.findall(folder.tracking_id.read_bytes().decode(errors="replace"))
            if folder.tracking_id.exists()
            else []
        )
        try:
            noted = read_json(folder.tracked)
            trials = {int(number): TrackedRun(*run) for number, run in noted["trials"].items()}
            tracked = cls(
                folder,
                shared=shared,
                store=noted.get("store"),
                parent=noted["parent"],
                trials=trials,
                ids=ids,
            )
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            tracked = cls(folder, shared=shared, ids=ids)
        if shared and not ids:
            tracked._make_id()
        return tracked

    @property
    def id(self) -> str | None:
        """What tells this study from others of its name; None in a store of its own."""
        return self._id if self._shared else None

    def is_own(self, run: Run) -> bool:
        """Whether this folder made the run; those of before requests had an id have none."""
        study, request = run.data.tags.get(STUDY_ID), run.data.tags.get(REQUEST_ID)
        if not self._shared:
            return study in (None, self._id)
        return study == self._id and request in (None, *self._requests)

    def new_mark(self) -> dict[str, str]:
        """Tags for a run that is about to be made."""
        if not self._shared:
            return {}
        self._requests.append(uuid.uuid4().hex)
        self._write_ids()
        return {STUDY_ID: self._id, REQUEST_ID: self._requests[-1]}

    def take_new_id(self) -> None:
        """Begin with no runs."""
        self._make_id()
        self.parent, self.trials = None, {}

    def note(self, number: int, run: TrackedRun) -> None:
        if self.trials.get(number) != run:
            self._keep(self.trials | {number: run})

    def note_deleted(self, number: int) -> None:
        self.note(number, replace(self.trials[number], deleted=True))

    def forget(self, number: int) -> None:
        if number in self.trials:
            self._keep({other: run for other, run in self.trials.items() if other != number})

    def _keep(self, trials: dict[int, TrackedRun]) -> None:
        """On the disk first: what could not be noted there is sent again, which changes nothing."""
        write_json(
            self._folder.tracked,
            {
                "store": self.store,
                "parent": self.parent,
                "trials": {number: astuple(run) for number, run in trials.items()},
            },
        )
        self.trials = trials

    def _make_id(self) -> None:
        self._id, self._requests = uuid.uuid4().hex, []
        self._write_ids()

    def _write_ids(self) -> None:
        write_text(self._folder.tracking_id, "\n".join((self._id, *self._requests)) + "\n")
