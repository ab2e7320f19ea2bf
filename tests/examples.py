"""What tests build: settings, results, and a finished trial's files, with small images and a small LoRA."""

import json
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from core.files.files import sha256, write_json
from core.folders import TrialFolder
from core.trial.result import Result
from core.trial.spec import Data, Filters, Rendering, Scene, Story, Training, TrialSpec
from sweep.events import Ready

HOSTILE = (
    '<script>alert("x")</script>, a lake',
    "](javascript:alert(1)) | a | boat",
    "---\nlicense: evil\n---",
    "```\n# heading",
    "quote \" and 'single' & ampersand",
    "*bold* _it_ [link](http://x)",
    "水彩画，一只小船",
    "$x$ {a|b} ~~no~~ \\",
)
STUDY = "lake_painter"
READY = Ready(
    device="cpu",
    seconds=1.0,
    threads=2,
    unknown_words=(),
    weights={},
    scorer="",
    scoring_version=1,
    processor="a CPU",
    canary=(),
    base_story=(),
    versions={},
)
ANY, TRAINING = Filters(), Training(lora_rank=4, epochs=2)
ADDED = {"lora_sweep_training_alpha": "4.0", "ss_network_dim": "4", "modelspec.architecture": "kolors/lora"}


def make_spec(
    number: int,
    *,
    filters: Filters = ANY,
    train: Training | None = TRAINING,
    backbone: str = "kolors",
    prompts: tuple[str, ...] = HOSTILE,
) -> TrialSpec:
    scenes = tuple(
        Scene(prompt=prompt, negative_prompt="blurry", seed=100 + index)
        for index, prompt in enumerate(prompts)
    )
    return TrialSpec(
        study=STUDY,
        number=number,
        seed=7,
        backbone=backbone,
        precision="fp32",
        data=Data(source="images", caption="{prompt}, watercolor <style>"),
        story=Story(title="The *lake*", scenes=scenes),
        train=train,
        render=Rendering(steps=4, cfg_scale=3.0, size_px=64),
        filters=filters,
        gate=6.0,
    )


def make_result(spec: TrialSpec, mean: float, *, lora_sha256: str | None = None) -> Result:
    scores = tuple(mean + offset for offset in np.linspace(-0.4, 0.4, len(spec.story.scenes)).tolist())
    return Result(
        state="complete",
        spec=spec,
        aesthetic=scores,
        aesthetic_mean=mean,
        aesthetic_min=min(scores),
        aesthetic_std=float(np.std(scores)),
        coherence=0.8,
        passed_gate=mean >= spec.gate,
        train_loss=0.1,
        images=20 if spec.train else 0,
        lora_sha256=lora_sha256,
        duration_s=61.5,
        scorer="fake-scorer",
        device="cpu",
        dtype="float32",
        versions={"torch": "2.15"},
    )


def make_failure(spec: TrialSpec, reason: str = "nan_loss") -> Result:
    return Result(
        state="failed", spec=spec, reason=reason, message="loss is NaN at step 3 <b>", duration_s=5.0
    )


def fill(folder: TrialFolder, spec: TrialSpec, mean: float) -> Result:
    """Write a complete trial: LoRA, images, sheet, result."""
    random = np.random.default_rng(1 + spec.number)
    folder.images.mkdir(parents=True)
    lora_sha256 = None
    if spec.train:
        prefix = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
        tensors = {
            f"{prefix}.lora_down.weight": random.standard_normal((4, 8), np.float32).astype(np.float16),
            f"{prefix}.lora_up.weight": random.standard_normal((8, 4), np.float32),
            f"{prefix}.alpha": np.array(4.0, np.float32),
        }
        save_file(tensors, folder.lora, metadata=ADDED)
        lora_sha256 = sha256(folder.lora)
    scenes = spec.story.scenes
    sheet = Image.new("RGB", (64 * 4, 64 * 2))
    for number in range(1, len(scenes) + 1):
        image = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
        image.save(folder.image(number))
        sheet.paste(image, (64 * ((number - 1) % 4), 64 * ((number - 1) // 4)))
    sheet.save(folder.sheet)
    result = make_result(spec, mean, lora_sha256=lora_sha256)
    write_json(folder.result, result)
    return result


def with_value(values: Any, path: str, value: Any) -> Any:
    """A copy with the value under a path such as story.scenes.2.seed replaced, or the key dropped (...)."""
    copied = json.loads(json.dumps(values))
    *way, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner = copied
    for key in way:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return copied
