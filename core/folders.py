"""Where everything lies under `runs/`; the one place that knows these names."""
from dataclasses import dataclass
from pathlib import Path

from core.files import read_json
from core.settings import Result


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
class Change:
    """One that the user accepted: scores of trials from `from_trial` on do not compare with those before."""
    from_trial: int
    told: str


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
        return {int(path.name) for path in (self.path / "trials").glob("*") if path.is_dir() and path.name.isdigit()}

    def trial(self, number: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / f"{number:04d}")

    def results(self) -> list[Result]:
        """Every finished trial, by number."""
        found = (TrialFolder(path.parent).read_result() for path in sorted((self.path / "trials").glob("[0-9]*/result.json")))
        return [result for result in found if result]

    def changes(self) -> list[Change]:
        """The accepted changes, in their order."""
        try:
            history = read_json(self.fingerprint)["history"]
            return [Change(entry["from_trial"], entry.get("told", entry["field"])) for entry in history
                    if not entry.get("compares")]
        except (OSError, ValueError, KeyError, TypeError):  # none, or one that the next start refuses
            return []

    def compares_from(self) -> int:
        """The first trial whose score compares with the newest: those before it had other words, pictures or weights."""
        return max((change.from_trial for change in self.changes()), default=0)

    def earlier(self, until: int) -> "StudyFolder":
        """What a change that was accepted would have replaced: the frozen study and the base model's story of trials before
        `until`. Where the change made no other of it there is none."""
        return StudyFolder(self.path / "earlier" / f"{until:04d}")

    def base_of(self, number: int) -> TrialFolder:
        """The base model's story that trial `number` compares with."""
        return next((then.base for then in self._earlier_than(number) if then.base.result.exists()), self.base)

    def frozen_of(self, number: int) -> Path:
        """The study as trial `number` had it."""
        return next((then.frozen for then in self._earlier_than(number) if then.frozen.exists()), self.frozen)

    def _earlier_than(self, number: int) -> list["StudyFolder"]:
        """Those that trial `number` may belong to, the oldest first."""
        found = sorted(int(path.name) for path in (self.path / "earlier").glob("*") if path.name.isdigit())
        return [self.earlier(until) for until in found if until > number]

    def made(self, result: Result) -> TrialFolder:
        """Where a result's LoRA and pictures lie: an exact repeat has those of its twin."""
        return self.trial(result.spec.number if result.same_as is None else result.same_as)


def shown_path(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
