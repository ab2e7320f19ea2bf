"""Train one LoRA with Lightning; its random numbers are drawn in core/train/draw.py.

Shape legend: B rows of a batch, N examples, C channels, H x W latent cells.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import lightning
import torch
import torch.nn.functional as F
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from core.backbone import memory
from core.backbone.backbone import Backbone
from core.backbone.cuda_graph import StepsInFlight, record
from core.backbone.encode import Examples
from core.errors import LoraSweepError
from core.files.fail_point import fail_point
from core.heartbeat import Heartbeat, Interrupted, no_heartbeat
from core.lora import adapters
from core.train.draw import StepDraw, adapters_seed
from core.train.state import TrainState, save_state
from core.trial.spec import Training

LOSS_CHECK_STEPS = 20  # how often losses are fetched from the device and checked
ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
LIGHTNING_PRECISION: dict[torch.dtype, Literal["32-true", "16-mixed", "bf16-mixed"]] = {
    torch.float32: "32-true",
    torch.float16: "16-mixed",
    torch.bfloat16: "bf16-mixed",
}
EpochDone = Callable[[int, list[float]], None]


class NanLossError(LoraSweepError):
    """The loss is NaN or infinite: training diverges with these settings."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training saves its state, with which key (core/train/state.py), and how often at least."""

    path: Path
    key: str
    every_s: float = 120.0


def train_lora(
    backbone: Backbone,
    examples: Examples,
    training: Training,
    seed: int,
    epoch_done: EpochDone,
    *,
    micro_batch: int | None = None,
    state: TrainState | None = None,
    checkpoint: Checkpoint | None = None,
    heartbeat: Heartbeat = no_heartbeat,
) -> list[float]:
    """Train adapters in `backbone.unet`; they stay there until the caller removes them.

    `epoch_done(epoch, losses)` is called after each epoch, counted from 1, with that epoch's losses by step.
    `micro_batch` rows at a time go through the UNet (default: all); it must divide `training.batch_size`.
    Resumes from `state` if there is one, and saves to `checkpoint`. Returns the losses of all steps. Raises
    NanLossError, and Interrupted when `heartbeat` does, after saving.
    """
    adapters.inject(backbone.unet, training, adapters_seed(seed))
    if state:
        with torch.no_grad():
            for name, parameter in adapters.trained_parameters(backbone.unet).items():
                parameter.copy_(state.tensors[name])
    module = LoraTraining(
        backbone, examples, training, seed, epoch_done, micro_batch, state, checkpoint, heartbeat
    )
    micro_steps = range(len(module.losses) * module.parts, training.total_steps * module.parts)
    backbone.unet.train()
    try:
        with ExitStack() as stack:
            if module.checkpointing:
                stack.enter_context(memory.recomputing(backbone.unet, draws=training.lora_dropout > 0))
            if micro_steps:
                _trainer(backbone).fit(module, train_dataloaders=micro_steps)
    finally:
        module.forget_gradients()
        backbone.unet.eval()
    return module.losses


