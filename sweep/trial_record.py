"""A trial's files in MLflow's words. Every time comes from the files, never from the clock: told again, it is the same."""
import json
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Param

from core.folders import TrialFolder
from core.settings import Result, TrialSpec
from sweep.events import Epoch, read_journal
from sweep.failures import CUDA_OOM

MAX_PARAMS, MAX_PARAM_CHARS = 100, 6000  # MLflow's own limits, for one call and for one value


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
    values = {"aesthetic_mean": result.aesthetic_mean, "aesthetic_min": result.aesthetic_min,
              "aesthetic_std": result.aesthetic_std, "coherence": result.coherence, "duration_s": result.duration_s}
    values |= {f"aesthetic_{number}": value for number, value in enumerate(result.aesthetic, start=1)}
    at_ms = written_ms(folder)
    return [Metric(prefix + name, value, at_ms, 0) for name, value in values.items() if value is not None]


def result_tags(result: Result) -> dict[str, str]:
    tags = {"state": result.state, "scorer": result.scorer, "device": result.device, "micro_batch": str(result.micro_batch)}
    if result.same_as is not None:
        tags["same_as"] = str(result.same_as)
    if result.spec.train and CUDA_OOM.name in result.retried and result.micro_batch != result.spec.train.batch_size:
        tags["micro_batch_changed"] = f"{result.spec.train.batch_size} -> {result.micro_batch}"
    if result.state == "complete":
        return tags | {"gate": "pass" if result.passed_gate else "fail"}
    return tags | {"reason": result.reason or "", "message": result.message or ""}


def artifact_files(result: Result, folder: TrialFolder) -> list[tuple[Path, str | None]]:
    """Files and the artifact folder of each; weights may have been tidied away since. A repeat has none: its twin does."""
    if result.same_as is not None:
        return []
    if result.state == "failed":
        wanted: list[tuple[Path, str | None]] = [(folder.path / "traceback.txt", None)]
    else:
        pictures = [folder.picture(number) for number in range(1, len(result.spec.story.scenes) + 1)]
        wanted = [(folder.sheet, None), (folder.recipe, None), (folder.lora, "lora"), *((path, "story") for path in pictures)]
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
