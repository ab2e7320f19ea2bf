"""Train one LoRA with Lightning; all random numbers are functions of (study seed, step), drawn on the CPU.

Shape legend: B rows of a batch, N examples, C channels, H x W latent cells.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor

from core.backbone import memory
from core.backbone.backbone import TRAIN_TIMESTEPS, Backbone
from core.backbone.cuda_graph import StepsInFlight, record
from core.backbone.encode import Examples
from core.errors import LoraSweepError
from core.files.fail_point import fail_point
from core.heartbeat import Beat, Interrupted, no_beat
from core.lora import lora
from core.train.state import TrainState, save_state
from core.trial.spec import Training

LOSS_CHECK_STEPS = 20  # how often losses are fetched from the device and checked
INIT_SEED, ORDER_SEED, STEP_SEED = 1, 2, 3
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
    beat: Beat = no_beat,
) -> list[float]:
    """Train adapters in `backbone.unet`; they stay there until the caller removes them.

    `epoch_done(epoch, losses)` is called after each epoch, counted from 1, with that epoch's losses by step.
    `micro_batch` rows at a time go through the UNet (default: all); it must divide `training.batch_size`.
    Resumes from `state` if there is one, and saves to `checkpoint`. Returns the losses of all steps. Raises
    NanLossError, and Interrupted when `beat` does, after saving.
    """
    shape = lora.LoraShape(
        rank=training.lora_rank,
        alpha=training.lora_alpha,
        dropout=training.lora_dropout,
        target_modules=training.target_modules,
    )
    lora.put_on(backbone.unet, shape, _mix(seed, INIT_SEED, 0))
    if state:
        with torch.no_grad():
            for name, parameter in lora.trained_parameters(backbone.unet).items():
                parameter.copy_(state.tensors[name])
    module = LoraTraining(
        backbone,
        examples,
        training,
        seed,
        epoch_done,
        micro_batch or training.batch_size,
        state,
        checkpoint,
        beat,
    )
    micro_steps = range(len(module.losses) * module.parts, training.total_steps * module.parts)
    keeping = (
        memory.recomputing(backbone.unet, draws=training.lora_dropout > 0)
        if module.checkpointing
        else nullcontext()
    )
    backbone.unet.train()
    try:
        if micro_steps:
            with keeping:
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
        micro_batch: int,
        state: TrainState | None,
        checkpoint: Checkpoint | None,
        beat: Beat,
    ) -> None:
        super().__init__()
        assert training.batch_size % micro_batch == 0, (training.batch_size, micro_batch)
        # In a tuple, so that Lightning neither moves nor counts the frozen model.
        self._given = (backbone, examples, training)
        self._deck = examples.deck
        self._seed, self._epoch_done, self._micro_batch = seed, epoch_done, micro_batch
        self._state, self._checkpoint, self._beat = state, checkpoint, beat
        self._saved_at = time.monotonic()
        self.checkpointing = memory.needs_checkpointing(
            training.gradient_checkpointing, backbone, (micro_batch, *examples.latents_NCHW.shape[1:])
        )
        self._parameters_trained = list(lora.trained_parameters(backbone.unet).values())
        self._differentiate: Callable[..., tuple[Tensor, ...]] | None = None
        self._gradients: list[Tensor] = []
        self._in_flight = StepsInFlight(backbone.device)
        self._pending: list[Tensor] = []
        self.parts = training.batch_size // micro_batch
        self.losses = list(state.losses) if state else []
        alphas = torch.tensor(backbone.new_scheduler().alphas_cumprod, device=backbone.device)
        self.signal_rates, self.noise_rates = alphas.sqrt(), (1 - alphas).sqrt()

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Lightning's hook: gradients of micro-batch number `batch`; the last one of a step updates."""
        backbone, examples, training = self._given
        step, part = divmod(batch, self.parts)
        fail_point("step")
        draw = StepDraw(
            self._seed, step, len(self._deck), tuple(examples.latents_NCHW.shape[1:]), training.batch_size
        )
        draw = draw.keep_part(part, self._micro_batch)
        inputs = [
            backbone.put(tensor)
            for tensor in (self._deck[draw.rows], draw.timesteps, draw.mirror, draw.noise_BCHW)
        ]
        inputs.append(self._loss_scale() / self.parts)
        if not self._differentiate:
            saves_rng_state = self.checkpointing and training.lora_dropout > 0
            self._differentiate = (
                self._loss_and_gradients if saves_rng_state else record(self._loss_and_gradients, *inputs)
            )
        if training.lora_dropout:
            torch.manual_seed(draw.dropout_seed)
        loss, *gradients = self._differentiate(*inputs)
        if self.parts == 1:
            self._gradients = gradients
        else:  # a replay overwrites what it returned, so the sum needs memory of its own
            self._gradients = (
                list(torch._foreach_add(self._gradients, gradients))
                if part
                else [gradient.clone() for gradient in gradients]
            )
        if part == self.parts - 1:
            for parameter, gradient in zip(self._parameters_trained, self._gradients, strict=True):
                parameter.grad = gradient
            cast(LightningOptimizer, self.optimizers()).step()
        self._pending.append(loss * math.nan if fail_point("loss") == "nan" else loss.clone())

    def _loss_and_gradients(
        self, rows: Tensor, timesteps: Tensor, mirror: Tensor, noise_BCHW: Tensor, scale: Tensor
    ) -> tuple[Tensor, ...]:
        """-> (loss, gradient of `scale` * loss for each trained matrix); never waits for the device."""
        backbone, examples, training = self._given
        latents = examples.latents_NCHW[rows]
        if training.random_flip:
            latents = torch.where(mirror.view(-1, 1, 1, 1), examples.mirrored_NCHW[rows], latents)
        noise = noise_BCHW.to(backbone.dtype)
        noisy = (
            self.signal_rates[timesteps].view(-1, 1, 1, 1) * latents
            + self.noise_rates[timesteps].view(-1, 1, 1, 1) * noise
        )
        predicted = backbone.predict_noise(
            noisy.to(backbone.dtype),
            timesteps,
            examples.captions.tokens_NTD[rows],
            examples.captions.pooled_ND[rows],
        )
        loss = F.mse_loss(predicted.float(), noise.float())
        return loss.detach(), *torch.autograd.grad(loss * scale, self._parameters_trained)

    def _loss_scale(self) -> Tensor:
        """The factor of fp16's loss scaling, on the device; 1 without."""
        one, scaler = torch.ones((), device=self._given[0].device), self._scaler()
        return scaler.scale(one) if scaler else one

    def forget_gradients(self) -> None:
        """Free the memory of a step: the gradients and the CUDA graph that computes them."""
        self._differentiate, self._gradients = None, []
        for parameter in self._parameters_trained:
            parameter.grad = None

    def on_train_batch_end(self, outputs: object, batch: int, batch_idx: int) -> None:
        """Lightning's hook: after the last micro-batch of a step, checks losses, saves, sends a heartbeat."""
        training = self._given[2]
        steps, part = divmod(batch + 1, self.parts)
        if part:
            return
        at_epoch_end = steps % training.steps_per_epoch == 0
        if at_epoch_end or len(self._pending) >= LOSS_CHECK_STEPS * self.parts:
            self._fetch_losses()
        if at_epoch_end:
            self._epoch_done(steps // training.steps_per_epoch, self.losses[-training.steps_per_epoch :])
        if self._checkpoint and (
            at_epoch_end or time.monotonic() - self._saved_at >= self._checkpoint.every_s
        ):
            self._save()
        self._in_flight.step()
        try:
            self._beat()
        except Interrupted:
            if not at_epoch_end:
                self._save()
            raise

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Lightning's hook: AdamW on the adapters, with its saved state when training resumes."""
        backbone, _, training = self._given
        parameters = lora.trained_parameters(backbone.unet)
        optimizer = torch.optim.AdamW(
            parameters.values(), lr=training.learning_rate, fused=backbone.device.type == "cuda"
        )
        if self._state:
            saved = {
                index: {
                    key: self._state.tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
                for index, name in enumerate(parameters)
            }
            optimizer.load_state_dict(
                {"state": saved, "param_groups": optimizer.state_dict()["param_groups"]}
            )
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
        parameters = lora.trained_parameters(self._given[0].unet)
        state = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False)).state
        tensors = {name: parameter.detach() for name, parameter in parameters.items()}
        tensors |= {
            f"{key}.{name}": state[parameter][key]
            for key in ("step", "exp_avg", "exp_avg_sq")
            for name, parameter in parameters.items()
        }
        scaler = self._scaler()
        save_state(
            self._checkpoint.path,
            TrainState(
                self.losses,
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                scaler.state_dict() if scaler else {},
            ),
            self._checkpoint.key,
        )
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


