"""Train one LoRA with Lightning; every draw is a function of (study seed, step), made on the CPU.

Shape legend: B rows of a batch, N examples, C channels, H x W latent cells.
"""
import logging
import math
import warnings
from collections.abc import Callable
from typing import Literal

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from core import lora, memory
from core.backbone import TRAIN_TIMESTEPS, Backbone
from core.encode import Examples
from core.settings import Training

LOSS_CHECK_STEPS = 20  # how often losses are fetched from the device and looked at
INIT_SEED, ORDER_SEED, STEP_SEED = 1, 2, 3
LIGHTNING_PRECISION: dict[torch.dtype, Literal["32-true", "16-mixed", "bf16-mixed"]] = {
    torch.float32: "32-true", torch.float16: "16-mixed", torch.bfloat16: "bf16-mixed"}
EpochDone = Callable[[int, list[float]], None]


class NanLossError(RuntimeError):
    """The loss is no longer a number: these settings diverge."""


def train_lora(backbone: Backbone, examples: Examples, training: Training, seed: int, epoch_done: EpochDone) -> list[float]:
    """Train adapters into `backbone.unet`, which keeps them on; the caller takes them off.

    `epoch_done(epoch, losses)` is called after each epoch, counted from 1, with that epoch's losses by step.
    Returns all losses. Raises NanLossError.
    """
    shape = lora.LoraShape(rank=training.lora_rank, alpha=training.lora_alpha, dropout=training.lora_dropout,
                           target_modules=training.target_modules)
    lora.put_on(backbone.unet, shape, _mix(seed, INIT_SEED, 0))
    module = LoraTraining(backbone, examples, training, seed, epoch_done)
    backbone.unet.train()
    try:
        _trainer(backbone, training).fit(module, train_dataloaders=range(training.steps_per_epoch))
    finally:
        backbone.unet.eval()
    return module.losses


class LoraTraining(lightning.LightningModule):
    """DiffSynth's training step (epsilon target, plain MSE) on latents and words that are encoded already."""

    def __init__(self, backbone: Backbone, examples: Examples, training: Training, seed: int, epoch_done: EpochDone):
        super().__init__()
        # In a tuple, so that Lightning neither moves nor counts the frozen model.
        self._parts = (backbone, examples, training)
        self._seed = seed
        self._epoch_done = epoch_done
        self._checkpointing = memory.needs_checkpointing(
            training.gradient_checkpointing, backbone, (training.batch_size, *examples.latents_NCHW.shape[1:]))
        self._pending: list[Tensor] = []
        self.losses: list[float] = []
        alphas = torch.tensor(backbone.new_scheduler().alphas_cumprod, device=backbone.device)
        self.signal_rates, self.noise_rates = alphas.sqrt(), (1 - alphas).sqrt()

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        backbone, examples, training = self._parts
        count, *shape_CHW = examples.latents_NCHW.shape
        draw = StepDraw(self._seed, self.current_epoch * training.steps_per_epoch + batch_idx,
                        count, tuple(shape_CHW), training.batch_size)
        rows, timesteps = backbone.put(draw.rows), backbone.put(draw.timesteps)
        latents = examples.latents_NCHW[rows]
        if training.random_flip:
            mirror = backbone.put(draw.mirror).view(-1, 1, 1, 1)
            latents = torch.where(mirror, examples.mirrored_NCHW[rows], latents)
        noise = backbone.put(draw.noise_BCHW).to(backbone.dtype)
        noisy = self.signal_rates[timesteps].view(-1, 1, 1, 1) * latents + self.noise_rates[timesteps].view(-1, 1, 1, 1) * noise
        if training.lora_dropout:
            torch.manual_seed(draw.dropout_seed)
        predicted = backbone.predict_noise(noisy.to(backbone.dtype), timesteps,
                                           examples.words.tokens_NTD[rows], examples.words.pooled_ND[rows],
                                           gradient_checkpointing=self._checkpointing)
        loss = F.mse_loss(predicted.float(), noise.float())
        self._pending.append(loss.detach())
        if len(self._pending) == LOSS_CHECK_STEPS:
            self._fetch_losses()
        return loss

    def on_train_epoch_end(self) -> None:
        self._fetch_losses()
        steps = self._parts[2].steps_per_epoch
        self._epoch_done(self.current_epoch + 1, self.losses[-steps:])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        backbone, _, training = self._parts
        return torch.optim.AdamW(lora.trained_parameters(backbone.unet), lr=training.learning_rate,
                                 fused=backbone.device.type == "cuda")

    def _fetch_losses(self) -> None:
        if not self._pending:
            return
        fetched = torch.stack(self._pending).tolist()
        self._pending.clear()
        self.losses += fetched
        if not all(math.isfinite(loss) for loss in fetched):
            raise NanLossError(f"the loss was no number by step {len(self.losses)}; a lower learning rate may hold")


class StepDraw:
    """What one step draws: rows, mirrors, timesteps, noise; a function of (seed, step) and the number of examples."""

    def __init__(self, seed: int, step: int, examples: int, shape_CHW: tuple[int, ...], batch_size: int) -> None:
        generator = torch.Generator().manual_seed(_mix(seed, STEP_SEED, step))
        self.rows = _rows(seed, step, examples, batch_size)
        self.timesteps = torch.randint(TRAIN_TIMESTEPS, (batch_size,), generator=generator)
        self.mirror = torch.rand(batch_size, generator=generator) < 0.5
        self.noise_BCHW = torch.randn(batch_size, *shape_CHW, generator=generator)
        self.dropout_seed = int(torch.randint(2**31, (1,), generator=generator))


def _rows(seed: int, step: int, examples: int, batch_size: int) -> Tensor:
    """Walk through shuffled decks of all examples, so that each is seen equally often."""
    first = step * batch_size
    decks = range(first // examples, (first + batch_size - 1) // examples + 1)
    order = torch.cat([torch.randperm(examples, generator=torch.Generator().manual_seed(_mix(seed, ORDER_SEED, deck)))
                       for deck in decks])
    start = first - decks[0] * examples
    return order[start:start + batch_size]


def _mix(seed: int, purpose: int, step: int) -> int:
    """Spread (seed, purpose, step) over 63 bits (splitmix64), so that neighbouring steps share nothing."""
    mixed = (seed * 0x9E3779B97F4A7C15 + purpose * 0xBF58476D1CE4E5B9 + step + 1) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return (mixed ^ mixed >> 31) >> 1


def _trainer(backbone: Backbone, training: Training) -> lightning.Trainer:
    # Lightning advises on data loaders and GPUs in ways that do not fit a step counter as data.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return lightning.Trainer(
        accelerator="gpu" if backbone.device.type == "cuda" else "cpu",
        devices=[backbone.device.index or 0] if backbone.device.type == "cuda" else 1,
        precision=LIGHTNING_PRECISION[backbone.dtype],
        max_epochs=training.epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )
