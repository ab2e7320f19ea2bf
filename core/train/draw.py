"""The random numbers of a training: functions of (study seed, step), drawn on the CPU, so that a resumed
training draws what an uninterrupted one would have.

Shape legend: B rows of a batch, C channels, H x W latent cells.
"""

import torch
from torch import Tensor

from core.backbone.backbone import TRAIN_TIMESTEPS

INIT_SEED, ORDER_SEED, STEP_SEED = 1, 2, 3


def adapters_seed(seed: int) -> int:
    """The seed of the fresh adapters."""
    return _mix(seed, INIT_SEED, 0)


class StepDraw:
    """The random numbers of one step: rows, mirrors, timesteps, noise; they depend on the arguments only."""

    def __init__(
        self, seed: int, step: int, examples: int, shape_CHW: tuple[int, ...], batch_size: int
    ) -> None:
        generator = _generator(seed, STEP_SEED, step)
        self.rows = _rows(seed, step, examples, batch_size)
        self.timesteps = torch.randint(TRAIN_TIMESTEPS, (batch_size,), generator=generator)
        self.mirror = torch.rand(batch_size, generator=generator) < 0.5
        self.noise_BCHW = torch.randn(batch_size, *shape_CHW, generator=generator)
        self.dropout_seed = int(torch.randint(2**31, (1,), generator=generator))

    def keep_part(self, part: int, micro_batch: int) -> None:
        """Reduce to the rows of one micro-batch, with a dropout seed of its own."""
        kept = slice(part * micro_batch, (part + 1) * micro_batch)
        self.rows, self.timesteps, self.mirror = self.rows[kept], self.timesteps[kept], self.mirror[kept]
        self.noise_BCHW, self.dropout_seed = self.noise_BCHW[kept], self.dropout_seed + part


def _rows(seed: int, step: int, examples: int, batch_size: int) -> Tensor:
    """The step's examples: a walk through one shuffled pass over all examples after the other."""
    first = step * batch_size
    passes = range(first // examples, (first + batch_size - 1) // examples + 1)
    order = torch.cat([torch.randperm(examples, generator=_generator(seed, ORDER_SEED, i)) for i in passes])
    start = first - passes[0] * examples
    return order[start : start + batch_size]


def _generator(seed: int, purpose: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(seed, purpose, index))


def _mix(seed: int, purpose: int, step: int) -> int:
    """Hash (seed, purpose, step) to 63 bits (splitmix64), so that neighbouring steps are unrelated."""
    mixed = (seed * 0x9E3779B97F4A7C15 + purpose * 0xBF58476D1CE4E5B9 + step + 1) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return (mixed ^ mixed >> 31) >> 1
