"""Adapters count what they should, and the one file carries exactly that."""

from pathlib import Path

import pytest
import torch
from diffsynth.models.sdxl_unet import SDXLUNet
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.backbone.backbone import Backbone
from core.lora import adapters
from core.lora.file import inject_file, kohya_key, load_lora, metadata_of, save_lora
from core.trial.spec import Training

SHAPE = Training(lora_rank=4, lora_alpha=10)
TARGETS = ("to_q", "to_k", "to_v", "to_out")


def inject_trained(unet: torch.nn.Module, shape: Training = SHAPE) -> dict[str, adapters.Pair]:
    """Adapters as if trained: no matrix is zero."""
    adapters.inject(unet, shape, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in adapters.trained_parameters(unet).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return adapters.extract(unet)


def saved(backbone: Backbone, folder: Path, shape: Training = SHAPE) -> tuple[Path, dict[str, adapters.Pair]]:
    pairs = inject_trained(backbone.unet, shape)
    return save_lora(folder / "lora.safetensors", pairs, shape, {}), pairs


@torch.no_grad()
def noise_of(backbone: Backbone) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents, tokens, pooled = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 256, 64), (1, 64))
    )
    return backbone.predict_noise(latents, torch.tensor([500.0]), tokens, pooled)


def deltas(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: layer.get_delta_weight(adapters.ADAPTER).detach()
        for name, layer in adapters.layers(unet).items()
    }


def test_tiny_has_88_modules(backbone: Backbone) -> None:
    adapters.inject(backbone.unet, SHAPE, seed=1)
    assert len(adapters.extract(backbone.unet)) == 88
    assert sum(p.numel() for p in adapters.trained_parameters(backbone.unet).values()) == 88 * 4 * 2 * 64


def test_only_adapters_are_trained(backbone: Backbone) -> None:
    adapters.inject(backbone.unet, SHAPE, seed=1)
    trained = {name for name, parameter in backbone.unet.named_parameters() if parameter.requires_grad}
    assert len(trained) == 176
    assert all(".lora_" in name for name in trained)


def test_fresh_adapters_change_nothing(backbone: Backbone) -> None:
    before = noise_of(backbone)
    adapters.inject(backbone.unet, SHAPE, seed=1)
    assert torch.equal(noise_of(backbone), before)


def test_the_same_seed_gives_the_same_fresh_adapters(backbone: Backbone) -> None:
    drawn = []
    for seed, global_seed in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(global_seed)
        adapters.inject(backbone.unet, SHAPE, seed=seed)
        drawn.append(torch.cat([pair.down.flatten() for pair in adapters.extract(backbone.unet).values()]))
        adapters.remove(backbone.unet)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_fresh_adapters_are_drawn_as_peft_draws_them(backbone: Backbone) -> None:
    """Kaiming-uniform with a = sqrt(5) is uniform up to 1 / sqrt(inputs)."""
    adapters.inject(backbone.unet, Training(lora_rank=16, lora_alpha=16), seed=1)
    for pair in adapters.extract(backbone.unet).values():
        bound = pair.down.shape[1] ** -0.5
        assert pair.down.abs().max() <= bound
        assert pair.down.abs().max() > 0.9 * bound


