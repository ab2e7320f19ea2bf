"""What fits on the device: how many images are rendered at once, and whether training recomputes activations.

On a CPU both answers are fixed, so that results there depend on the study alone.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from diffsynth.models.sd_unet import PopBlock, PushBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.backbone.backbone import Backbone
from core.kolors.memory import DRAWN_BYTES, KEPT_BYTES
from core.trial.spec import Rendering

log = logging.getLogger(__name__)
MOST_IMAGES = 8  # a story; at 1024 px a GPU gains nothing from more at a time
SHARE = 0.8  # of the free memory: the rest is for libraries' workspaces and for gaps between tensors


def images_at_once(backbone: Backbone, rendering: Rendering) -> int:
    """How many images one forward of the UNet takes, 1 to 8; with guidance it computes each of them twice."""
    if backbone.device.type != "cuda":
        return MOST_IMAGES
    return images_in(free_bytes(backbone.device), rendering, backbone.dtype)


def images_in(room_bytes: int, rendering: Rendering, dtype: torch.dtype) -> int:
    """How many images, 1 to 8, one forward can take with this much free memory."""
    cells = (rendering.size_px // 8) ** 2 * (2 if rendering.cfg_scale != 1.0 else 1)
    return min(max(int(SHARE * room_bytes / (DRAWN_BYTES[dtype.itemsize] * cells)), 1), MOST_IMAGES)


def needs_checkpointing(
    choice: Literal["auto", "on", "off"], backbone: Backbone, latents_BCHW: tuple[int, ...]
) -> bool:
    """Whether a training step uses gradient checkpointing; `auto` on a GPU: if its activations do not fit."""
    if choice != "auto" or backbone.device.type != "cuda":
        return choice == "on"
    return not step_fits_in(free_bytes(backbone.device), latents_BCHW, backbone.dtype)


@contextmanager
def recomputing(unet: nn.Module, *, draws: bool) -> Iterator[None]:
    """Gradient checkpointing of each block, as DiffSynth's; `draws`: blocks use random numbers (dropout).

    Saving the RNG state costs a synchronisation per block and forbids a CUDA graph, so it is done only then.
    """
    modules = unet.get_submodule("blocks").children()
    blocks = [module for module in modules if not isinstance(module, (PushBlock, PopBlock))]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=draws)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # uncovers the method of the class


def step_fits_in(room_bytes: int, latents_BCHW: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether all activations of a step can be kept for its backward pass."""
    batch, _, height, width = latents_BCHW
    needed_bytes = KEPT_BYTES[dtype.itemsize] * batch * height * width
    log.info("activations of a step take about %.1f GB of %.1f GB free", needed_bytes / 1e9, room_bytes / 1e9)
    return needed_bytes <= SHARE * room_bytes


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still use on a GPU: what is free, and what its allocator holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
