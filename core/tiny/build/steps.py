"""What every stage of the build does: one optimizer step on a schedule, weights in and out."""

import math
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.tiny.files import WEIGHTS
from core.tiny.models import load_weights


def set_rate(
    optimizer: torch.optim.Optimizer,
    peak: float,
    step: int,
    total: int,
    *,
    warm_up: int = 80,
    flat: float = 0.0,
) -> None:
    """Linear warm-up, a flat part, then half a cosine down to 2 %."""
    progress = max(0.0, (step / total - flat) / (1 - flat))
    rate = peak * min(1.0, (step + 1) / warm_up) * (0.49 * (1 + math.cos(math.pi * progress)) + 0.02)
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def channels_last(model: Any) -> Any:
    return model.to(memory_format=torch.channels_last)


def loaded(model: Any, name: str) -> Any:
    model.load_state_dict(load_weights(name))
    return channels_last(model).eval()


def save_weights(name: str, tensors: dict[str, Tensor]) -> None:
    halves = {
        key: (value.half() if value.is_floating_point() else value).detach().contiguous()
        for key, value in tensors.items()
    }
    save_file(halves, WEIGHTS / f"{name}.safetensors")
