"""What a study costs on this machine: time, memory, disk. Measured where trials were finished, else estimated; no torch."""
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from statistics import median_high
from typing import Any

from core.folders import Runs, StudyFolder
from core.settings import Result, TrialSpec
from sweep.cards import Guess, guess_kolors, guess_tiny
from sweep.cost import (
    TINY_HOST_BYTES,
    PeakMemory,
    kolors_memory,
    picture_cache_bytes,
    story_disk_bytes,
    text_cache_bytes,
    trial_disk_bytes,
)
from sweep.machine import Gpu, find_gpus
from sweep.pace import Pace
from sweep.space import Choices, Range
from sweep.status import study_folders
from sweep.study import Study

log = logging.getLogger(__name__)
Pick = Callable[[Choices | Range], Any]
COSTLY = ("lora_rank", "epochs", "steps_per_epoch", "batch_size", "steps", "cfg_scale", "size_px")  # cheap when small


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A kind of trial, and what one costs; None is not known."""
    name: str
    spec: TrialSpec
    parts_s: dict[str, float] | None
    disk_bytes: int | None

    @property
    def trial_s(self) -> float | None:
        return sum(self.parts_s.values()) if self.parts_s else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`rows` start with the kinds of trials that are sampled; `first` holds the hand-made ones that are still to do."""
    study: Study
    device: str
    gpu: Gpu | None
    pace: Pace | None
    basis: str                   # what the times rest on, or why there are none
    cheapest: Row
    typical: Row
    dearest: Row
    first: tuple[Row, ...]
    done: int
    base_s: float | None         # the base model's own story; 0 once it is there
    memory: PeakMemory | None    # None for the toy
    host_bytes: float

    @property
    def todo(self) -> int:
        return max(0, self.study.budget.trials - self.done)

    @cached_property
    def queue_s(self) -> list[float] | None:
        """The trials still to do, in order: the hand-made ones, then typical ones."""
        first = [row.trial_s for row in self.first][self.done:][:self.todo]
        times = first + [self.typical.trial_s] * (self.todo - len(first))
        return None if any(time is None for time in times) else [time for time in times if time is not None]

    @property
    def sweep_s(self) -> float | None:
        return None if self.queue_s is None or self.base_s is None else self.base_s + sum(self.queue_s)

    def fitting(self, seconds: float) -> int | None:
        """How many of the trials still to do are finished within so long."""
        if self.queue_s is None or self.base_s is None:
            return None
        return sum(end <= seconds for end in accumulate(self.queue_s, initial=self.base_s)) - (self.base_s <= seconds)

    @property
    def disk_bytes(self) -> int | None:
        """What the trials still to do leave behind, the base model's story and all texts, without the pictures' cache."""
        first = [row.disk_bytes for row in self.first][self.done:][:self.todo]
        sizes = first + [self.typical.disk_bytes] * (self.todo - len(first))
        if any(size is None for size in sizes):
            return None
        base = 0 if self.base_s == 0 else story_disk_bytes(self.typical.spec)
        return sum(size for size in sizes if size is not None) + base

    @property
    def story_texts_bytes(self) -> int:
        spec = self.typical.spec
        return text_cache_bytes(spec) * len({words for scene in spec.story.scenes
                                             for words in ((scene.prompt, True), (scene.negative_prompt, False))})

    @property
    def picture_bytes(self) -> int:
        """What one training picture with its caption takes in the cache."""
        return picture_cache_bytes(self.dearest.spec) + text_cache_bytes(self.typical.spec)


