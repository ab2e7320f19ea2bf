"""What a study's folder knows of its runs in MLflow: noted on the disk before anything relies on it."""
import re
import uuid
from dataclasses import astuple, dataclass, replace

from mlflow.entities import Run

from core.files import read_json, write_json, write_text
from core.folders import StudyFolder

STUDY_ID, REQUEST_ID = "study_id", "request_id"  # tags on every run, where a store is shared

ID = re.compile(r"\b[0-9a-f]{32}\b")


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A trial's run. `written_ms`: the date of the result that it has with all that belongs to it; None while at work.

    `deleted`: by the user, so that it stays deleted and is not sent again.
    """
    run_id: str
    written_ms: int | None = None
    deleted: bool = False


class Tracked:
    """The runs that this folder made in one store, and what tells them from those of other folders.

    On a store that others use too, a run of ours has the study's id and the id of the request that made it. Both are noted here
    first: a copy of this folder knows the id, but not the runs that are made after it was copied.
    """

    def __init__(self, folder: StudyFolder, *, shared: bool) -> None:
        self._folder, self._shared = folder, shared
        self.store: int | None = None  # of which store all this is true, and its parent run
        self.parent: str | None = None
        self.trials: dict[int, TrackedRun] = {}
        self._read()
        ids = ID.findall(folder.tracking_id.read_bytes().decode(errors="replace")) if folder.tracking_id.exists() else []
        self._id, self._requests = next(iter(ids), ""), ids[1:]
        if shared and not self._id:
            self._make_id()

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
        write_json(self._folder.tracked, {"store": self.store, "parent": self.parent,
                                          "trials": {number: astuple(run) for number, run in trials.items()}})
        self.trials = trials

    def _read(self) -> None:
        """Whatever cannot be read is sent again."""
        try:
            stored = read_json(self._folder.tracked)
            self.trials = {int(number): TrackedRun(*run) for number, run in stored["trials"].items()}
            self.store, self.parent = stored.get("store"), stored["parent"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            pass

    def _make_id(self) -> None:
        self._id, self._requests = uuid.uuid4().hex, []
        self._write_ids()

    def _write_ids(self) -> None:
        write_text(self._folder.tracking_id, "\n".join((self._id, *self._requests)) + "\n")
