"""Numbers that must agree: half precision and fp32, our images and the stock pipeline's, device and CPU."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from core.backbone import cuda_graph
from core.backbone.backbone import Backbone, load_backbone
from core.backbone.encode import TextEmbeddings
from core.lora import adapters
from core.train.train import train_lora
from core.trial.spec import Training
from tests.gpu.shapes import TEXT_TOKENS, Shape
from tests.gpu.table import Check
from tests.gpu.work import random_examples

TINY_TRAINING = Training(
    lora_rank=4, lora_alpha=8, epochs=1, steps_per_epoch=10, batch_size=2, learning_rate=1e-3
)
TINY_LATENTS, TINY_WIDTH = (4, 16, 16), 64


def half_against_full(backbone: Backbone, shape: Shape, dtypes: Sequence[torch.dtype]) -> Iterator[Check]:
    """One forward of the UNet in each precision against fp32, relative in the 2-norm. The UNet ends as it
    was.
    """
    weights = {name: tensor.clone() for name, tensor in backbone.unet.state_dict().items()}
    inputs = _random_inputs(2, shape.latents_CHW, shape.text_width)
    with true_fp32():
        truth = _predict(backbone, inputs, torch.float32)
        for dtype in dtypes:
            backbone.unet.load_state_dict(weights)
            error = (_predict(backbone, inputs, dtype) - truth).norm() / truth.norm()
            name = str(dtype).removeprefix("torch.")
            yield Check(
                name=f"UNet forward in {name} against float32, relative", value=float(error), limit=1e-2
            )
    backbone.unet.to(backbone.dtype).load_state_dict(weights)


def images_apart(name: str, ours: Sequence[Image.Image], theirs: Sequence[Image.Image]) -> Check:
    """Mean difference over pixels and channels of the worst pair, in levels of 255."""
    levels = [
        float(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).mean())
        for a, b in zip(ours, theirs, strict=True)
    ]
    return Check(name=name, value=max(levels), limit=3.0)


def device_against_cpu(device: torch.device) -> Iterator[Check]:
    """The trained toy in fp32: what its UNet predicts, and the losses of ten steps."""
    with true_fp32():
        here, there = load_backbone("tiny", str(device)), load_backbone("tiny")
        inputs = _random_inputs(2, TINY_LATENTS, TINY_WIDTH)
        noise = (
            (_predict(here, inputs, torch.float32).cpu() - _predict(there, inputs, torch.float32)).abs().max()
        )
        yield Check(
            name=f"toy UNet on {device.type} against the CPU, largest difference",
            value=float(noise),
            limit=1e-3,
        )
        losses = [abs(a - b) for a, b in zip(_tiny_losses(here), _tiny_losses(there), strict=True)]
        yield Check(
            name=f"toy losses on {device.type} against the CPU, largest difference",
            value=max(losses),
            limit=1e-3,
        )


def replayed_against_launched(device: torch.device) -> Iterator[Check]:
    """The toy's losses in each way of training, its steps recorded as CUDA graphs and launched kernel by
    kernel.
    """
    precision = "fp16" if device.type == "cuda" else "bf16"
    backbone = load_backbone("tiny", str(device), precision)
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "dropout": {"lora_dropout": 0.2},
        "recomputing": {"gradient_checkpointing": "on"},
    }
    for way, settings in ways.items():
        for micro_batch in (2, 1):
            training = replace(TINY_TRAINING, **settings)
            replayed = _tiny_losses(backbone, training, micro_batch)
            if not cuda_graph.graphs_usable:
                yield Check(name=f"recording a training step, {way}, failed", value=math.inf, limit=0.0)
                return
            cuda_graph.graphs_usable = False
            try:
                launched = _tiny_losses(backbone, training, micro_batch)
            finally:
                cuda_graph.graphs_usable = True
            yield Check(
                name=(
                    f"toy losses in {precision} replayed against launched, {way}, micro-batches of "
                    f"{micro_batch}"
                ),
                value=max(abs(a - b) for a, b in zip(replayed, launched, strict=True)),
                limit=1e-3,
            )


@contextmanager
def true_fp32() -> Iterator[None]:
    """TF32 keeps ten bits of the mantissa, which is no basis for a comparison."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def _random_inputs(batch: int, latents_CHW: tuple[int, ...], text_width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = ((batch, *latents_CHW), (batch, TEXT_TOKENS, text_width), (batch, text_width))
    return [torch.randn(size, generator=generator) for size in sizes]


@torch.no_grad()
def _predict(backbone: Backbone, inputs: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    backbone.unet.to(dtype)
    latents, tokens, pooled = (tensor.to(backbone.device, dtype) for tensor in inputs)
    return backbone.predict_noise(
        latents, torch.tensor([500.0], device=backbone.device), tokens, pooled
    ).float()


def _tiny_losses(
    backbone: Backbone, training: Training = TINY_TRAINING, micro_batch: int | None = None
) -> list[float]:
    _, tokens, pooled = _random_inputs(4, TINY_LATENTS, TINY_WIDTH)
    embeddings = TextEmbeddings(
        tokens.to(backbone.device, backbone.dtype), pooled.to(backbone.device, backbone.dtype)
    )
    examples = random_examples(backbone, TINY_LATENTS, embeddings)
    try:
        return train_lora(backbone, examples, training, 7, lambda *_: None, micro_batch=micro_batch)
    finally:
        adapters.remove(backbone.unet)
