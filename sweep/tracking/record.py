"""A trial's files as MLflow's params, metrics, tags and artifacts, and the study folder's record of its runs.

Timestamps come from the files, never from the clock, so that an upload is idempotent.
"""

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Self

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
    """Settings as MLflow's params: text as it is, anything else as JSON; cut to MLflow's limit."""
    assert len(values) <= MAX_PARAMS
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [Param(name, text[:MAX_PARAM_CHARS]) for name, text in texts.items()]


def loss_points(spec: TrialSpec, folder: TrialFolder) -> list[Metric]:
    """Losses of the finished epochs, one point per step from 1; of a repeated epoch the first ones."""
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
    """Scores and duration as metrics; a value that is None is left out."""
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
    """How the trial ended, as tags: state, scorer, device, and the gate's verdict or the failure."""
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
    """Each file to upload and its artifact folder; files that are gone, such as deleted LoRAs, are left out.
    A trial that repeats another one has none: the other one has them.
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
    """When the worker wrote its first event, in ms since the epoch; now if it has not yet."""
    messages = read_journal(folder.events)
    return _ms(messages[0].time if messages else time.time())


def written_ms(folder: TrialFolder) -> int:
    """When the result was written, in ms since the epoch; now if it is gone from the folder."""
    return _ms(folder.result.stat().st_mtime if folder.result.exists() else time.time())


def _ms(time_s: float) -> int:
    return int(time_s * 1000)


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A trial's run in MLflow.

    `written_ms`: when the result that is fully sent was written; None while the trial is not fully sent.
    `deleted`: the user deleted the run, and it is not sent again.
    """

    run_id: str
    written_ms: int | None = None
    deleted: bool = False


class Tracked:
    """The runs that this study folder made in one store, and the ids that identify them.

    In a shared store each of our runs has the study's id and the id of the request that created it as tags.
    Both ids are written to the folder first: a copy of the folder has the same study id, but lacks the
    request ids of runs that were created after the copy.
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
        """`store` identifies the store of these runs (see `store_id`); `parent` is the study's run in it."""
        self._folder, self._shared = folder, shared
        self.store, self.parent, self.trials = store, parent, trials or {}
        self._id, self._requests = next(iter(ids), ""), list(ids[1:])

    @classmethod
    def read(cls, folder: StudyFolder, *, shared: bool) -> Self:
        """The folder's record, empty if it cannot be read: all runs are then sent again. With a `shared`
        store the study gets an id if it has none.
        """
        ids = (
            ID.findall(folder.tracking_id.read_bytes().decode(errors="replace"))
            if folder.tracking_id.exists()
            else []
        )
        try:
            noted = read_json(folder.tracked, dict[str, Any])
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
        """Tells this study from others of its name in a shared store; None in a store of its own."""
        return self._id if self._shared else None

    def is_own(self, run: Run) -> bool:
        """Whether this folder created the run; runs of earlier versions have no request id."""
        study, request = run.data.tags.get(STUDY_ID), run.data.tags.get(REQUEST_ID)
        if not self._shared:
            return study in (None, self._id)
        return study == self._id and request in (None, *self._requests)

    def new_mark(self) -> dict[str, str]:
        """Tags for a run that is about to be created; its new request id is written to the folder first."""
        if not self._shared:
            return {}
        self._requests.append(uuid.uuid4().hex)
        self._write_ids()
        return {STUDY_ID: self._id, REQUEST_ID: self._requests[-1]}

    def take_new_id(self) -> None:
        """Give the study a new id, with no runs."""
        self._make_id()
        self.parent, self.trials = None, {}

    def note(self, number: int, run: TrackedRun) -> None:
        """Record the run of trial `number`, on the disk too."""
        if self.trials.get(number) != run:
            self._keep(self.trials | {number: run})

    def note_deleted(self, number: int) -> None:
        """Record that the user deleted the run of trial `number` in MLflow."""
        self.note(number, replace(self.trials[number], deleted=True))

    def forget(self, number: int) -> None:
        """Remove trial `number` from the record: it will get a new run."""
        if number in self.trials:
            self._keep({other: run for other, run in self.trials.items() if other != number})

    def _keep(self, trials: dict[int, TrackedRun]) -> None:
        """Write the file first: if that fails the runs are sent again, which is idempotent."""
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
