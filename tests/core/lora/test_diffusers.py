"""The saved file, loaded by diffusers at its defaults, gives the strength it was trained at."""

from pathlib import Path

import pytest
import torch
from diffusers import KolorsPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer

from core.backbone.backbone import Backbone
from core.lora.file import kohya_key, metadata_of, save_lora
from core.trial.spec import Training
from reports.submission.export import write_lora
from tests.core.lora.test_lora import inject_trained


def tiny_diffusers_unet() -> UNet2DConditionModel:
    """diffusers' SDXL layout at the tiny width; `attention_head_dim` counts heads, as in SDXL's own
    configuration.
    """
    return UNet2DConditionModel(
        block_out_channels=(48, 64, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=1,
        attention_head_dim=(3, 4, 4),
        cross_attention_dim=64,
        norm_num_groups=16,
        use_linear_projection=True,
    )


@pytest.mark.parametrize("shape", [Training(lora_rank=4, lora_alpha=10), Training(lora_rank=8, lora_alpha=2)])
def test_diffusers_applies_every_module_at_the_trained_strength(
    backbone: Backbone, tmp_path: Path, shape: Training
) -> None:
    pairs = inject_trained(backbone.unet, shape)
    metadata = metadata_of(shape, architecture="kolors-tiny", title="t", resolution=128)
    save_lora(tmp_path / "trained.safetensors", pairs, shape, metadata)
    # as exported
    write_lora(tmp_path / "trained.safetensors", tmp_path / "lora.safetensors", {"modelspec.author": "team"})

    pipe = KolorsPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=tiny_diffusers_unet(), scheduler=None
    )
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    (adapter,) = pipe.get_active_adapters()
    loaded = {
        "lora_unet_" + name.replace(".", "_"): module.get_delta_weight(adapter)
        for name, module in pipe.unet.named_modules()
        if isinstance(module, LoraLayer)
    }

    assert len(loaded) == 88
    assert loaded.keys() == {kohya_key(name) for name in pairs}
    for name, pair in pairs.items():
        torch.testing.assert_close(
            loaded[kohya_key(name)].detach(),
            shape.lora_alpha / shape.lora_rank * pair.up @ pair.down,
            rtol=1e-5,
            atol=1e-5,
        )
