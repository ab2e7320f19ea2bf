"""recipe.json, in a trial's folder and in an export: all that is needed to render and score a story again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Self

from core.files.files import from_json
from core.trial.result import Result
from core.trial.spec import Data, Story, Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What only an export's recipe has: the team, the whole result, and the checksums of the exported files.

    `result` holds no path of the machine that it was made on. `sha256` maps each file to its digest,
    `tensors_sha256` is that of the LoRA's tensors without the header.
    """

    name: str
    team: str
    title: str
    epoch: int
    weight_name: str
    base_aesthetic_mean: float | None
    older: str
    result: Result
    tensors_sha256: str
    sha256: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """The export's recipe.json; `from_json` reads it back."""
        spec, train = self.result.spec, self.result.spec.train
        assert train is not None, "the base model's own story is not handed in"
        return {
            "name": self.name,
            "team": self.team,
            "title": self.title,
            "trial": spec.number,
            "epoch": self.epoch,
            "weight_name": self.weight_name,
            "use_at_strength": 1.0,
            "lora_rank": train.lora_rank,
            "training_alpha": train.lora_alpha,
            "scale": train.scale,
            "gate": spec.gate,
            "base_aesthetic_mean": self.base_aesthetic_mean,
            "older": self.older,
            **asdict(self.result),
            "tensors_sha256": self.tensors_sha256,
            "sha256": self.sha256,
        }

    @classmethod
    def from_json(cls, values: dict[str, object]) -> Self:
        """Raises ValueError where `values` is not an export's recipe."""
        result = {field.name: values[field.name] for field in fields(Result) if field.name in values}
        return from_json(values | {"result": result}, cls)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The settings, versions and checksums that a story was made with.

    `params` is TrialSpec.params. `strength` is alpha / rank, 0 without a LoRA. `data.source` is a folder's
    name instead of its path.
    """

    study: str
    trial: int
    backbone: str
    seed: int
    params: dict[str, Value]
    strength: float
    data: Data
    story: Story
    device: str
    dtype: str
    scorer: str
    scoring_version: int | None = None
    aesthetic: tuple[float, ...]
    aesthetic_mean: float | None
    versions: dict[str, str]
    lora_sha256: str | None
    pictures_sha256: tuple[str, ...]
    submission: Submission | None = None

    @classmethod
    def of(cls, result: Result, pictures_sha256: Sequence[str]) -> Self:
        """The recipe of a trial; `pictures_sha256` has its images' digests in the order of the scenes."""
        spec = result.spec
        return cls(
            study=spec.study,
            trial=spec.number,
            backbone=spec.backbone,
            seed=spec.seed,
            params=spec.params(),
            strength=spec.train.scale if spec.train else 0.0,
            data=replace(spec.data, source=spec.data.shared_name),
            story=spec.story,
            device=result.device,
            dtype=result.dtype,
            scorer=result.scorer,
            scoring_version=result.scoring_version,
            aesthetic=result.aesthetic,
            aesthetic_mean=result.aesthetic_mean,
            versions=result.versions,
            lora_sha256=result.lora_sha256,
            pictures_sha256=tuple(pictures_sha256),
        )

    @classmethod
    def of_export(cls, submission: Submission) -> Self:
        """The recipe of an export, with all that the recipe of its trial has."""
        numbers = range(1, len(submission.result.spec.story.scenes) + 1)
        images = [submission.sha256[f"story/{number}.png"] for number in numbers]
        return replace(cls.of(submission.result, images), submission=submission)

    def to_json(self) -> dict[str, object]:
        """The content of recipe.json; an export's has another layout than a trial's."""
        if self.submission:
            return self.submission.to_json()
        values = asdict(self)
        del values["submission"]
        return values

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a trial's recipe or an export's. Raises ValueError where `value` is neither."""
        values = from_json(value, dict[str, object])
        if "spec" in values:  # only an export's has one
            return cls.of_export(Submission.from_json(values))
        return from_json(values, cls)


def recipe_backbone(values: dict[str, object]) -> str:
    """The base model that a trial's or an export's recipe names, whatever else the file holds.

    Raises KeyError where it names none, ValueError where that is no name.
    """
    return from_json(from_json(values.get("spec", values), dict[str, object])["backbone"], str)
