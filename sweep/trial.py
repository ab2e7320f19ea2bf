"""One trial: images, training, story, score, verdict, files."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TypedDict, Unpack, cast

import pandas as pd
import torch
from PIL import Image

from core.backbone.backbone import Backbone
from core.backbone.encode import encode_examples, encode_images, encode_missing
from core.data.audit import Looking, audit, bad_images, say_bad
from core.data.caption_table import DataError
from core.data.colour_profile import Note
from core.data.filters import select
from core.data.folder import caption_of, read_folder
from core.data.hub import as_local_folder
from core.errors import LoraSweepError
from core.files.cache import Cache
from core.files.fail_point import fail_point
from core.files.files import content_key, sha256, write_json, write_whole
from core.folders import TrialFolder
from core.heartbeat import Heartbeat, no_heartbeat
from core.lora import adapters
from core.lora.file import metadata_of, save_lora
from core.story.render import render_scenes
from core.story.score import Score, rate, score_images
from core.story.sheet import story_sheet
from core.train.state import TrainState, load_state
from core.train.train import Checkpoint, EpochDone, train_lora
from core.trial.recipe import Recipe
from core.trial.result import Result
from core.trial.spec import Data, Filters, Training, TrialSpec
from core.verdict import SCORING_VERSION, passes
from sweep import events
from sweep.events import Attempt, Event

Report = Callable[[Event], None]
MIXED_PRECISION = {"fp32": "no"}  # kohya's name of it; the others have the same name
PACKAGES = ("torch", "diffsynth", "peft", "lightning", "transformers", "simple-aesthetics-predictor")


class NoImagesError(LoraSweepError):
    """The filters keep fewer images than data.min_images."""


class BlackImagesError(LoraSweepError):
    """An image of the story has one single colour: these settings broke the model."""


class Measured(TypedDict, total=False):
    """Fields of a Result that are measured while the trial runs."""

    duration_s: float
    timings_s: dict[str, float]
    encoded: dict[str, int]


class Clock:
    """Measures a trial from its creation on: seconds of each part, and how much the cache did not have."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._encoded_before = cache, cache.encoded.copy()
        self._started = self._last = time.monotonic()
        self.timings_s: dict[str, float] = {}

    def part_done(self, part: str) -> None:
        """End a part: its time began when the part before ended."""
        now = time.monotonic()
        self.timings_s[part] = now - self._last
        self._last = now

    def measured(self) -> Measured:
        """Fields of a Result; the duration ends with the last part."""
        return {
            "duration_s": self._last - self._started,
            "timings_s": self.timings_s,
            "encoded": dict(self._cache.encoded - self._encoded_before),
        }


def run_trial(
    spec: TrialSpec,
    backbone: Backbone,
    cache: Cache,
    folder: TrialFolder,
    report: Report,
    *,
    attempt: Attempt,
    heartbeat: Heartbeat = no_heartbeat,
    checkpoint_every_s: float = 120.0,
) -> Result:
    """Take one trial from its parameters to its verdict; every output lies under `folder`, result.json last.

    Resumes from the folder's checkpoint if an earlier attempt with the same settings left one.
    """
    if spec.train is None:
        return _base_story(spec, backbone, cache, folder, report, attempt, heartbeat)
    clock = Clock(cache)
    _write_spec(spec, folder)
    # First, so that it fails before text encoder and UNet are loaded.
    table = look_at_images(spec, backbone, cache, report)
    # Before the UNet is loaded: text encoder and UNet need not fit the device together.
    encode_missing(all_texts(spec, cache), backbone, cache, heartbeat)
    unet = backbone.unet  # loaded here: minutes from a slow disk must not count as silence of a step
    table = select_images(spec, table, backbone, cache, report, heartbeat)
    examples = encode_examples(table, spec.render.size_px, backbone, cache, heartbeat)
    fail_point("encoded")
    report(events.Training(images=len(table), steps=spec.train.total_steps))
    clock.part_done("prepare")
    try:
        key = _checkpoint_key(spec, table, backbone)
        state = _resumable(spec.train, folder, key, report)
        losses = train_lora(
            backbone,
            examples,
            _sparing(spec.train, attempt),
            spec.seed,
            _epoch_saver(spec, spec.train, backbone, folder, len(table), report),
            state=state,
            micro_batch=attempt.micro_batch,
            checkpoint=Checkpoint(folder.checkpoint, key, checkpoint_every_s),
            heartbeat=heartbeat,
        )
        last = folder.epoch_lora(spec.train.epochs)
        write_whole(folder.lora, lambda to: to.write_bytes(last.read_bytes()))
        clock.part_done("train")
        if state:
            del clock.timings_s["train"]  # of some of the steps only, so no measure of the pace
        story = draw_story(spec, backbone, cache, folder, report, heartbeat)
    finally:
        adapters.remove(unet)
    return _conclude(spec, backbone, folder, story, clock, attempt, losses, images=len(table))


