"""A trial's files as MLflow's entities: params, metrics, tags and artifacts.

Timestamps come from the files, never from the clock, so that an upload is idempotent.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, Param

from core.folders import TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec, Value
from sweep.events import Epoch, read_journal
from sweep.failures import CUDA_OOM

MAX_PARAM_CHARS = 6000  # MLflow's own limit


def as_params(values: Mapping[str, Value]) -> list[Param]:
    """Settings as MLflow's params: text as it is, anything else as JSON; cut to MLflow's limit."""
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
    """How the trial ended, as tags: state, scorer, device, processor, the gate's verdict or the failure."""
    tags = {
        "state": result.state,
        "scorer": result.scorer,
        "device": result.device,
        "processor": result.processor,
        "micro_batch": str(result.micro_batch),
    }
    if result.same_as is not None:
        tags["same_as"] = str(result.same_as)
    batch_size = result.spec.train.batch_size if result.spec.train else result.micro_batch
    if CUDA_OOM.name in result.retried and result.micro_batch != batch_size:
        tags["micro_batch_changed"] = f"{batch_size} -> {result.micro_batch}"
    if result.state == "complete":
        tags["gate"] = "pass" if result.passed_gate else "fail"
    else:
        tags |= {"reason": result.reason or "", "message": result.message or ""}
    return {name: value for name, value in tags.items() if value}


def artifact_files(result: Result, folder: TrialFolder) -> list[tuple[Path, str | None]]:
    """Each file to upload and its artifact folder; files that are gone, such as deleted LoRAs, are left out.
    A trial that repeats another one has none: the other one has them.
    """
    if result.same_as is not None:
        return []
    if result.state == "failed":
        wanted: list[tuple[Path, str | None]] = [(folder.traceback, None)]
    else:
        wanted = [(folder.sheet, None), (folder.recipe, None), (folder.lora, "lora")]
        wanted += [(folder.image(number), "story") for number, _ in enumerate(result.spec.story.scenes, 1)]
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
