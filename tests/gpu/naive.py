"""The naive way: DiffSynth's own trainer and pipeline, with text and image encoded again at each step."""

from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from diffsynth import SDXLImagePipeline
from diffsynth.data.simple_text_image import TextImageDataset
from diffsynth.trainers.text_to_image import LightningModelForT2ILoRA
from PIL import Image
from torch.nn.functional import interpolate

from core.backbone.backbone import TRAIN_TIMESTEPS, Backbone
from core.trial.spec import Scene, Training
from tests.gpu.clock import Stopwatch
from tests.gpu.shapes import Shape


def stock_pipeline(backbone: Backbone) -> SDXLImagePipeline:
    """DiffSynth's pipeline on the same weights."""
    pipe = SDXLImagePipeline(device=str(backbone.device), torch_dtype=backbone.dtype)
    pipe.scheduler, pipe.prompter = backbone.new_scheduler(), backbone.prompter
    pipe.text_encoder_kolors, pipe.unet = backbone.prompter.text_encoder, backbone.unet
    pipe.vae_encoder, pipe.vae_decoder = backbone.vae_encoder, backbone.vae_decoder
    return pipe


def time_training(
    backbone: Backbone, shape: Shape, training: Training, precision: str, folder: Path
) -> Stopwatch:
    """Marks after each epoch of the challenge baseline's trainer (checkpointing, centre crop); the UNet keeps
    its adapters.
    """
    pipe = stock_pipeline(backbone)
    pipe.scheduler.set_timesteps(TRAIN_TIMESTEPS)
    model = LightningModelForT2ILoRA(learning_rate=training.learning_rate, use_gradient_checkpointing=True)
    model.pipe = pipe
    model.freeze_parameters()
    model.add_lora_to_model(
        pipe.unet, training.lora_rank, training.lora_alpha, training.target_modules, "kaiming"
    )
    # Lightning 2.6 moves the module to the host when it is done (strategies/strategy.py): 20 GB for nothing
    # here.
    model.cpu = lambda: model
    size_px = shape.rendering.size_px
    data = TextImageDataset(
        write_data(folder, size_px), training.steps_per_epoch, size_px, size_px, center_crop=True
    )
    watch = Stopwatch(backbone.device)
    trainer = lightning.Trainer(
        accelerator="gpu" if backbone.device.type == "cuda" else "cpu",
        devices=1,
        precision=precision,
        max_epochs=training.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_MarkEpochs(watch)],
    )
    try:
        trainer.fit(model, torch.utils.data.DataLoader(data, shuffle=True, batch_size=1))
    finally:
        backbone.unet.eval()
    return watch


def time_images(
    backbone: Backbone, shape: Shape, scenes: Sequence[Scene]
) -> tuple[Stopwatch, list[Image.Image]]:
    """One mark for the warm-up, one after each image."""
    pipe = stock_pipeline(backbone)

    def draw(scene: Scene, steps: int) -> Image.Image:
        size_px = shape.rendering.size_px
        return pipe(
            scene.prompt,
            negative_prompt=scene.negative_prompt,
            cfg_scale=shape.rendering.cfg_scale,
            seed=scene.seed,
            height=size_px,
            width=size_px,
            num_inference_steps=steps,
            progress_bar_cmd=list,
        )

    watch = Stopwatch(backbone.device)
    draw(scenes[0], 2)
    watch.mark()
    images = []
    for scene in scenes:
        images.append(draw(scene, shape.rendering.steps))
        watch.mark()
    return watch, images


def write_data(folder: Path, size_px: int) -> str:
    """A data set of four images in the field's layout."""
    (folder / "train").mkdir(parents=True)
    rows = ["file_name,text"]
    for number, image in enumerate(soft_images(size_px, 4)):
        image.save(folder / "train" / f"{number}.png")
        rows.append(f"{number}.png,a girl with a red balloon by the lake {number}")
    (folder / "train" / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(folder)


def soft_images(size_px: int, count: int) -> list[Image.Image]:
    """Random colours, softly mixed: about as hard to decode as a painting."""
    generator = torch.Generator().manual_seed(0)
    soft = interpolate(
        torch.rand(count, 3, 32, 32, generator=generator), size=(size_px, size_px), mode="bicubic"
    )
    return [
        Image.fromarray(pixels) for pixels in soft.clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).numpy()
    ]


class _MarkEpochs(lightning.Callback):
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def on_train_epoch_end(self, *_: object) -> None:
        self._watch.mark()
