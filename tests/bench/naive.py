"""The baseline of the bench: DiffSynth's own trainer and pipeline, in a process of its own.

Text and images are encoded again at every step; the story is rendered image by image, two UNet calls a
step. Run by tests.bench as `python -m tests.bench.naive SPEC.json`; prints its seconds as JSON.
"""

import json
import logging
import sys
import time
import warnings
from pathlib import Path

START = time.monotonic()


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning
    import torch
    from diffsynth import SDXLImagePipeline
    from diffsynth.data.simple_text_image import TextImageDataset
    from diffsynth.trainers.text_to_image import LightningModelForT2ILoRA

    from core.backbone.backbone import load_backbone
    from core.files.files import read_json
    from core.story.score import score_images
    from core.trial.spec import TrialSpec

    spec = read_json(Path(sys.argv[1]), TrialSpec)
    assert spec.train
    train, render = spec.train, spec.render
    backbone = load_backbone(spec.backbone)
    pipe = SDXLImagePipeline(device="cpu", torch_dtype=torch.float32)
    pipe.scheduler, pipe.prompter = backbone.new_scheduler(), backbone.prompter
    pipe.text_encoder_kolors, pipe.unet = backbone.prompter.text_encoder, backbone.unet
    pipe.vae_encoder, pipe.vae_decoder = backbone.vae_encoder, backbone.vae_decoder
    pipe.scheduler.set_timesteps(1100)

    model = LightningModelForT2ILoRA(learning_rate=train.learning_rate, use_gradient_checkpointing=False)
    model.pipe = pipe
    model.freeze_parameters()
    model.add_lora_to_model(pipe.unet, train.lora_rank, train.lora_alpha, train.target_modules, "kaiming")
    data = TextImageDataset(
        sys.argv[2], train.steps_per_epoch * train.batch_size, render.size_px, render.size_px, True
    )
    loader = torch.utils.data.DataLoader(data, shuffle=True, batch_size=train.batch_size)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=train.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trained_from = time.monotonic()
    trainer.fit(model, loader)
    trained = time.monotonic()
    pipe.unet.eval()
    images = [
        pipe(
            scene.prompt,
            negative_prompt=scene.negative_prompt,
            cfg_scale=render.cfg_scale,
            seed=scene.seed,
            num_inference_steps=render.steps,
            height=render.size_px,
            width=render.size_px,
            progress_bar_cmd=lambda steps: steps,
        )
        for scene in spec.story.scenes
    ]
    rendered = time.monotonic()
    score_images(backbone, images)
    print(
        json.dumps(
            {
                "start": trained_from - START,
                "train": trained - trained_from,
                "render": rendered - trained,
                "total": time.monotonic() - START,
            }
        )
    )


if __name__ == "__main__":
    main()
