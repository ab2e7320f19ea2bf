"""Neither a training step nor a denoising step asks the device for a number: it would stand idle until the next is sent.

The meta device proves it: its tensors have shapes but no numbers, so whoever reads one fails.
"""
from dataclasses import replace

import pytest
import torch

from core import lora
from core.backbone import Backbone
from core.encode import Examples, Words
from core.render import denoise
from core.settings import Rendering, Training
from core.tiny.models import TinyUNet
from core.train import LoraTraining

META = torch.device("meta")


@pytest.fixture
def far(backbone: Backbone) -> Backbone:
    """The toy on the meta device."""
    with META:
        unet = TinyUNet().requires_grad_(False)
    return replace(backbone, device=META, readers={"unet": lambda: unet}, _parts={})


def words(count: int) -> Words:
    return Words(torch.empty(count, 256, 64, device=META), torch.empty(count, 64, device=META))


def test_a_training_step_reads_nothing_from_the_device(far: Backbone) -> None:
    latents = torch.empty(6, 4, 16, 16, device=META)
    training = Training(lora_rank=4, batch_size=2, lora_dropout=0.1, random_flip=True, gradient_checkpointing="on")
    lora.put_on(far.unet, lora.LoraShape(rank=4, alpha=4, dropout=0.1), seed=0)
    module = LoraTraining(far, Examples(latents, latents, words(6)), training, 7, lambda epoch, losses: None)
    far.unet.train()
    for step in range(2):
        module.training_step(step, step).backward()
    with pytest.raises((NotImplementedError, RuntimeError)):
        module.on_train_epoch_end()  # which fetches the losses


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_denoising_reads_nothing_from_the_device(far: Backbone, cfg_scale: float) -> None:
    rendering = Rendering(steps=3, cfg_scale=cfg_scale, size_px=128)
    drawn = denoise(far, torch.empty(2, 4, 16, 16, device=META), words(2), words(2), rendering)
    assert drawn.device == META
    with pytest.raises(NotImplementedError):
        drawn.cpu()
