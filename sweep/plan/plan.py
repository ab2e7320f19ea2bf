"""What a study costs on this machine: time, memory, disk. Times are measured on finished trials, else
estimated. No torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import median_high

from core.base_models import base_model
from core.files.weight_files import needed_bytes
from core.folders import Runs, study_folders
from core.trial.result import Result
from core.trial.spec import TrialSpec, Value
from reports.units import counted, size
from sweep.plan.cost import (
    PeakMemory,
    image_cache_bytes,
    peak_memory,
    story_disk_bytes,
    text_cache_bytes,
    trial_disk_bytes,
)
from sweep.plan.gpu_speed import Estimate, estimate_on_cpu, estimate_on_gpu, not_known
from sweep.plan.machine import Gpu, existing, find_gpus, free_disk_bytes
from sweep.plan.pace import Pace
from sweep.study.space import Choices, Range
from sweep.study.study import Study

Pick = Callable[[Choices | Range], Value]
# Settings that change the cost: smaller is cheaper.
COSTLY = ("lora_rank", "epochs", "steps_per_epoch", "batch_size", "steps", "cfg_scale", "size_px")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A kind of trial, named for the user."""

    name: str
    spec: TrialSpec

    @property
    def disk_bytes(self) -> int:
        """What such a trial adds to the disk."""
        return trial_disk_bytes(self.spec)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What trials of a study cost: sampled ones from cheapest to dearest, and those of its `first`."""

    study: Study
    device: str
    gpu: Gpu | None
    pace: Pace | None  # None: unknown
    basis: str  # what the pace rests on, or why there is none
    cheapest: Row
    typical: Row
    dearest: Row
    first: tuple[Row, ...]
    done: int  # finished trials
    base_done: bool  # whether the base model's own story is there
    memory: PeakMemory | None  # None: not counted for this model
    host_bytes: float
    fetch_bytes: int  # of missing weights
    new_images: int  # training images never scored here

    @property
    def todo(self) -> int:
        """How many trials are left in the budget."""
        return max(0, self.study.budget.trials - self.done)

    @property
    def queue(self) -> list[Row]:
        """The trials left in the budget, in order: those of `first`, then typical ones."""
        first = list(self.first[self.done :][: self.todo])
        return first + [self.typical] * (self.todo - len(first))

    def ends_s(self, pace: Pace) -> list[float]:
        """When the base model's story and then each trial of the queue ends, in seconds from now.

        The time for new training images comes before the first of them.
        """
        base_s = 0.0 if self.base_done else pace.trial_s(self.study.base_spec())
        return list(
            accumulate((pace.trial_s(row.spec) for row in self.queue), initial=base_s + self.images_s(pace))
        )

    def images_s(self, pace: Pace) -> float:
        """Seconds to read, score and encode, once, the training images that are new here."""
        return self.new_images * pace.image_s

    @property
    def disk_bytes(self) -> int:
        """What the trials left and the base model's story add to the disk, without the cache."""
        base = 0 if self.base_done else story_disk_bytes(self.typical.spec)
        return base + sum(row.disk_bytes for row in self.queue)

    @property
    def story_texts_bytes(self) -> int:
        """What the story's prompts take in the cache."""
        spec, scenes = self.typical.spec, self.typical.spec.story.scenes
        texts = len({scene.prompt for scene in scenes}) + len({scene.negative_prompt for scene in scenes})
        return texts * text_cache_bytes(spec)

    @property
    def image_bytes(self) -> int:
        """What one training image with its caption takes in the cache."""
        return image_cache_bytes(self.dearest.spec) + text_cache_bytes(self.typical.spec)


def make_plan(study: Study, runs: Runs, device: str = "auto", new_images: int = 0) -> Plan:
    """`device` as for a worker; auto is a GPU for a model that needs one, else the CPU."""
    model = base_model(study.backbone)
    if device == "auto":
        device = "cuda" if model.needs_gpu else "cpu"
    specs = {name: study.spec(0, _sampled(study, pick)) for name, pick in PICKS.items()}
    specs |= {
        f"first {number}": study.spec(0, _sampled(study, _middle) | entry)
        for number, entry in enumerate(study.first, 1)
    }
    rows = {name: Row(name=name, spec=spec) for name, spec in specs.items()}
    gpu, problem = _gpu(device)
    memory = peak_memory(specs["dearest"], model.work, device) if model.work else None
    estimate = _estimated(study, device, gpu, problem, memory)
    chosen = measured(list(specs.values()), runs, device) or estimate
    if chosen.pace and estimate.pace and not chosen.pace.image_s:
        chosen = replace(chosen, pace=replace(chosen.pace, image_s=estimate.pace.image_s))
    folder = runs.study(study.name)
    return Plan(
        study=study,
        device=device,
        gpu=gpu,
        pace=chosen.pace,
        basis=chosen.basis,
        cheapest=rows.pop("cheapest"),
        typical=rows.pop("typical"),
        dearest=rows.pop("dearest"),
        first=tuple(rows.values()),
        done=len(folder.results()),
        base_done=folder.base.result.exists(),
        memory=memory,
        host_bytes=memory.host if memory else model.host_bytes,
        fetch_bytes=needed_bytes(model.files.missing_files(model.weights_folder(study.weights))),
        new_images=new_images,
    )


