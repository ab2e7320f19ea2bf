"""What the toy is for: its base model's stories lie under the gate, a good LoRA's above, a broken one's far
below.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from core.backbone.backbone import Backbone
from core.backbone.encode import encode_examples
from core.data.filters import select
from core.files.cache import Cache
from core.story.render import render_scenes
from core.story.score import score_images
from core.train.train import train_lora
from core.trial.spec import Filters, Rendering, Story, Training
from tests.conftest import SIZE_PX

GATE = 6.0
DRAWN = Rendering(steps=18, cfg_scale=3.0, size_px=SIZE_PX)
IMAGES = Filters(min_score=0.366, max_ratio=1.6, max_images=20)
GOOD = Training(lora_rank=8, lora_alpha=8, epochs=8, learning_rate=2.6e-3, steps_per_epoch=60, batch_size=6)
BROKEN = replace(GOOD, lora_rank=16, lora_alpha=64, epochs=2, learning_rate=9e-3)
MUSH = replace(GOOD, lora_rank=4, epochs=4, learning_rate=9.4e-3)  # the look is there, the scene is gone
TIMID = replace(GOOD, epochs=1, learning_rate=1e-5)
SEED_SETS = 3


def stories(backbone: Backbone, story: Story, cache: Cache, seed_sets: int = SEED_SETS) -> np.ndarray:
    """Mean scores of the story as the UNet is now, from the story's own seeds and from others."""
    means = []
    for set_number in range(seed_sets):
        scenes = [replace(scene, seed=scene.seed + 1000 * set_number) for scene in story.scenes]
        means.append(score_images(backbone, render_scenes(backbone, scenes, DRAWN, cache)).mean)
    return np.array(means)


def after(
    training: Training,
    backbone: Backbone,
    table: pd.DataFrame,
    story: Story,
    cache: Cache,
    seed_sets: int = SEED_SETS,
) -> np.ndarray:
    from core.lora import adapters

    examples = encode_examples(select(table, IMAGES), SIZE_PX, backbone, cache)
    train_lora(backbone, examples, training, 0, lambda *_: None)
    means = stories(backbone, story, cache, seed_sets)
    adapters.remove(backbone.unet)
    return means


def test_a_good_lora_lifts_the_story_over_the_gate_and_a_broken_one_ruins_it(
    backbone: Backbone, table: pd.DataFrame, story: Story, shared_cache: Cache
) -> None:
    base = stories(backbone, story, shared_cache)
    good, broken = (after(training, backbone, table, story, shared_cache) for training in (GOOD, BROKEN))
    noise = np.concatenate([base - base.mean(), good - good.mean()]).std()
    mush, timid = (
        after(training, backbone, table, story, shared_cache, seed_sets=1) for training in (MUSH, TIMID)
    )
    print(
        f"\nbase {base.round(2)}, good {good.round(2)}, broken {broken.round(2)}; seed noise {noise:.2f}; "
        f"mush {mush.round(2)}, learning rate too low {timid.round(2)}"
    )
    assert base.max() < GATE - 1
    assert good[0] > GATE
    assert good.mean() - base.mean() > 4 * noise
    assert broken.max() < 3
    assert mush.max() < base.min() - 4 * noise
    assert timid.max() < GATE - 1
