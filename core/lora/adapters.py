"""LoRA adapters on the UNet, by PEFT: inject, extract, remove."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from core.trial.spec import Training

ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Pair:
    """One module's matrices, down (rank, in) and up (out, rank); its weight changes by scale * up @ down."""

    down: Tensor
    up: Tensor


def inject(unet: nn.Module, training: Training, seed: int) -> None:
    """Inject fresh adapters: up zero, down Kaiming-uniform as PEFT draws it, but on the CPU from `seed`."""
    assert not layers(unet), "remove the present adapters first: PEFT would leave stale ones"
    # PEFT 0.21 annotates alpha as int but accepts any number.
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=cast(int, training.lora_alpha),
        lora_dropout=training.lora_dropout,
        target_modules=training.target_modules.split(","),
    )
    with torch.random.fork_rng(devices=[]):  # PEFT's own draw must not change the global RNG state
        inject_adapter_in_model(config, unet, ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(unet).values():
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        fresh = torch.empty(down.shape, dtype=torch.float32)
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
        down.data, up.data = fresh.to(down.device), torch.zeros_like(up, dtype=torch.float32)
        # PEFT would convert every input to fp32. Autocast in training and `in_precision` in rendering take
        # care of dtypes.
        layer.cast_input_dtype_enabled = False


def extract(unet: nn.Module) -> dict[str, Pair]:
    """The adapters as fp32 copies on the CPU, by DiffSynth's module name."""
    return {
        name: Pair(
            layer.lora_A[ADAPTER].weight.detach().to("cpu", torch.float32, copy=True),
            layer.lora_B[ADAPTER].weight.detach().to("cpu", torch.float32, copy=True),
        )
        for name, layer in layers(unet).items()
    }


def remove(unet: nn.Module) -> None:
    """Remove every adapter; the base weights were never changed."""
    for name, layer in layers(unet).items():
        unet.set_submodule(name, layer.base_layer)
    if hasattr(unet, "peft_config"):
        del unet.peft_config


def layers(unet: nn.Module) -> dict[str, Any]:
    """The modules that have an adapter, by DiffSynth's name."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}


def trained_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' matrices by PEFT's parameter name."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


@contextmanager
def in_precision(unet: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Convert the adapters to the base model's dtype for a while, as programs that load the file do."""
    trained = [(parameter, parameter.data) for parameter in trained_parameters(unet).values()]
    for parameter, data in trained:
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in trained:
            parameter.data = data
