"""Do rank and alpha change the toy's scores by more than the noise of seeds?

`python -m tests.bench.rank_alpha` takes some minutes.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from core.backbone.backbone import Backbone, load_backbone
from core.backbone.encode import encode_examples
from core.base_models import DEFAULT
from core.data.audit import audit
from core.data.filters import select
from core.files.cache import Cache
from core.lora import adapters
from core.story.render import render_scenes
from core.story.score import score_images
from core.train.train import train_lora
from core.trial.spec import Filters, Rendering, Story, Training
from sweep.study.story import load_story
from tests.conftest import DEMO_DATA, SIZE_PX, STUDIES

SHAPES = ((4, 4), (16, 4), (16, 16), (16, 64), (32, 32))  # rank and alpha
TRAINING = Training(epochs=8, learning_rate=1e-3, steps_per_epoch=40, batch_size=6)
TRAIN_SEEDS, SEED_SETS = (0, 1), 4
IMAGES = Filters(min_score=0.366, max_ratio=1.6, max_images=20)
DRAWN = Rendering(steps=18, cfg_scale=3.0, size_px=SIZE_PX)


def main() -> None:
    backbone = load_backbone(DEFAULT)
    story = load_story(STUDIES / "stories" / "lake_painter.yaml").value
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        table = audit(
            DEMO_DATA,
            cache,
            lambda image: score_images(backbone, [image]).aesthetic[0],
            backbone.weights["scorer"],
        )
        examples = encode_examples(select(table, IMAGES), SIZE_PX, backbone, cache)
        rows = Table("rank", "alpha", *(f"training seed {seed}" for seed in TRAIN_SEEDS))
        rows.add_row("-", "-", _told(_stories(backbone, story, cache)), "")
        for rank, alpha in SHAPES:
            means = []
            for seed in TRAIN_SEEDS:
                training = replace(TRAINING, lora_rank=rank, lora_alpha=alpha)
                train_lora(backbone, examples, training, seed, lambda *_: None)
                means.append(_told(_stories(backbone, story, cache)))
                adapters.remove(backbone.unet)
            rows.add_row(str(rank), str(alpha), *means)
    Console().print(rows)


def _stories(backbone: Backbone, story: Story, cache: Cache) -> np.ndarray:
    """Mean scores of the story from several sets of render seeds, as the UNet is now."""
    shifted = [
        [replace(scene, seed=scene.seed + 1000 * number) for scene in story.scenes]
        for number in range(SEED_SETS)
    ]
    return np.array(
        [score_images(backbone, render_scenes(backbone, scenes, DRAWN, cache)).mean for scenes in shifted]
    )


def _told(means: np.ndarray) -> str:
    return f"{means.mean():.2f} ± {means.std():.2f}"


if __name__ == "__main__":
    main()
