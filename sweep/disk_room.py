"""Room on the disk: what the next trial needs, and which trials' weights may be removed for it."""

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from core.errors import LoraSweepError
from core.folders import StudyFolder, TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec
from sweep.plan.cost import checkpoint_disk_bytes, trial_disk_bytes

GB = 10**9
LEAST_BYTES = 200 * 10**6  # for images, databases and logs


class NoRoom(LoraSweepError):
    """The disk is too full for another trial; the message is one line for the user."""


def ensure_room(
    study: StudyFolder,
    spec: TrialSpec,
    keep: int,
    limit_gb: float | None,
    queued_by_hand: set[int],
    sent: Collection[int] = (),
) -> list[int]:
    """Remove weights if trial `spec` needs their room -> the trials that lost theirs. Raises NoRoom.

    The best `keep` trials and the `queued_by_hand` never lose theirs; images, scores and recipes always stay.
    Trials that were uploaded to MLflow (`sent`) lose theirs first.
    """
    need = LEAST_BYTES + trial_disk_bytes(spec) + checkpoint_disk_bytes(spec)
    removed: list[int] = []
    if limit_gb is None and shutil.disk_usage(study.path).free >= need:
        return removed
    for result in _expendable(study, keep, queued_by_hand, sent):
        if _lacking(study, need, limit_gb) <= 0:
            break
        for path in _weights(study.trial(result.spec.number)):
            path.unlink()
        removed.append(result.spec.number)
    free = shutil.disk_usage(study.path).free
    if free < need:
        raise NoRoom(
            f"{study.path}: {free / GB:.1f} GB are free and the next trial needs {need / GB:.1f} GB; "
            "free some disk (storage.keep says how many trials keep their LoRAs), then run the same command"
        )
    return removed


def _lacking(study: StudyFolder, need: int, limit_gb: float | None) -> float:
    """Bytes over the limit, or short of what the next trial needs, whichever is more."""
    short = need - shutil.disk_usage(study.path).free
    if limit_gb is None:
        return short
    return max(short, _size(study.trials) - limit_gb * GB)


def _expendable(
    study: StudyFolder, keep: int, queued_by_hand: set[int], sent: Collection[int]
) -> Iterator[Result]:
    """Trials whose weights may be removed, in this order: uploaded to MLflow before others, worst first.

    Not the best, the queued_by_hand, nor a trial whose weights one of these shares (`same_as`).
    """
    results = study.verdict().ranked
    complete = [result for result in results if result.state == "complete"]
    best = {result.spec.number for result in complete[:keep]} | queued_by_hand
    kept = best | {result.same_as for result in results if result.spec.number in best}
    awaited = {result.spec.number for result in results if result.spec.number not in sent}
    worst_first = results[::-1]
    for result in sorted(worst_first, key=lambda result: result.spec.number in awaited):
        if result.spec.number not in kept and any(True for _ in _weights(study.trial(result.spec.number))):
            yield result


def _weights(trial: TrialFolder) -> Iterator[Path]:
    yield from (
        path
        for path in (trial.checkpoint, trial.lora, *trial.path.glob("epochs/*/lora.safetensors"))
        if path.exists()
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
