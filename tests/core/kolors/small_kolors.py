"""A small random Kolors in the true layout: the real files' places and names, written by the libraries they
come from.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from aesthetics_predictor import AestheticsPredictorV2Linear
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from core.kolors.files import FILES, SCORER_FOLDER
from core.kolors.models import chatglm

TEXT_WIDTH = 32
UNET, VAE = (next(file.path for file in FILES if file.part == part) for part in ("unet", "vae"))
SHARDS = [file.path for file in FILES if file.part == "text_encoder"]


def write_small_kolors(folder: Path) -> Path:
    """A models folder with every file that Kolors needs, 20 MB in all, for images of 64 px."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_unet(folder, diffusers_unet().state_dict())
        _save(folder / VAE, diffusers_vae().state_dict())
        write_text_encoder(folder, text_encoder_tensors())
        write_scorer(folder)
    return folder


def diffusers_unet(
    widths: Sequence[int] = (32, 64, 64), depths: Sequence[int] = (1, 2), context_width: int = 48
) -> UNet2DConditionModel:
    """Kolors' own configuration (unet/config.json of Kwai-Kolors/Kolors) but for the sizes; heads are 64
    wide.
    """
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=tuple(widths),
        layers_per_block=2,
        norm_num_groups=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, *depths),
        attention_head_dim=tuple(max(1, width // 64) for width in widths),
        cross_attention_dim=context_width,
        use_linear_projection=True,
        encoder_hid_dim=TEXT_WIDTH,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 16,
    )


def diffusers_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=2,
        norm_num_groups=32,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def text_encoder_tensors(width: int = TEXT_WIDTH, layers: int = 2, ffn: int = 48) -> dict[str, Tensor]:
    model = chatglm(
        torch.float32,
        num_layers=layers,
        hidden_size=width,
        ffn_hidden_size=ffn,
        kv_channels=16,
        num_attention_heads=2,
    )
    for name, parameter in model.named_parameters():
        if name.endswith("layernorm.weight"):  # ChatGLM leaves them as they lie in memory
            nn.init.ones_(parameter)
    # The head that the real files hold and nobody uses.
    return model.state_dict() | {"output_layer.weight": torch.zeros(65024, width)}


def write_unet(folder: Path, tensors: dict[str, Tensor]) -> None:
    _save(folder / UNET, {name: tensor.half() for name, tensor in tensors.items()})


def write_text_encoder(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Seven shards, each with the next names in order."""
    names = list(tensors)
    for number, path in enumerate(SHARDS):
        first, end = (len(names) * bound // len(SHARDS) for bound in (number, number + 1))
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: tensors[name].half() for name in names[first:end]}, folder / path)


def write_scorer(folder: Path) -> None:
    scorer = AestheticsPredictorV2Linear(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
    )
    nn.init.constant_(scorer.layers[-1].bias, 5.5)
    scorer.save_pretrained(folder / SCORER_FOLDER)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / SCORER_FOLDER
    )


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
