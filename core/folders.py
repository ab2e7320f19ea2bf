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
        return Result.from_json(read_json(self.result)) if self.result.exists() else None


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

    def study(self, name: str) -> "StudyFolder":
        return StudyFolder(self.path / name)


@dataclass(frozen=True, slots=True)
class StudyFolder:
    path: Path

    @property
    def frozen(self) -> Path:
        return self.path / "study.yaml"

    @property
    def db(self) -> Path:
        return self.path / "study.db"

    @property
    def lock(self) -> Path:
        return self.path / "driver.lock"

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

    def trial(self, number: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / f"{number:04d}")

    def results(self) -> list[Result]:
        """Every finished trial, by number."""
        found = sorted((self.path / "trials").glob("[0-9]*/result.json"))
        return [Result.from_json(read_json(path)) for path in found]
