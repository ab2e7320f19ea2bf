"""How fast trials are: seconds per training row, per forward in rendering, per score, by finished trials."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Self

from core.folders import TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec

MANY = 20  # new images: with fewer, most of the time of preparation goes into something else
PARTS = ("prepare", "train", "render", "score")  # as in result.json's timings_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds per unit of work; `trials` is how many finished trials they rest on, 0 for an estimate.

    A row is one image in one optimiser step, a forward one image through the UNet in rendering; both are per
    megapixel. Preparation is per trial, scoring per image of the story; `image_s` is per training image
    that is read, scored and encoded for the first time, 0 if no trial had one.
    """

    row_s: float
    forward_s: float
    score_s: float
    prepare_s: float = 0.0
    image_s: float = 0.0
    trials: int = 0

    @classmethod
    def of(cls, results: Iterable[Result]) -> Self | None:
        """The median pace of complete trials of one backbone, precision and device; None without any."""
        done = [
            result
            for result in results
            if result.state == "complete" and result.spec.train and result.timings_s.keys() >= set(PARTS)
        ]
        if not done:
            return None

        def rate(part: str, work: list[float]) -> float:
            return median(result.timings_s[part] / amount for result, amount in zip(done, work, strict=True))

        counts = [(result, result.encoded.get("latents", 0)) for result in done]
        new = [result.timings_s["prepare"] / count for result, count in counts if count >= MANY]
        return cls(
            prepare_s=rate("prepare", [1.0] * len(done)),
            row_s=rate("train", [train_work(r.spec) for r in done]),
            forward_s=rate("render", [render_work(r.spec) for r in done]),
            score_s=rate("score", [float(len(r.spec.story.scenes)) for r in done]),
            trials=len(done),
            image_s=median(new) if new else 0.0,
        )

    def parts_s(self, spec: TrialSpec) -> dict[str, float]:
        """Seconds of each of `PARTS`; the base model's own story is only rendered and scored."""
        return {
            "prepare": self.prepare_s if spec.train else 0.0,
            "train": self.row_s * train_work(spec),
            "render": self.forward_s * render_work(spec),
            "score": self.score_s * len(spec.story.scenes),
        }

    def trial_s(self, spec: TrialSpec) -> float:
        """Seconds of a whole trial."""
        return sum(self.parts_s(spec).values())

    def left_s(self, spec: TrialSpec, folder: TrialFolder) -> float:
        """Seconds left of a trial, without the finished epochs if it can resume from a checkpoint."""
        if not spec.train or not folder.checkpoint.exists():
            return self.trial_s(spec)
        done = sum(folder.epoch_lora(epoch).exists() for epoch in range(1, spec.train.epochs + 1))
        return self.trial_s(spec) - self.parts_s(spec)["train"] * done / spec.train.epochs


def train_work(spec: TrialSpec) -> float:
    """Work of training: rows times megapixels."""
    return spec.train.total_steps * spec.train.batch_size * megapixels(spec) if spec.train else 0.0


def render_work(spec: TrialSpec) -> float:
    """Work of rendering: forwards times megapixels; guidance doubles the forwards."""
    forwards = 2 if spec.render.cfg_scale != 1.0 else 1
    return len(spec.story.scenes) * spec.render.steps * forwards * megapixels(spec)


def megapixels(spec: TrialSpec) -> float:
    """Size of the images, of training and of the story, in millions of pixels."""
    return spec.render.size_px**2 / 1e6