class LoraTraining(lightning.LightningModule):
    """DiffSynth's training step (epsilon target, plain MSE) on latents and embeddings from the cache.

    For Lightning it is one long epoch of numbered micro-batches; our epochs are counted in steps, so that a
    training can resume at any step. Gradients are computed here and not by Lightning, so that a GPU can
    replay them as a CUDA graph (core/backbone/cuda_graph.py).
    """

    automatic_optimization = False

    def __init__(
        self,
        backbone: Backbone,
        examples: Examples,
        training: Training,
        seed: int,
        epoch_done: EpochDone,
        micro_batch: int | None,
        state: TrainState | None,
        checkpoint: Checkpoint | None,
        heartbeat: Heartbeat,
    ) -> None:
        super().__init__()
        self._backbone, self._examples, self._training = backbone, examples, training
        self._rows, self._shape_CHW = examples.rows_of_a_pass, examples.latents_NCHW.shape[1:]
        self._seed, self._epoch_done = seed, epoch_done
        self._state, self._checkpoint, self._heartbeat = state, checkpoint, heartbeat
        self._saved_at = time.monotonic()
        self._micro_batch = micro_batch or training.batch_size
        self.parts = training.batch_size // self._micro_batch
        assert self.parts * self._micro_batch == training.batch_size, (training.batch_size, micro_batch)
        self.checkpointing = memory.needs_checkpointing(
            training.gradient_checkpointing, backbone, (self._micro_batch, *self._shape_CHW)
        )
        self._matrices = adapters.trained_parameters(backbone.unet)
        self._differentiate: Callable[..., tuple[Tensor, ...]] | None = None
        self._gradients: list[Tensor] = []
        self._in_flight = StepsInFlight(backbone.device)
        self._pending: list[Tensor] = []
        self.losses = list(state.losses) if state else []
        alphas = torch.tensor(backbone.new_scheduler().alphas_cumprod, device=backbone.device)
        self.signal_rates, self.noise_rates = alphas.sqrt(), (1 - alphas).sqrt()

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Lightning's hook: gradients of micro-batch number `batch`; the last one of a step updates."""
        step, part = divmod(batch, self.parts)
        fail_point("step")
        draw = StepDraw(self._seed, step, len(self._rows), self._shape_CHW, self._training.batch_size)
        draw.keep_part(part, self._micro_batch)
        drawn = (self._rows[draw.rows], draw.timesteps, draw.mirror, draw.noise_BCHW)
        inputs = [*map(self._backbone.put, drawn), self._loss_scale() / self.parts]
        dropout = self._training.lora_dropout > 0
        if not self._differentiate:
            # with dropout, checkpointing saves the RNG state, which a CUDA graph does not allow
            work = self._loss_and_gradients
            self._differentiate = work if self.checkpointing and dropout else record(work, *inputs)
        if dropout:
            torch.manual_seed(draw.dropout_seed)
        loss, *gradients = self._differentiate(*inputs)
        if part:
            self._gradients = list(torch._foreach_add(self._gradients, gradients))
        elif self.parts > 1:  # a replay overwrites what it returned, so the sum needs memory of its own
            self._gradients = [gradient.clone() for gradient in gradients]
        else:
            self._gradients = gradients
        if part == self.parts - 1:
            for parameter, gradient in zip(self._matrices.values(), self._gradients, strict=True):
                parameter.grad = gradient
            cast(LightningOptimizer, self.optimizers()).step()
        self._pending.append(loss * math.nan if fail_point("loss") == "nan" else loss.clone())

    def _loss_and_gradients(
        self, rows: Tensor, timesteps: Tensor, mirror: Tensor, noise_BCHW: Tensor, scale: Tensor
    ) -> tuple[Tensor, ...]:
        """-> (loss, gradient of `scale` * loss for each trained matrix); never waits for the device."""
        backbone, examples, captions = self._backbone, self._examples, self._examples.captions
        latents = examples.latents_NCHW[rows]
        if self._training.random_flip:
            latents = torch.where(mirror.view(-1, 1, 1, 1), examples.mirrored_NCHW[rows], latents)
        noise = noise_BCHW.to(backbone.dtype)
        noisy = self.signal_rates[timesteps].view(-1, 1, 1, 1) * latents
        noisy = noisy + self.noise_rates[timesteps].view(-1, 1, 1, 1) * noise
        predicted = backbone.predict_noise(
            noisy.to(backbone.dtype), timesteps, captions.tokens_NTD[rows], captions.pooled_ND[rows]
        )
        loss = F.mse_loss(predicted.float(), noise.float())
        return loss.detach(), *torch.autograd.grad(loss * scale, [*self._matrices.values()])

    def _loss_scale(self) -> Tensor:
        """The factor of fp16's loss scaling, on the device; 1 without."""
        one, scaler = torch.ones((), device=self._backbone.device), self._scaler()
        return scaler.scale(one) if scaler else one

    def forget_gradients(self) -> None:
        """Free the memory of a step: the gradients and the CUDA graph that computes them."""
        self._differentiate, self._gradients = None, []
        for parameter in self._matrices.values():
            parameter.grad = None

    def on_train_batch_end(self, outputs: object, batch: int, batch_idx: int) -> None:
        """Lightning's hook: after the last micro-batch of a step, checks losses, saves, sends a heartbeat."""
        steps, part = divmod(batch + 1, self.parts)
        if part:
            return
        per_epoch = self._training.steps_per_epoch
        at_epoch_end = steps % per_epoch == 0
        if at_epoch_end or len(self._pending) >= LOSS_CHECK_STEPS * self.parts:
            self._fetch_losses()
        if at_epoch_end:
            self._epoch_done(steps // per_epoch, self.losses[-per_epoch:])
        seconds = time.monotonic() - self._saved_at
        if self._checkpoint and (at_epoch_end or seconds >= self._checkpoint.every_s):
            self._save()
        self._in_flight.step()
        try:
            self._heartbeat()
        except Interrupted:
            if not at_epoch_end:
                self._save()
            raise

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Lightning's hook: AdamW on the adapters, with its saved state when training resumes."""
        on_gpu = self._backbone.device.type == "cuda"
        optimizer = torch.optim.AdamW(self._matrices.values(), lr=self._training.learning_rate, fused=on_gpu)
        if self._state:
            saved = {
                index: {key: self._state.tensors[f"{key}.{name}"] for key in ADAMW_STATE}
                for index, name in enumerate(self._matrices)
            }
            optimizer.load_state_dict(optimizer.state_dict() | {"state": saved})
        return optimizer

    def on_train_start(self) -> None:
        """Lightning's hook: restores fp16's loss scaling when training resumes."""
        if self._state and self._state.scaler:
            scaler = self._scaler()
            assert scaler is not None, "a state with loss scaling is resumed without"
            scaler.load_state_dict(self._state.scaler)

    def _save(self) -> None:
        """Save adapters and optimizer as they are after the last finished step."""
        if not self._checkpoint:
            return
        self._fetch_losses()
        optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))
        tensors = {name: parameter.detach() for name, parameter in self._matrices.items()}
        tensors |= {
            f"{key}.{name}": optimizer.state[parameter][key]
            for key in ADAMW_STATE
            for name, parameter in self._matrices.items()
        }
        on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        scaler = self._scaler()
        state = TrainState(self.losses, on_cpu, scaler.state_dict() if scaler else {})
        save_state(self._checkpoint.path, state, self._checkpoint.key)
        self._saved_at = time.monotonic()

    def _scaler(self) -> torch.amp.GradScaler | None:
        """Lightning's loss scaler; None unless training in fp16."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _fetch_losses(self) -> None:
        """Move pending losses from the device to `losses`, one per step: the mean over its micro-batches."""
        if not self._pending:
            return
        fetched = torch.stack(self._pending).view(-1, self.parts).mean(1).tolist()
        self._pending.clear()
        self.losses += fetched
        if not all(math.isfinite(loss) for loss in fetched):
            raise NanLossError(
                f"the loss was no number by step {len(self.losses)}; a lower learning rate may help"
            )


def _trainer(backbone: Backbone) -> lightning.Trainer:
    # Lightning warns about data loaders and GPUs; neither applies where the data is a step counter.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return lightning.Trainer(
        accelerator="gpu" if backbone.device.type == "cuda" else "cpu",
        devices=[backbone.device.index or 0] if backbone.device.type == "cuda" else 1,
        precision=LIGHTNING_PRECISION[backbone.dtype],
        # ignore a batch system around us: restarts are up to the driver
        plugins=[LightningEnvironment()],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
