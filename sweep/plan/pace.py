"""How fast trials go: seconds per training row, per forward while drawing, per score; measured on finished
trials.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Self

from core.folders import TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec

MANY = 20  # pictures: with fewer, a trial's preparation is mostly something else
PARTS = ("prepare", "train", "render", "score")  # as in result.json's timings_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds per unit of work; `trials` is how many finished trials they rest on, 0 for an estimate.

    A row is one picture in one optimiser step, a forward one picture through the UNet while drawing; both are
    given per megapixel. Preparation is per trial (what the cache lacks is encoded there), scoring per
    picture; `picture_s` is for a training picture that is read, scored and encoded for the first time, 0
    where no trial met one.
    """

    prepare_s: float
    row_s: float
    forward_s: float
    score_s: float
    trials: int
    picture_s: float = 0.0

    @classmethod
    def of(cls, results: Iterable[Result]) -> Self | None:
        """The median pace of complete trials of one backbone, precision and device; None where there is none."""
        done = [
            result
            for result in results
            if result.state == "complete" and result.spec.train and result.timings_s.keys() >= set(PARTS)
        ]
        if not done:
            return None

        def rate(part: str, work: list[float]) -> float:
            return median(result.timings_s[part] / amount for result, amount in zip(done, work, strict=True))

        new = [
            result.timings_s["prepare"] / count
            for result in done
            if (count := result.encoded.get("latents", 0)) >= MANY
        ]
        return cls(
            prepare_s=rate("prepare", [1.0] * len(done)),
            row_s=rate("train", [train_work(r.spec) for r in done]),
            forward_s=rate("render", [render_work(r.spec) for r in done]),
            score_s=rate("score", [float(len(r.spec.story.scenes)) for r in done]),
            trials=len(done),
            picture_s=median(new) if new else 0.0,
        )

    def parts_s(self, spec: TrialSpec) -> dict[str, float]:
        """What each of `PARTS` takes; without `spec.train` (the base model's own story) only drawing and
        scoring.
        """
        return {
            "prepare": self.prepare_s if spec.train else 0.0,
            "train": self.row_s * train_work(spec),
            "render": self.forward_s * render_work(spec),
            "score": self.score_s * len(spec.story.scenes),
        }

    def trial_s(self, spec: TrialSpec) -> float:
        return sum(self.parts_s(spec).values())

    def left_s(self, spec: TrialSpec, folder: TrialFolder) -> float:
        """What a trial takes that may have been interrupted: its whole epochs count, if it can go on from
        them.
        """
        if not spec.train or not folder.checkpoint.exists():
            return self.trial_s(spec)
        done = sum(folder.epoch_lora(epoch).exists() for epoch in range(1, spec.train.epochs + 1))
        return self.trial_s(spec) - self.parts_s(spec)["train"] * done / spec.train.epochs


def train_work(spec: TrialSpec) -> float:
    """Training rows times megapixels."""
    return spec.train.total_steps * spec.train.batch_size * megapixels(spec) if spec.train else 0.0


def render_work(spec: TrialSpec) -> float:
    """Forwards times megapixels; guidance doubles them."""
    forwards = 2 if spec.render.cfg_scale != 1.0 else 1
    return len(spec.story.scenes) * spec.render.steps * forwards * megapixels(spec)


def megapixels(spec: TrialSpec) -> float:
    return spec.render.size_px**2 / 1e6
