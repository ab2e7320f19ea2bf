"""Names of the files and folders under `runs/`: other modules take them from here."""

from dataclasses import dataclass
from pathlib import Path

from core.files.files import read_json
from core.fingerprint import read_fingerprint
from core.trial.result import Result
from core.verdict import BaseStory, Verdict

RUNS_MARK = "mlflow.lock"  # a file of every runs folder, by which one is known


class Inside:
    """The path of a file or folder inside `TrialFolder`, `Runs` or `StudyFolder`, as an attribute of that."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __get__(self, folder: "TrialFolder | Runs | StudyFolder", kind: type[object]) -> Path:
        return folder.path / self._place


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """Paths of one trial's files, or of the base model's own story (`runs/<study>/base`)."""

    path: Path

    # The trial's TrialSpec, written before it starts
    spec = Inside("spec.json")
    # Journal of the worker's events, one JSON object per line
    events = Inside("events.jsonl")
    # How earlier attempts at this trial ended; only there if one failed
    attempt = Inside("attempt.json")
    # Training state to resume from; deleted once the trial is finished
    checkpoint = Inside("checkpoint.safetensors")
    # Traceback of an unforeseen failure
    traceback = Inside("traceback.txt")
    # The LoRA after the last epoch, which drew the story
    lora = Inside("lora.safetensors")

    # Folder of the story's images, one PNG per scene
    images = Inside("story")
    # All images of the story on one sheet
    sheet = Inside("story.png")
    # What is needed to render the story again (core/trial/recipe.py)
    recipe = Inside("recipe.json")
    # The trial's Result, written last: a trial without it is not finished
    result = Inside("result.json")

    def epoch_lora(self, epoch: int) -> Path:
        """The LoRA after one epoch; `epoch` counts from 1."""
        return self.path / "epochs" / f"{epoch:02d}" / "lora.safetensors"

    def image(self, number: int) -> Path:
        """The image of one scene; `number` counts from 1."""
        return self.images / f"{number}.png"

    def read_result(self) -> Result | None:
        """The trial's Result; None where the file is missing or not readable."""
        try:
            return read_json(self.result, Result)
        except (OSError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Runs:
    """Paths in the runs folder: MLflow's store and the cache of all studies, and a folder for each study."""

    path: Path

    # Embeddings, latents and image facts by content, shared by all studies
    cache = Inside("cache")
    # MLflow's SQLite database, used unless another tracking server is named
    tracking_db = Inside("mlflow.db")
    # MLflow's artifacts that belong to `tracking_db`
    artifacts = Inside("mlartifacts")
    # Held while a process creates or upgrades `tracking_db`
    tracking_lock = Inside(RUNS_MARK)
    # Output of MLflow's server from the last `lora-sweep ui`
    ui_log = Inside("ui.log")

    def study(self, name: str) -> "StudyFolder":
        """The folder of the study of this name, whether it exists or not."""
        return StudyFolder(self.path / name)


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Paths of one study's files, `runs/<study>`, and what can be read from them."""

    path: Path

    # Copy of the study file that trials are run with; each start compares the user's file with it
    frozen = Inside("study.yaml")
    # What the scores depend on (core/fingerprint.py)
    fingerprint = Inside("fingerprint.json")
    # Optuna's SQLite database
    db = Inside("study.db")
    # Lock file that allows one driver at a time
    lock = Inside("driver.lock")
    # Which process holds the lock
    driver = Inside("driver.json")
    # What the last start found unfinished, and how it resolved that
    recovered = Inside("recovered.json")
    # A unique id of this study, for several runs folders may share one MLflow and use one name
    tracking_id = Inside("tracking_id")
    # Which of the study's trials were fully uploaded to MLflow
    tracked = Inside("tracked.json")
    # What the worker process and its libraries print
    worker_log = Inside("worker.log")

    # The HTML report
    report = Inside("report/index.html")
    # Folder that `lora-sweep data` writes: the page, the audit table, the Data-Juicer config
    data = Inside("data")
    # A folder for each trial
    trials = Inside("trials")

    @property
    def base(self) -> TrialFolder:
        """The base model's own story: no LoRA, same prompts and seeds."""
        return TrialFolder(self.path / "base")

    def numbers(self) -> set[int]:
        """Numbers of the trials that have a folder."""
        return {int(path.name) for path in self.trials.glob("*") if path.is_dir() and path.name.isdigit()}

    def trial(self, number: int) -> TrialFolder:
        """The folder of one trial; `number` counts from 0, as Optuna's."""
        return TrialFolder(self.trials / f"{number:04d}")

    def results(self) -> list[Result]:
        """Results of all finished trials, in the order of their numbers."""
        found = (self.trial(number).read_result() for number in sorted(self.numbers()))
        return [result for result in found if result]

    def verdict(self) -> Verdict:
        """Ranking and winner of the trials finished so far. Reads every result: call once and pass it on."""
        earlier = ((until, self.base_story(until)) for until in self._changed_at())
        bases = [
            BaseStory(until=until, result=base.read_result())
            for until, base in earlier
            if base.result.exists()
        ]
        return Verdict(
            results=tuple(self.results()),
            changes=read_fingerprint(self.fingerprint).accepted,
            bases=(*bases, BaseStory(until=None, result=self.base.read_result())),
        )

    def earlier(self, until: int) -> "StudyFolder":
        """Folder of what an accepted change replaced: the study and the base story of trials before `until`.

        Missing where the change left both as they were.
        """
        return StudyFolder(self.path / "earlier" / f"{until:04d}")

    def base_story(self, until: int | None) -> TrialFolder:
        """The base model's story that trials before `until` compare with; None: the present one."""
        return self.base if until is None else self.earlier(until).base

    def frozen_of(self, number: int) -> Path:
        """The frozen study file that trial `number` was run with."""
        earlier = (self.earlier(until).frozen for until in self._changed_at() if until > number)
        return next((frozen for frozen in earlier if frozen.exists()), self.frozen)

    def _changed_at(self) -> list[int]:
        """For each folder under `earlier/`, oldest first, the first trial after its change."""
        return sorted(int(path.name) for path in (self.path / "earlier").glob("*") if path.name.isdigit())

    def artifacts_of(self, result: Result) -> TrialFolder:
        """The folder with a result's LoRA and images; for an exact repeat that of the trial it repeats."""
        return self.trial(result.spec.number if result.same_as is None else result.same_as)


def shown_path(path: Path) -> str:
    """A path for messages: relative to the current folder if it lies inside, else as it is."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def study_folders(runs: Runs) -> list[StudyFolder]:
    """Every study under `runs`, by name."""
    return [StudyFolder(path.parent) for path in sorted(runs.path.glob("*/study.yaml"))]
