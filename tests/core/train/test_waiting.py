"""Neither a training step nor a denoising step asks the device for a number: it would stand idle until the
next is sent.

The meta device proves it: its tensors have shapes but no numbers, so whoever reads one fails.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from core.backbone.backbone import Backbone
from core.backbone.encode import Examples, TextEmbeddings
from core.heartbeat import no_heartbeat
from core.lora import adapters
from core.story.render import denoise
from core.tiny.models import tiny_unet
from core.train.train import LoraTraining
from core.trial.spec import Rendering, Training

META = torch.device("meta")


@pytest.fixture
def far(backbone: Backbone) -> Backbone:
    """The toy on the meta device."""
    with META:
        unet = tiny_unet().requires_grad_(False)
    return replace(backbone, device=META, readers={"unet": lambda: unet}, _parts={})


def words(count: int) -> TextEmbeddings:
    return TextEmbeddings(torch.empty(count, 256, 64, device=META), torch.empty(count, 64, device=META))


@pytest.mark.parametrize("micro_batch", [2, 1])
def test_a_training_step_reads_nothing_from_the_device(
    far: Backbone, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.empty(6, 4, 16, 16, device=META)
    training = Training(lora_rank=4, steps_per_epoch=3, batch_size=2, lora_dropout=0.1, random_flip=True)
    adapters.inject(far.unet, Training(lora_rank=4, lora_alpha=4, lora_dropout=0.1), seed=0)
    module = LoraTraining(
        far,
        Examples(latents, latents, words(6)),
        training,
        7,
        lambda epoch, losses: None,
        micro_batch,
        state=None,
        checkpoint=None,
        heartbeat=no_heartbeat,
    )
    monkeypatch.setattr(module, "_scaler", lambda: None)
    monkeypatch.setattr(module, "optimizers", partial(module.configure_optimizers))
    far.unet.train()
    *parts, last = range(training.total_steps * module.parts)
    for part in parts:
        module.training_step(part, part)
        module.on_train_batch_end(None, part, part)
    module.training_step(last, last)
    with pytest.raises(RuntimeError, match="meta tensor"):
        module.on_train_batch_end(None, last, last)  # the epoch's end, which fetches the losses


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_denoising_reads_nothing_from_the_device(far: Backbone, cfg_scale: float) -> None:
    rendering = Rendering(steps=3, cfg_scale=cfg_scale, size_px=128)
    drawn = denoise(far, torch.empty(2, 4, 16, 16, device=META), words(2), words(2), rendering)
    assert drawn.device == META
    with pytest.raises(NotImplementedError):
        drawn.cpu()
