"""Where everything lies under `runs/`; the one place that knows these names."""

from dataclasses import dataclass
from pathlib import Path

from core.files.files import read_json
from core.fingerprint import accepted_changes
from core.trial.result import Result
from core.verdict import BaseStory, Verdict


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """One trial's files, or the base model's own story (`runs/<study>/base`)."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def attempt(self) -> Path:
        """The driver's note on earlier attempts, if one failed."""
        return self.path / "attempt.json"

    @property
    def checkpoint(self) -> Path:
        """How far training has come; gone once the trial is finished."""
        return self.path / "checkpoint.safetensors"

    @property
    def traceback(self) -> Path:
        return self.path / "traceback.txt"

    @property
    def lora(self) -> Path:
        return self.path / "lora.safetensors"

    def epoch_lora(self, epoch: int) -> Path:
        """`epoch` counts from 1."""
        return self.path / "epochs" / f"{epoch:02d}" / "lora.safetensors"

    @property
    def pictures(self) -> Path:
        return self.path / "story"

    def picture(self, number: int) -> Path:
        """`number` counts from 1."""
        return self.pictures / f"{number}.png"

    @property
    def sheet(self) -> Path:
        return self.path / "story.png"

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def read_result(self) -> Result | None:
        """None where there is none, or only a torn one."""
        try:
            return Result.from_json(read_json(self.result))
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs folder: tracking store and cache for all studies, one folder for each."""

    path: Path

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def tracking_db(self) -> Path:
        return self.path / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        return self.path / "mlartifacts"

    @property
    def tracking_lock(self) -> Path:
        return self.path / "mlflow.lock"

    @property
    def ui_log(self) -> Path:
        """What MLflow's server said, the last time that `lora-sweep ui` ran it."""
        return self.path / "ui.log"

    def study(self, name: str) -> "StudyFolder":
        return StudyFolder(self.path / name)


@dataclass(frozen=True, slots=True)
class StudyFolder:
    path: Path

    @property
    def frozen(self) -> Path:
        return self.path / "study.yaml"

    @property
    def fingerprint(self) -> Path:
        return self.path / "fingerprint.json"

    @property
    def db(self) -> Path:
        return self.path / "study.db"

    @property
    def lock(self) -> Path:
        return self.path / "driver.lock"

    @property
    def driver(self) -> Path:
        """Who holds the lock."""
        return self.path / "driver.json"

    @property
    def recovered(self) -> Path:
        """What the last start found and did about it."""
        return self.path / "recovered.json"

    @property
    def tracking_id(self) -> Path:
        """What tells the study from others of its name, where several runs folders share one MLflow."""
        return self.path / "tracking_id"

    @property
    def tracked(self) -> Path:
        """Which of the study's trials MLflow has whole."""
        return self.path / "tracked.json"

    @property
    def worker_log(self) -> Path:
        return self.path / "worker.log"

    @property
    def base(self) -> TrialFolder:
        """The base model's own story: no LoRA, same prompts and seeds."""
        return TrialFolder(self.path / "base")

    @property
    def report(self) -> Path:
        return self.path / "report" / "index.html"

    @property
    def data(self) -> Path:
        """What `lora-sweep data` writes: the page, the audit table, the Data-Juicer recipe."""
        return self.path / "data"

    def numbers(self) -> set[int]:
        """Trials that have a folder."""
        return {
            int(path.name)
            for path in (self.path / "trials").glob("*")
            if path.is_dir() and path.name.isdigit()
        }

    def trial(self, number: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / f"{number:04d}")

    def results(self) -> list[Result]:
        """Every finished trial, by number."""
        found = (
            TrialFolder(path.parent).read_result()
            for path in sorted((self.path / "trials").glob("[0-9]*/result.json"))
        )
        return [result for result in found if result]

    def verdict(self) -> Verdict:
        """What the trials finished so far come to. All of it is read here: ask once, and pass it on."""
        earlier = ((until, self.base_story(until)) for until in self._changed_at())
        bases = [
            BaseStory(until=until, result=base.read_result())
            for until, base in earlier
            if base.result.exists()
        ]
        return Verdict(
            results=tuple(self.results()),
            changes=accepted_changes(self.fingerprint),
            bases=(*bases, BaseStory(until=None, result=self.base.read_result())),
        )

    def earlier(self, until: int) -> "StudyFolder":
        """What a change that was accepted would have replaced: the frozen study and the base model's story of
        trials before `until`. Where the change made no other of it there is none."""
        return StudyFolder(self.path / "earlier" / f"{until:04d}")

    def base_story(self, until: int | None) -> TrialFolder:
        """The base model's story that trials before `until` compare with; None: the present one."""
        return self.base if until is None else self.earlier(until).base

    def frozen_of(self, number: int) -> Path:
        """The study as trial `number` had it."""
        earlier = (self.earlier(until).frozen for until in self._changed_at() if until > number)
        return next((frozen for frozen in earlier if frozen.exists()), self.frozen)

    def _changed_at(self) -> list[int]:
        """The first trials after changes that set something aside, the oldest first."""
        return sorted(int(path.name) for path in (self.path / "earlier").glob("*") if path.name.isdigit())

    def made(self, result: Result) -> TrialFolder:
        """Where a result's LoRA and pictures lie: an exact repeat has those of its twin."""
        return self.trial(result.spec.number if result.same_as is None else result.same_as)


def shown_path(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def study_folders(runs: Runs) -> list[StudyFolder]:
    """Every study under `runs`, by name."""
    return [StudyFolder(path.parent) for path in sorted(runs.path.glob("*/study.yaml"))]
