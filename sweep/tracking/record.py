"""The study folder's record of the runs that it made in MLflow."""

import re
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from mlflow.entities import Run

from core.files.files import read_json, write_json, write_text
from core.folders import StudyFolder

STUDY_ID, REQUEST_ID = "study_id", "request_id"  # tags on every run, where a store is shared
ID = re.compile(r"\b[0-9a-f]{32}\b")


class TrackedRun(NamedTuple):
    """A trial's run in MLflow.

    `written_ms`: when the result that is fully sent was written; None while the trial is not fully sent.
    `deleted`: the user deleted the run, and it is not sent again.
    """

    run_id: str
    written_ms: int | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Tracked:
    """The content of tracked.json."""

    parent: str | None
    trials: dict[int, TrackedRun]
    store: int | None = None


@dataclass(slots=True)
class Record:
    """The runs that this study folder made in one store, and the ids that identify them.

    In a shared store each of our runs has the study's id and the id of the request that created it as tags.
    Both ids are written to the folder first: a copy of the folder has the same study id, but lacks the
    request ids of runs that were created after the copy.

    `store` identifies the store of these runs (see `store_id`); `parent` is the study's run in it. `ids` has
    the study's id, then those of the requests; none in a folder that never used a shared store.
    """

    folder: StudyFolder
    shared: bool
    store: int | None = None
    parent: str | None = None
    trials: dict[int, TrackedRun] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: StudyFolder, *, shared: bool) -> Self:
        """The folder's record, empty if it cannot be read: all runs are then sent again. With a `shared`
        store the study gets an id if it has none.
        """
        record = cls(folder, shared)
        if folder.tracking_id.exists():
            record.ids = ID.findall(folder.tracking_id.read_bytes().decode(errors="replace"))
        with suppress(FileNotFoundError, ValueError):
            tracked = read_json(folder.tracked, _Tracked)
            record.store, record.parent, record.trials = tracked.store, tracked.parent, tracked.trials
        if shared and not record.ids:
            record._make_id()
        return record

    @property
    def id(self) -> str | None:
        """Tells this study from others of its name in a shared store; None in a store of its own."""
        return self.ids[0] if self.shared else None

    def is_own(self, run: Run) -> bool:
        """Whether this folder created the run; runs of earlier versions have no request id."""
        study, request = run.data.tags.get(STUDY_ID), run.data.tags.get(REQUEST_ID)
        if not self.shared:
            return study in (None, *self.ids[:1])
        return study == self.id and request in (None, *self.ids[1:])

    def new_mark(self) -> dict[str, str]:
        """Tags for a run that is about to be created; its new request id is written to the folder first."""
        if not self.shared:
            return {}
        self.ids.append(uuid.uuid4().hex)
        self._write_ids()
        return {STUDY_ID: self.ids[0], REQUEST_ID: self.ids[-1]}

    def take_new_id(self) -> None:
        """Give the study a new id, with no runs."""
        self._make_id()
        self.parent, self.trials = None, {}

    def note(self, number: int, run: TrackedRun | None) -> None:
        """Record the run of trial `number`, on the disk too; None: it has none, and will get a new one."""
        trials = {known: each for known, each in {**self.trials, number: run}.items() if each}
        if trials != self.trials:
            # The file first: if that fails the runs are sent again, which is idempotent.
            write_json(self.folder.tracked, _Tracked(self.parent, trials, self.store))
            self.trials = trials

    def _make_id(self) -> None:
        self.ids = [uuid.uuid4().hex]
        self._write_ids()

    def _write_ids(self) -> None:
        write_text(self.folder.tracking_id, "\n".join(self.ids) + "\n")
