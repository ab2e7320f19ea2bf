"""Every class of failure, one row each: what is done about a trial that fails so, and about its worker.

docs/night.md has the same table for users; a test compares the two.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """`name` is the `reason` in result.json, Optuna, MLflow and the tables.

    `retried`: it may be an accident. The trial is retried once for each class, from its checkpoint, in a
    fresh worker; a later trial with the same settings is run too instead of getting the same result.
    `retires_worker`: its process or its device context is not used for another trial. `by_parameters`: the
    settings caused it. Its state in Optuna is PRUNED, from which the sampler learns to avoid them; otherwise
    FAIL, from which it learns nothing. `explained`: the message says everything; for the others worker.log
    has the traceback. `advice`: what to do after three failures in a row, the last of them this one; empty
    where such failures never stop a sweep.
    """

    name: str
    retried: bool = False
    retires_worker: bool = False
    by_parameters: bool = False
    explained: bool = False
    advice: str = ""


NAN_LOSS = Failure(name="nan_loss", by_parameters=True, explained=True)
CUDA_OOM = Failure(name="cuda_oom", retried=True, retires_worker=True, by_parameters=True, explained=True)
BLACK_IMAGES = Failure(name="black_pictures", by_parameters=True, explained=True)
NO_IMAGES = Failure(name="no_images", by_parameters=True, explained=True)
# Queued with settings that the study does not allow; it is not run.
NOT_ALLOWED = Failure(name="not_allowed", explained=True)
BAD_IMAGE = Failure(
    name="bad_image", explained=True, advice="lora-sweep data shows what is wrong with the images"
)
HUNG = Failure(
    name="hung", retried=True, retires_worker=True, advice="look for a stuck disk, network folder or GPU"
)
KILLED = Failure(
    name="killed",
    retried=True,
    retires_worker=True,
    advice="something kills the worker: look at the system's log",
)
DEVICE_LOST = Failure(
    name="device_lost",
    retried=True,
    retires_worker=True,
    advice=(
        "the GPU or its driver is in trouble: look at `nvidia-smi` and the system's log, or start the "
        "machine again"
    ),
)
HOST_OOM = Failure(
    name="host_oom",
    retires_worker=True,
    advice="the machine's memory is too small for this: close other programs, or lower batch_size or size_px",
)
DISK_FULL = Failure(name="disk_full", advice="free some disk, or set storage.limit_gb in the study")
BUG = Failure(name="bug", advice="trials/*/traceback.txt says where")  # anything else

FAILURES = {
    row.name: row
    for row in (
        NAN_LOSS,
        CUDA_OOM,
        BLACK_IMAGES,
        NO_IMAGES,
        NOT_ALLOWED,
        BAD_IMAGE,
        HUNG,
        KILLED,
        DEVICE_LOST,
        HOST_OOM,
        DISK_FULL,
        BUG,
    )
}


def failure(reason: str | None) -> Failure:
    """The row of a result's `reason`; None, and one that this version does not know, counts as a bug."""
    return FAILURES.get(reason or "", BUG)
