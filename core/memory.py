"""What fits on the device: how many pictures are drawn at once, and whether training must recompute its activations.

On a CPU both answers are fixed, so that its numbers depend on nothing but the words of the study.
"""
import logging
from typing import Literal

import torch

from core.backbone import Backbone
from core.settings import Rendering

log = logging.getLogger(__name__)
MOST_PICTURES = 8  # a story; at 1024 px a GPU gains nothing from more at a time
SHARE = 0.8        # of the free memory: the rest is for libraries' workspaces and for gaps between tensors
# What Kolors' UNet takes for each latent cell of one picture, by the bytes of its numbers: counted with tensors that have
# a shape but no memory, at rank 16 (rank 128 keeps 2 % more); not measured.
KEPT_BYTES = {2: 450_000, 4: 700_000}  # activations until the way back; in half precision autocast keeps its norms in fp32
DRAWN_BYTES = {2: 9_000, 4: 18_000}    # at the most while drawing


def pictures_at_once(backbone: Backbone, rendering: Rendering) -> int:
    """How many pictures one forward of the UNet takes, 1 to 8; with guidance it sees each of them twice."""
    if backbone.device.type != "cuda":
        return MOST_PICTURES
    return pictures_in(free_bytes(backbone.device), rendering, backbone.dtype)


def pictures_in(room_bytes: int, rendering: Rendering, dtype: torch.dtype) -> int:
    cells = (rendering.size_px // 8) ** 2 * (2 if rendering.cfg_scale != 1.0 else 1)
    return min(max(int(SHARE * room_bytes / (DRAWN_BYTES[dtype.itemsize] * cells)), 1), MOST_PICTURES)


def needs_checkpointing(choice: Literal["auto", "on", "off"], backbone: Backbone, latents_BCHW: tuple[int, ...]) -> bool:
    """Whether a training step keeps only the inputs of each block and computes the rest again on its way back."""
    if choice != "auto" or backbone.device.type != "cuda":
        return choice == "on"
    return not step_fits_in(free_bytes(backbone.device), latents_BCHW, backbone.dtype)


def step_fits_in(room_bytes: int, latents_BCHW: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether all activations of a step can be kept until its way back."""
    batch, _, height, width = latents_BCHW
    needed_bytes = KEPT_BYTES[dtype.itemsize] * batch * height * width
    log.info("activations of a step take about %.1f GB of %.1f GB free", needed_bytes / 1e9, room_bytes / 1e9)
    return needed_bytes <= SHARE * room_bytes


def free_bytes(device: torch.device) -> int:
    """What this process can still get on a GPU: what nobody has, and what its allocator holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