@dataclass(frozen=True, slots=True)
class Disk:
    """What the study will still write under `folder`, and how much is free there."""

    folder: Path
    needed_bytes: int
    free_bytes: int

    @property
    def is_short(self) -> bool:
        """Whether the disk is too small for that."""
        return self.needed_bytes > self.free_bytes

    def __str__(self) -> str:
        return f"{self.folder} has {size(self.free_bytes)} free and needs about {size(self.needed_bytes)}"


def disks(plan: Plan, runs: Runs) -> list[Disk]:
    """First the runs folder, for trials; then the models folder, if missing weights go to another disk."""
    models = base_model(plan.study.backbone).weights_folder(plan.study.weights)
    shared = existing(runs.path).stat().st_dev == existing(models).stat().st_dev
    needed = {runs.path: plan.disk_bytes + (plan.fetch_bytes if shared else 0)}
    if plan.fetch_bytes and not shared:
        needed[models] = plan.fetch_bytes
    return [Disk(folder, count, free_disk_bytes(folder)) for folder, count in needed.items()]


def _gpu(device: str) -> tuple[Gpu | None, str]:
    """The GPU that `device` names, or why there is none; neither for the CPU."""
    if device == "cpu":
        return None, ""
    gpus, number = find_gpus(), int(device.partition(":")[2] or 0)
    if number < len(gpus.found):
        return gpus.found[number], ""
    return None, gpus.problem or f"there is no {device}, only {len(gpus.found)} GPU"


def measured(specs: list[TrialSpec], runs: Runs, device: str) -> Estimate | None:
    """The pace of finished trials of this study, else of comparable ones of other studies under `runs`; None
    if there are none.

    Comparable are trials of the same backbone, precision, kind of device and one of the sizes of `specs`.
    """
    sizes, one = {spec.render.size_px for spec in specs}, specs[0]

    def alike(result: Result) -> bool:
        spec = result.spec
        return (
            (spec.backbone, spec.precision) == (one.backbone, one.precision)
            and spec.render.size_px in sizes
            and result.device.partition(":")[0] == device.partition(":")[0]
        )

    own = Pace.of(filter(alike, runs.study(one.study).results()))
    if own:
        return Estimate(own, f"measured on {counted(own.trials, 'finished trial')} of this study")
    elsewhere = (folder for folder in study_folders(runs) if folder.path.name != one.study)
    others = [result for folder in elsewhere for result in folder.results() if alike(result)]
    pace = Pace.of(others)
    if pace is None:
        return None
    studies = ", ".join(sorted({result.spec.study for result in others}))
    return Estimate(pace, f"measured on {counted(pace.trials, 'finished trial')} of {studies}")


def _estimated(
    study: Study, device: str, gpu: Gpu | None, problem: str, memory: PeakMemory | None
) -> Estimate:
    if problem:
        return Estimate(None, problem)
    model = base_model(study.backbone)
    if model.work and memory and gpu:
        choice = study.train.gradient_checkpointing
        return estimate_on_gpu(
            model.work,
            gpu,
            study.precision,
            checkpointing=memory.training > gpu.memory_bytes if choice == "auto" else choice == "on",
        )
    if model.on_cpu and device == "cpu":
        return estimate_on_cpu(model.on_cpu)
    return not_known(f"how fast {study.backbone} is on {device}", "there")


def _sampled(study: Study, pick: Pick) -> dict[str, Value]:
    """One value for each setting of the space, by `pick` where the setting changes the cost."""
    return {name: pick(search) if name in COSTLY else search.start for name, search in study.space.items()}


def _middle(search: Choices | Range) -> Value:
    """The middle of the search: the geometric one of a logarithmic range."""
    if isinstance(search, Choices):
        middle: Value = median_high(search.values)
        return middle
    value = math.sqrt(search.low * search.high) if search.log else (search.low + search.high) / 2
    step = search.distance
    return search.low + math.floor((value - search.low) / step + 0.5) * step if step else value


PICKS: dict[str, Pick] = {
    "cheapest": lambda search: min(search.values),
    "typical": _middle,
    "dearest": lambda search: max(search.values),
}