def test_putting_on_does_not_move_the_global_random_state(backbone: Backbone) -> None:
    before = torch.get_rng_state()
    adapters.inject(backbone.unet, SHAPE, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_twice_the_alpha_is_twice_the_delta(backbone: Backbone) -> None:
    inject_trained(backbone.unet, Training(lora_rank=4, lora_alpha=4))
    single = deltas(backbone.unet)
    adapters.remove(backbone.unet)
    inject_trained(backbone.unet, Training(lora_rank=4, lora_alpha=8))
    double = deltas(backbone.unet)
    assert all(torch.equal(2 * single[name], double[name]) for name in single)
    assert all(delta.abs().max() > 0 for delta in single.values())


def test_the_delta_is_alpha_over_rank_times_up_times_down(backbone: Backbone) -> None:
    pairs = inject_trained(backbone.unet)
    for name, delta in deltas(backbone.unet).items():
        torch.testing.assert_close(delta, 2.5 * pairs[name].up @ pairs[name].down)


def test_adapters_are_worn_in_another_precision_for_a_while(backbone: Backbone) -> None:
    trained = inject_trained(backbone.unet, Training(lora_rank=4, lora_alpha=8))
    with adapters.in_precision(backbone.unet, torch.bfloat16):
        assert {parameter.dtype for parameter in adapters.trained_parameters(backbone.unet).values()} == {
            torch.bfloat16
        }
    kept = adapters.extract(backbone.unet)
    assert all(
        torch.equal(kept[name].up, pair.up) and torch.equal(kept[name].down, pair.down)
        for name, pair in trained.items()
    )
    assert {parameter.dtype for parameter in adapters.trained_parameters(backbone.unet).values()} == {
        torch.float32
    }


def test_taking_off_gives_the_base_model_back(backbone: Backbone) -> None:
    before, names = noise_of(backbone), [name for name, _ in backbone.unet.named_modules()]
    inject_trained(backbone.unet)
    assert not torch.equal(noise_of(backbone), before)
    adapters.remove(backbone.unet)
    assert torch.equal(noise_of(backbone), before)
    assert [name for name, _ in backbone.unet.named_modules()] == names
    assert adapters.trained_parameters(backbone.unet) == {}


def test_fewer_targets_afterwards_leave_no_stale_adapter(backbone: Backbone) -> None:
    inject_trained(backbone.unet)
    adapters.remove(backbone.unet)
    adapters.inject(backbone.unet, Training(lora_rank=2, lora_alpha=2, target_modules="to_q"), seed=1)
    pairs = adapters.extract(backbone.unet)
    assert len(pairs) == 22
    assert all(name.endswith("to_q") and pair.down.shape[0] == 2 for name, pair in pairs.items())


def test_a_saved_lora_put_on_again_predicts_the_same(backbone: Backbone, tmp_path: Path) -> None:
    path, _ = saved(backbone, tmp_path)
    trained = noise_of(backbone)
    adapters.remove(backbone.unet)
    base = noise_of(backbone)
    inject_file(backbone.unet, path)
    torch.testing.assert_close(noise_of(backbone), trained, rtol=1e-5, atol=1e-5)
    assert (trained - base).abs().max() > 1e-2


def test_a_lora_of_fewer_targets_can_be_put_on_again(backbone: Backbone, tmp_path: Path) -> None:
    path, pairs = saved(backbone, tmp_path, Training(lora_rank=4, lora_alpha=4, target_modules="to_k,to_out"))
    adapters.remove(backbone.unet)
    inject_file(backbone.unet, path)
    again = adapters.extract(backbone.unet)
    assert again.keys() == pairs.keys()
    assert len(again) == 44


def test_the_file_has_kohya_s_names(backbone: Backbone, tmp_path: Path) -> None:
    path, _ = saved(backbone, tmp_path)
    names = set(load_file(path))
    assert len(names) == 3 * 88
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= names
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q.alpha" in names
    assert "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_v.alpha" in names


def test_the_file_s_alpha_is_its_rank_and_its_strength_is_folded_in(
    backbone: Backbone, tmp_path: Path
) -> None:
    path, pairs = saved(backbone, tmp_path)
    tensors = load_file(path)
    for name, pair in pairs.items():
        key = kohya_key(name)
        assert tensors[f"{key}.alpha"].item() == 4
        assert torch.equal(tensors[f"{key}.lora_down.weight"], pair.down)
        assert torch.equal(tensors[f"{key}.lora_up.weight"], 2.5 * pair.up)


def test_the_metadata_are_kohya_s_and_modelspec_s(tmp_path: Path, backbone: Backbone) -> None:
    metadata = metadata_of(SHAPE, architecture="sdxl_kolors", title="t", resolution=128, learning_rate=1e-3)
    path = save_lora(tmp_path / "lora.safetensors", inject_trained(backbone.unet), SHAPE, metadata)
    with safe_open(path, framework="pt") as file:
        read = file.metadata()
    assert {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_args",
        "modelspec.sai_model_spec",
        "modelspec.architecture",
        "modelspec.implementation",
        "modelspec.title",
        "modelspec.resolution",
    } <= read.keys()
    assert (read["ss_network_dim"], float(read["ss_network_alpha"])) == ("4", 4.0)
    assert (read["lora_sweep_training_alpha"], read["ss_learning_rate"]) == ("10", "0.001")
    assert read["modelspec.resolution"] == "128x128"
    assert read["modelspec.architecture"] == "sdxl_kolors/lora"


def test_every_module_of_kolors_has_its_name_in_diffusers() -> None:
    with torch.device("meta"):
        kolors = SDXLUNet(is_kolors=True)
        diffusers = UNet2DConditionModel(  # Kwai-Kolors/Kolors-diffusers, unet/config.json
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=5632,
            encoder_hid_dim=4096,
            encoder_hid_dim_type="text_proj",
        )
    ours = [name for name, _ in kolors.named_modules() if name.rpartition(".")[2] in TARGETS]
    theirs = {
        "lora_unet_" + name.replace(".", "_")
        for name, _ in diffusers.named_modules()
        if name.removesuffix(".0").rpartition(".")[2] in TARGETS and not name.endswith("to_out")
    }
    assert len(ours) == 560
    assert {kohya_key(name) for name in ours} == theirs


def test_every_module_of_kolors_is_found_again_in_its_file(tmp_path: Path) -> None:
    with torch.device("meta"):
        kolors = SDXLUNet(is_kolors=True)
    pairs = {
        name: adapters.Pair(torch.full((1, 2), float(index)), torch.ones(2, 1))
        for index, name in enumerate(
            name for name, _ in kolors.named_modules() if name.rpartition(".")[2] in TARGETS
        )
    }
    path = save_lora(tmp_path / "lora.safetensors", pairs, Training(lora_rank=1, lora_alpha=1), {})
    again = load_lora(path)
    assert again.keys() == pairs.keys()
    assert all(torch.equal(again[name].down, pairs[name].down) for name in pairs)


def refuse(backbone: Backbone, path: Path) -> None:
    """Putting it on raises one line that names the file, and leaves the UNet bare."""
    with pytest.raises(ValueError, match=path.name):
        inject_file(backbone.unet, path)
    assert adapters.extract(backbone.unet) == {}


def test_a_lora_of_a_deeper_model_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    names = [f"blocks.7.transformer_blocks.{depth}.attn1.to_q" for depth in (0, 1)]
    pairs = {name: adapters.Pair(torch.zeros(4, 64), torch.zeros(64, 4)) for name in names}
    refuse(backbone, save_lora(tmp_path / "kolors.safetensors", pairs, SHAPE, {}))


def test_a_lora_of_a_wider_model_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    path, pairs = saved(backbone, tmp_path)
    adapters.remove(backbone.unet)
    wide = {name: adapters.Pair(torch.zeros(4, 640), torch.zeros(640, 4)) for name in pairs}
    refuse(backbone, save_lora(path, wide, SHAPE, {}))


def test_a_lora_with_blocks_of_another_layout_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "sgm.safetensors"
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{stem}.lora_down.weight": torch.zeros(4, 64), f"{stem}.lora_up.weight": torch.zeros(64, 4)}, path
    )
    refuse(backbone, path)


def test_a_file_without_a_lora_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv_in.weight": torch.zeros(2)}, path)
    refuse(backbone, path)