def _base_story(
    spec: TrialSpec,
    backbone: Backbone,
    cache: Cache,
    folder: TrialFolder,
    report: Report,
    attempt: Attempt,
    heartbeat: Heartbeat,
) -> Result:
    """The base model's own story: a trial without training images and without a LoRA."""
    clock = Clock(cache)
    _write_spec(spec, folder)
    # Also the captions: the first trial then finds them in the cache.
    encode_missing(all_texts(spec, cache), backbone, cache, heartbeat)
    _ = backbone.unet  # loaded here as in a trial
    clock.part_done("prepare")
    clock.part_done("train")  # no time, but a result has every part
    story = draw_story(spec, backbone, cache, folder, report, heartbeat)
    return _conclude(spec, backbone, folder, story, clock, attempt, losses=[], images=0)


def _write_spec(spec: TrialSpec, folder: TrialFolder) -> None:
    fail_point("spec")
    write_json(folder.spec, spec)
    fail_point("spec_written")


def _conclude(
    spec: TrialSpec,
    backbone: Backbone,
    folder: TrialFolder,
    story: list[Image.Image],
    clock: Clock,
    attempt: Attempt,
    losses: list[float],
    images: int,
) -> Result:
    """Score the rendered story, write recipe and result, and remove the checkpoint."""
    clock.part_done("render")
    fail_point("score")
    score = score_images(backbone, story)
    clock.part_done("score")
    result = judge(
        spec,
        backbone,
        folder,
        score,
        images=images,
        losses=losses,
        micro_batch=attempt.micro_batch,
        retried=attempt.retried,
        **clock.measured(),
    )
    fail_point("recipe")
    write_recipe(result, folder)
    fail_point("result")
    write_json(folder.result, result)
    fail_point("result_written")
    folder.checkpoint.unlink(missing_ok=True)
    return result


def _sparing(train: Training, attempt: Attempt) -> Training:
    """Turn gradient checkpointing on if one row at a time ran out of memory, unless the study sets it."""
    if train.gradient_checkpointing == "auto" and attempt.micro_batch == 1 and attempt.was_out_of_memory:
        return replace(train, gradient_checkpointing="on")
    return train


def _checkpoint_key(spec: TrialSpec, table: pd.DataFrame, backbone: Backbone) -> str:
    """A digest of all that training depends on: the spec, its images and captions, the base model."""
    return content_key(
        spec, list(table["sha256"]), list(table["caption"]), table["repeats"].tolist(), backbone.weights
    )


