"""What every stage of the build uses: the learning rate's schedule, a step, reading and writing weights."""

import math
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.tiny.files import WEIGHTS
from core.tiny.models import load_weights

Model = TypeVar("Model", bound=nn.Module)


def set_rate(
    optimizer: torch.optim.Optimizer,
    peak: float,
    step: int,
    total: int,
    *,
    warm_up: int = 80,
    flat: float = 0.0,
) -> None:
    """Set the learning rate: linear warm-up, constant for the share `flat` of steps, then cosine to 2 %."""
    progress = max(0.0, (step / total - flat) / (1 - flat))
    rate = peak * min(1.0, (step + 1) / warm_up) * (0.49 * (1 + math.cos(math.pi * progress)) + 0.02)
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """One optimizer step, with gradients clipped to norm 1."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def channels_last(model: Model) -> Model:
    """The model itself, with its weights in the memory format that convolutions are fastest in."""
    return model.to(memory_format=torch.channels_last)


def loaded(model: Model, name: str) -> Model:
    """The model itself with the shipped weights `name`, in evaluation mode."""
    model.load_state_dict(load_weights(name))
    return channels_last(model).eval()


def save_weights(name: str, tensors: dict[str, Tensor]) -> None:
    """Write the shipped weights `name`, floating point as fp16."""
    halves = {
        key: (value.half() if value.is_floating_point() else value).detach().contiguous()
        for key, value in tensors.items()
    }
    save_file(halves, WEIGHTS / f"{name}.safetensors")
