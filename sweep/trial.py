"""The way of one trial, from its parameters to its verdict."""
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any, cast

import pandas as pd
from PIL import Image

from core import lora
from core.backbone import Backbone
from core.cache import Cache
from core.dataset import audit, caption_of, read_folder
from core.encode import encode_examples, encode_missing
from core.files import sha256, write_json, write_whole
from core.filters import select
from core.folders import TrialFolder
from core.gate import passes
from core.render import render_scenes
from core.score import Score, score_pictures
from core.settings import Result, TrialSpec
from core.sheet import story_sheet
from core.train import train_lora

Report = Callable[..., None]
MIXED_PRECISION = {"fp32": "no"}  # kohya's word for it; the others are called as ours
PACKAGES = ("torch", "diffsynth", "peft", "lightning", "transformers", "simple-aesthetics-predictor")


class NoImagesError(RuntimeError):
    """The filters leave too few pictures to learn a style from."""


class BlackPicturesError(RuntimeError):
    """A picture came out in one single colour: these settings broke the model."""


def run_trial(spec: TrialSpec, backbone: Backbone, cache: Cache, folder: TrialFolder, report: Report) -> Result:
    """Take one trial from its parameters to its verdict; every output lies under `folder`, result.json last."""
    started, encoded_before = time.monotonic(), cache.encoded.copy()
    write_json(folder.spec, spec.to_json())
    encode_missing(all_words(spec), backbone, cache)  # before the UNet comes: both need not fit the device together
    losses: list[float] = []
    images = 0
    if spec.train:
        table = select_images(spec, backbone, cache)
        images = len(table)
        report("training", images=images, steps=spec.train.total_steps)
        examples = encode_examples(table, spec.render.size_px, backbone, cache)
    trained_from = time.monotonic()
    try:
        if spec.train:
            losses = train_lora(backbone, examples, spec.train, spec.seed, _epoch_saver(spec, backbone, folder, images, report))
            last = folder.epoch_lora(spec.train.epochs)
            write_whole(folder.lora, lambda to: to.write_bytes(last.read_bytes()))
        rendered_from = time.monotonic()
        pictures = draw_story(spec, backbone, cache, folder, report)
    finally:
        lora.take_off(backbone.unet)
    scored_from = time.monotonic()
    score = score_pictures(backbone, pictures)
    finished = time.monotonic()
    result = judge(spec, backbone, folder, score, images=images, losses=losses, duration_s=finished - started,
                   encoded=dict(cache.encoded - encoded_before),
                   timings_s={"prepare": trained_from - started, "train": rendered_from - trained_from,
                              "render": scored_from - rendered_from, "score": finished - scored_from})
    write_json(folder.recipe, recipe(result, folder))
    write_json(folder.result, result.to_json())
    return result


def all_words(spec: TrialSpec) -> list[str]:
    """Every caption and prompt that a trial of this study can meet, whatever its filters keep."""
    captions = [caption_of(picture.prompt, spec.data.caption) for picture in read_folder(spec.data)]
    return [*captions, *(words for scene in spec.story.scenes for words in (scene.prompt, scene.negative_prompt))]


def select_images(spec: TrialSpec, backbone: Backbone, cache: Cache) -> pd.DataFrame:
    """The audit table's rows that pass the filters. Raises NoImagesError."""
    def score(image: Image.Image) -> float:
        return score_pictures(backbone, [image]).aesthetic[0]

    table = audit(spec.data, cache, score, backbone.weights["scorer"])
    kept = select(table, spec.filters)
    if len(kept) < spec.data.min_images:
        raise NoImagesError(f"the filters keep {len(kept)} of {len(table)} pictures; min_images is {spec.data.min_images}")
    return kept


def draw_story(spec: TrialSpec, backbone: Backbone, cache: Cache, folder: TrialFolder, report: Report) -> list[Image.Image]:
    """Render, check and save the story's pictures and their sheet. Raises BlackPicturesError."""
    pictures = []
    for number, picture in enumerate(render_scenes(backbone, spec.story.scenes, spec.render, cache), start=1):
        if all(low == high for low, high in cast(list[tuple[int, int]], picture.getextrema())):  # one pair a channel
            raise BlackPicturesError(f"picture {number} is one single colour")
        write_whole(folder.picture(number), partial(picture.save, format="PNG"))
        pictures.append(picture)
        report("picture", picture=number)
    write_whole(folder.sheet, lambda to: story_sheet(pictures).save(to, "PNG"))
    return pictures


def judge(spec: TrialSpec, backbone: Backbone, folder: TrialFolder, score: Score, *, losses: list[float],
          **measured: Any) -> Result:
    """Put what was measured under the gate."""
    return Result(
        state="complete", spec=spec, aesthetic=score.aesthetic, aesthetic_mean=score.mean,
        aesthetic_min=min(score.aesthetic), aesthetic_std=score.std, coherence=score.coherence,
        passed_gate=passes(score.mean, spec.gate),
        train_loss=_mean(losses[-spec.train.steps_per_epoch:]) if spec.train and losses else None,
        lora_sha256=sha256(folder.lora) if spec.train else None, scorer=backbone.scorer_name,
        device=str(backbone.device), dtype=str(backbone.dtype).removeprefix("torch."),
        micro_batch=spec.train.batch_size if spec.train else 1, versions={name: version(name) for name in PACKAGES},
        **measured,
    )


def recipe(result: Result, folder: TrialFolder) -> dict[str, Any]:
    """Everything that is needed to draw and score these pictures again."""
    spec = result.spec
    return {
        "study": spec.study, "trial": spec.number, "backbone": spec.backbone, "seed": spec.seed,
        "params": spec.params(), "strength": spec.train.scale if spec.train else 0.0, "data": asdict(spec.data),
        "story": asdict(spec.story), "device": result.device, "dtype": result.dtype, "scorer": result.scorer,
        "aesthetic": result.aesthetic, "aesthetic_mean": result.aesthetic_mean, "versions": result.versions,
        "lora_sha256": result.lora_sha256,
        "pictures_sha256": [sha256(folder.picture(number)) for number in range(1, len(spec.story.scenes) + 1)],
    }


def _epoch_saver(spec: TrialSpec, backbone: Backbone, folder: TrialFolder, images: int,
                 report: Report) -> Callable[[int, list[float]], None]:
    train = spec.train
    assert train is not None
    shape = lora.LoraShape(rank=train.lora_rank, alpha=train.lora_alpha)

    def save(epoch: int, losses: list[float]) -> None:
        metadata = lora.metadata_of(
            shape, architecture=backbone.architecture,
            title=f"{spec.study} trial {spec.number} epoch {epoch}", resolution=spec.render.size_px,
            learning_rate=train.learning_rate, num_train_images=images, num_epochs=epoch,
            steps=epoch * train.steps_per_epoch, max_train_steps=train.total_steps, seed=spec.seed,
            optimizer="torch.optim.AdamW", mixed_precision=MIXED_PRECISION.get(spec.precision, spec.precision),
            output_name=f"{spec.study}-{spec.number:04d}",
        )
        lora.save_lora(folder.epoch_lora(epoch), lora.read_off(backbone.unet), shape, metadata)
        report("epoch", epoch=epoch, losses=losses)

    return save


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