def _resumable(train: Training, folder: TrialFolder, key: str, report: Report) -> TrainState | None:
    """The checkpoint, if its key matches and the LoRA of every epoch before it exists; reports these epochs
    again.
    """
    state = load_state(folder.checkpoint, key)
    epochs = range(1, (state.step if state else 0) // train.steps_per_epoch + 1)
    if state is None or not all(folder.epoch_lora(epoch).exists() for epoch in epochs):
        return None
    report(events.Resumed(state.step))
    for epoch in epochs:
        losses = state.losses[(epoch - 1) * train.steps_per_epoch : epoch * train.steps_per_epoch]
        report(events.Epoch(epoch=epoch, losses=losses))
    return state


def all_texts(spec: TrialSpec, cache: Cache) -> list[str]:
    """Every caption and prompt that a trial of this study can meet, whatever its filters keep."""
    images = read_folder(as_local_folder(spec.data, cache.folder)).images
    captions = [caption_of(image.prompt, spec.data.caption) for image in images if not image.problem]
    return [
        *captions,
        *(text for scene in spec.story.scenes for text in (scene.prompt, scene.negative_prompt)),
    ]


def look_at_images(spec: TrialSpec, backbone: Backbone, cache: Cache, report: Report) -> pd.DataFrame:
    """The audit table of a trial's images.

    Raises NoImagesError where the filters keep too few of them, DataError where no filters could keep enough.
    """

    def note(text: str) -> None:
        report(events.Note(f"note: {text}"))

    def looking(number: int, total: int) -> None:
        report(events.Looking(image=number, total=total))

    table = audit_data(spec.data, backbone, cache, spec.filters, looking, note)
    if bad := bad_images(table):
        note(say_bad(bad))
    _keep(spec, table)
    return table


def select_images(
    spec: TrialSpec,
    table: pd.DataFrame,
    backbone: Backbone,
    cache: Cache,
    report: Report,
    heartbeat: Heartbeat = no_heartbeat,
) -> pd.DataFrame:
    """The rows of the table that pass the filters and can be encoded. Raises as `look_at_images` does."""
    kept = _keep(spec, table)
    while unfit := encode_images(kept, spec.render.size_px, backbone, cache, heartbeat):
        table = table.assign(problem=pd.Series(unfit).reindex(table.index).fillna(table["problem"]))
        report(events.Note(f"note: {say_bad(bad_images(table.loc[list(unfit)]))}"))
        kept = _keep(spec, table)  # with max_images another image may take its place
    return kept


def _keep(spec: TrialSpec, table: pd.DataFrame) -> pd.DataFrame:
    kept, least = select(table, spec.filters), spec.data.min_images
    usable = int((table["problem"] == "").sum())
    if usable < least:
        bad = bad_images(table)
        why = f"{say_bad(bad)}; " if bad else ""
        raise DataError(
            f"{why}{usable} images can be used, but data.min_images is {least}: no filter can help"
        )
    if len(kept) < least:
        raise NoImagesError(
            f"the filters keep {len(kept)} of {len(table)} images, but data.min_images is {least}"
        )
    return kept


def audit_data(
    data: Data, backbone: Backbone, cache: Cache, filters: Filters, looking: Looking, note: Note
) -> pd.DataFrame:
    """The audit table of a data set, with aesthetic scores of 1 to 10 by the backbone's scorer."""

    def score(image: Image.Image) -> float:
        return rate(backbone, image).aesthetic

    return audit(data, cache, score, backbone.weights["scorer"], filters, looking, note)


def draw_story(
    spec: TrialSpec,
    backbone: Backbone,
    cache: Cache,
    folder: TrialFolder,
    report: Report,
    heartbeat: Heartbeat = no_heartbeat,
) -> list[Image.Image]:
    """Render and save the story's images and the sheet of them all. Raises BlackImagesError."""
    report(events.Drawing(len(spec.story.scenes)))
    images = []
    for number, image in enumerate(
        render_scenes(backbone, spec.story.scenes, spec.render, cache, heartbeat), start=1
    ):
        # getextrema gives one pair for each channel
        if all(low == high for low, high in cast(list[tuple[int, int]], image.getextrema())):
            raise BlackImagesError(f"image {number} is one single colour")
        write_whole(folder.image(number), partial(image.save, format="PNG"))
        images.append(image)
        fail_point("image")
        report(events.Image(number))
    write_whole(folder.sheet, lambda to: story_sheet(images).save(to, "PNG"))
    return images


def judge(
    spec: TrialSpec,
    backbone: Backbone,
    folder: TrialFolder,
    score: Score,
    *,
    losses: list[float],
    images: int,
    micro_batch: int = 1,
    retried: tuple[str, ...] = (),
    **measured: Unpack[Measured],
) -> Result:
    """The complete result of a rendered and scored story; `losses` are those of every training step."""
    return Result(
        state="complete",
        spec=spec,
        aesthetic=score.aesthetic,
        aesthetic_mean=score.mean,
        aesthetic_min=min(score.aesthetic),
        aesthetic_std=score.std,
        coherence=score.coherence,
        passed_gate=passes(score.mean, spec.gate),
        images=images,
        train_loss=_mean(losses[-spec.train.steps_per_epoch :]) if spec.train and losses else None,
        lora_sha256=sha256(folder.lora) if spec.train else None,
        scorer=backbone.model.scorer,
        scoring_version=SCORING_VERSION,
        device=str(backbone.device),
        dtype=str(backbone.dtype).removeprefix("torch."),
        micro_batch=micro_batch,
        retried=retried,
        processor=backbone.processor,
        threads=torch.get_num_threads() if backbone.device.type == "cpu" else None,
        versions=package_versions(),
        **measured,
    )


def package_versions() -> dict[str, str]:
    """Versions of the packages that images and scores depend on."""
    return {name: version(name) for name in PACKAGES}


def write_recipe(result: Result, folder: TrialFolder) -> None:
    """Write the trial's recipe.json: what its story can be made from again, and the sha256 of each image."""
    images = [folder.image(number) for number in range(1, len(result.spec.story.scenes) + 1)]
    write_json(folder.recipe, Recipe.of(result, [sha256(path) for path in images]).to_json())


def _epoch_saver(
    spec: TrialSpec, train: Training, backbone: Backbone, folder: TrialFolder, images: int, report: Report
) -> EpochDone:
    """A function that saves the LoRA at the end of an epoch and then reports the epoch."""

    def save(epoch: int, losses: list[float]) -> None:
        metadata = metadata_of(
            train,
            architecture=backbone.model.architecture,
            title=f"{spec.study} trial {spec.number} epoch {epoch}",
            resolution=spec.render.size_px,
            learning_rate=train.learning_rate,
            num_train_images=images,
            num_epochs=epoch,
            steps=epoch * train.steps_per_epoch,
            max_train_steps=train.total_steps,
            seed=spec.seed,
            optimizer="torch.optim.AdamW",
            mixed_precision=MIXED_PRECISION.get(spec.precision, spec.precision),
            output_name=f"{spec.study}-{spec.number:04d}",
        )
        fail_point("epoch")
        save_lora(folder.epoch_lora(epoch), adapters.extract(backbone.unet), train, metadata)
        fail_point("epoch_saved")
        report(events.Epoch(epoch=epoch, losses=losses))

    return save


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