def make_plan(study: Study, runs: Runs, device: str | None = None) -> Plan:
    """`device` is a worker's: cpu, cuda, cuda:1; by default what the backbone is made for."""
    device = device or ("cuda" if study.backbone == "kolors" else "cpu")
    specs = {"cheapest": _spec(study, _least), "typical": _spec(study, _middle), "dearest": _spec(study, _most)}
    specs |= {f"first {number}": study.spec(0, _sampled(study, _middle) | entry) for number, entry in enumerate(study.first, 1)}
    gpus = find_gpus() if device.startswith("cuda") else None
    number = int(device.partition(":")[2] or 0)
    gpu = gpus.found[number] if gpus and number < len(gpus.found) else None
    memory = kolors_memory(specs["dearest"]) if study.backbone == "kolors" else None

    folder = runs.study(study.name)
    guess = measured(specs.values(), runs, device)
    if guess is None and device.startswith("cuda") and gpu is None:
        guess = Guess(None, gpus.problem if gpus and gpus.problem else f"there is no {device}")
    if guess is None:
        guess = _estimated(study, device, gpu, memory)
    rows = {name: Row(name=name, spec=spec, parts_s=guess.pace and guess.pace.parts_s(spec), disk_bytes=trial_disk_bytes(spec))
            for name, spec in specs.items()}
    base_spec = study.base_spec()
    base_s = 0.0 if folder.base.result.exists() else guess.pace and guess.pace.trial_s(base_spec)
    return Plan(
        study=study, device=device, gpu=gpu, pace=guess.pace, basis=guess.basis, cheapest=rows.pop("cheapest"),
        typical=rows.pop("typical"), dearest=rows.pop("dearest"), first=tuple(rows.values()), done=len(folder.results()),
        base_s=base_s, memory=memory, host_bytes=memory.host if memory else TINY_HOST_BYTES)


def measured(specs: Iterable[TrialSpec], runs: Runs, device: str) -> Guess | None:
    """The pace of finished trials of this study, else of others under `runs` that are of a kind with it."""
    specs = list(specs)
    sizes, one = {spec.render.size_px for spec in specs}, specs[0]

    def alike(result: Result) -> bool:
        spec = result.spec
        return (spec.backbone, spec.precision) == (one.backbone, one.precision) and spec.render.size_px in sizes \
            and result.device.partition(":")[0] == device.partition(":")[0]

    own = Pace.of(filter(alike, runs.study(one.study).results()))
    if own:
        return Guess(own, f"measured on {_trials(own.trials)} of this study")
    others = [result for folder in study_folders(runs) if folder.path.name != one.study
              for result in _readable(folder) if alike(result)]
    pace = Pace.of(others)
    if pace is None:
        return None
    return Guess(pace, f"measured on {_trials(pace.trials)} of {', '.join(sorted({result.spec.study for result in others}))}")


def _readable(folder: StudyFolder) -> list[Result]:
    """Another study's results; none where another version wrote them in other words."""
    try:
        return folder.results()
    except (TypeError, KeyError, ValueError) as error:
        log.info("%s: its results cannot be read (%s)", folder.path, error)
        return []


def _estimated(study: Study, device: str, gpu: Gpu | None, memory: PeakMemory | None) -> Guess:
    if memory and gpu:
        return guess_kolors(gpu, study.precision, checkpointing=memory.training > gpu.memory_bytes)
    if study.backbone == "tiny" and device == "cpu":
        return guess_tiny()
    return Guess(None, f"how fast {study.backbone} is on {device} cannot be known before a trial ran there")


def _trials(number: int) -> str:
    return f"{number} finished trial{'s' if number != 1 else ''}"


def _spec(study: Study, pick: Pick) -> TrialSpec:
    return study.spec(0, _sampled(study, pick))


def _sampled(study: Study, pick: Pick) -> dict[str, Any]:
    """One value for each setting of the space: `pick` chooses where it changes the cost, elsewhere any will do."""
    return {name: pick(search) if name in COSTLY else search.start for name, search in study.space.items()}


def _least(search: Choices | Range) -> Any:
    return min(search.values)


def _most(search: Choices | Range) -> Any:
    return max(search.values)


def _middle(search: Choices | Range) -> Any:
    """The value in the middle of the search: of a logarithmic range the geometric one."""
    if isinstance(search, Choices):
        return median_high(search.choices)
    value = math.sqrt(search.low * search.high) if search.log else (search.low + search.high) / 2
    step = search.step or (1 if isinstance(search.low, int) else None)
    return search.low + math.floor((value - search.low) / step + 0.5) * step if step else value