class StepDraw:
    """The random numbers of one step: rows, mirrors, timesteps, noise; they depend on the arguments only."""

    def __init__(
        self, seed: int, step: int, examples: int, shape_CHW: tuple[int, ...], batch_size: int
    ) -> None:
        generator = torch.Generator().manual_seed(_mix(seed, STEP_SEED, step))
        self.rows = _rows(seed, step, examples, batch_size)
        self.timesteps = torch.randint(TRAIN_TIMESTEPS, (batch_size,), generator=generator)
        self.mirror = torch.rand(batch_size, generator=generator) < 0.5
        self.noise_BCHW = torch.randn(batch_size, *shape_CHW, generator=generator)
        self.dropout_seed = int(torch.randint(2**31, (1,), generator=generator))

    def keep_part(self, part: int, micro_batch: int) -> Self:
        """Reduce to the rows of one micro-batch, with a dropout seed of its own."""
        kept = slice(part * micro_batch, (part + 1) * micro_batch)
        self.rows, self.timesteps, self.mirror = self.rows[kept], self.timesteps[kept], self.mirror[kept]
        self.noise_BCHW, self.dropout_seed = self.noise_BCHW[kept], self.dropout_seed + part
        return self


def _rows(seed: int, step: int, examples: int, batch_size: int) -> Tensor:
    """The step's examples: a walk through one shuffled pass over all examples after the other."""
    first = step * batch_size
    passes = range(first // examples, (first + batch_size - 1) // examples + 1)
    order = torch.cat(
        [
            torch.randperm(examples, generator=torch.Generator().manual_seed(_mix(seed, ORDER_SEED, index)))
            for index in passes
        ]
    )
    start = first - passes[0] * examples
    return order[start : start + batch_size]


def _mix(seed: int, purpose: int, step: int) -> int:
    """Hash (seed, purpose, step) to 63 bits (splitmix64), so that neighbouring steps are unrelated."""
    mixed = (seed * 0x9E3779B97F4A7C15 + purpose * 0xBF58476D1CE4E5B9 + step + 1) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return (mixed ^ mixed >> 31) >> 1


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
