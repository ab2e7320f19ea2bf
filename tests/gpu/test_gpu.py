"""A GPU in fp32 says what the CPU says: `make gpu`."""
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from core import lora
from core.backbone import Backbone, load_backbone
from core.cache import Cache
from core.encode import encode_examples
from core.filters import select
from core.settings import Filters, Training
from core.train import train_lora

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
TRAINING = Training(lora_rank=4, lora_alpha=8, epochs=1, steps_per_epoch=10, batch_size=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[Backbone]:
    """In full fp32: TF32 keeps ten bits of the mantissa, which is no basis for a comparison."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield load_backbone("tiny", "cuda")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@torch.no_grad()
def noise_of(backbone: Backbone) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents, tokens, pooled = (torch.randn(shape, generator=generator).to(backbone.device)
                               for shape in ((2, 4, 16, 16), (2, 256, 64), (2, 64)))
    return backbone.predict_noise(latents, torch.tensor([500.0], device=backbone.device), tokens, pooled).cpu()


def losses_of(backbone: Backbone, table: pd.DataFrame, folder: Path) -> list[float]:
    rows = select(table, Filters(min_width=128)).head(6)
    examples = encode_examples(rows, 128, backbone, Cache(folder))
    try:
        return train_lora(backbone, examples, TRAINING, 7, lambda epoch, losses: None)
    finally:
        lora.take_off(backbone.unet)


def test_the_unet_predicts_what_the_cpu_predicts(backbone: Backbone, on_gpu: Backbone) -> None:
    torch.testing.assert_close(noise_of(on_gpu), noise_of(backbone), rtol=0, atol=1e-3)


def test_the_losses_are_the_cpu_s(backbone: Backbone, on_gpu: Backbone, table: pd.DataFrame, tmp_path: Path) -> None:
    ours, theirs = losses_of(on_gpu, table, tmp_path / "gpu"), losses_of(backbone, table, tmp_path / "cpu")
    assert ours == pytest.approx(theirs, abs=1e-3)
