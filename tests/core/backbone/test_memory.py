"""How much is done at once depends on the GPU's memory, never on a CPU's; and no image or loss depends on
it.
"""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from core.backbone import memory
from core.backbone.backbone import Backbone
from core.backbone.encode import Examples
from core.files.cache import Cache
from core.story.render import render_scenes
from core.trial.spec import Rendering, Story, Training
from tests.core.story.test_render import levels_apart
from tests.core.train.test_train import trained

TRAINING = Training(lora_rank=4, lora_alpha=8, epochs=1, steps_per_epoch=3, batch_size=2, learning_rate=2e-3)


def test_a_cpu_draws_a_story_at_once_and_keeps_its_activations(backbone: Backbone) -> None:
    assert memory.images_at_once(backbone, Rendering()) == 8
    assert not memory.needs_checkpointing("auto", backbone, (64, 4, 128, 128))


@pytest.mark.parametrize(
    ("room_gb", "size_px", "images"), [(70, 1024, 8), (1.3, 1024, 3), (0.1, 1024, 1), (1.2, 512, 8)]
)
def test_a_gpu_draws_as_many_images_at_once_as_fit(room_gb: float, size_px: int, images: int) -> None:
    assert memory.images_in(int(room_gb * 1e9), Rendering(size_px=size_px), torch.float16) == images


@pytest.mark.parametrize(
    ("room_gb", "batch_size", "fits"), [(70, 4, True), (70, 8, False), (16, 1, True), (8, 1, False)]
)
def test_a_gpu_keeps_its_activations_where_they_fit(room_gb: float, batch_size: int, fits: bool) -> None:
    assert memory.step_fits_in(int(room_gb * 1e9), (batch_size, 4, 128, 128), torch.float16) is fits


@pytest.mark.parametrize(("choice", "needed"), [("on", True), ("off", False)])
def test_a_choice_in_words_is_followed(
    backbone: Backbone, choice: Literal["on", "off"], needed: bool
) -> None:
    assert memory.needs_checkpointing(choice, backbone, (1, 4, 128, 128)) is needed


@pytest.mark.parametrize("lora_dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_bits(
    backbone: Backbone, examples: Examples, lora_dropout: float
) -> None:
    training = replace(TRAINING, lora_dropout=lora_dropout)
    kept = trained(backbone, examples, replace(training, gradient_checkpointing="off"))
    recomputed = trained(backbone, examples, replace(training, gradient_checkpointing="on"))
    assert recomputed[0] == kept[0]
    assert all(torch.equal(pair.up, kept[1][name].up) for name, pair in recomputed[1].items())


def test_recomputing_keeps_less_for_the_way_back(backbone: Backbone, examples: Examples) -> None:
    def kept_bytes(choice: Literal["on", "off"]) -> int:
        sizes: list[int] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trained(backbone, examples, replace(TRAINING, steps_per_epoch=1, gradient_checkpointing=choice))
        return sum(sizes)

    assert kept_bytes("on") < 0.6 * kept_bytes("off")


def test_an_image_does_not_depend_on_how_many_are_drawn_at_once(
    backbone: Backbone, story: Story, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering = Rendering(steps=3, cfg_scale=3.0, size_px=128)
    together = list(render_scenes(backbone, story.scenes[:5], rendering, cache))
    monkeypatch.setattr(memory, "MOST_IMAGES", 2)
    in_twos = list(render_scenes(backbone, story.scenes[:5], rendering, cache))
    assert len(in_twos) == 5
    assert max(map(levels_apart, in_twos, together)) <= 2
