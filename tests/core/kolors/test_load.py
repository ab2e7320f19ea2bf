"""Kolors' loader on small random weights in the true layout: what comes out is what the libraries themselves
compute.
"""

import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import diffsynth
import numpy as np
import pandas as pd
import pytest
import torch
from aesthetics_predictor import AestheticsPredictorV2Linear
from diffusers import Transformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPProcessor, CLIPTokenizer

import core.backbone.backbone
from core.backbone.backbone import Backbone, load_backbone
from core.backbone.encode import encode_examples, encode_prompts
from core.files.cache import Cache
from core.files.install import ROOT
from core.kolors.files import FILES, SCORER_FOLDER
from core.kolors.load import WeightsFolder
from core.lora import adapters
from core.story.render import render_scenes
from core.story.score import score_images
from core.train.train import train_lora
from core.trial.spec import Rendering, Story, Training
from tests.core.kolors.small_kolors import (
    SHARDS,
    TEXT_WIDTH,
    UNET,
    VAE,
    diffusers_unet,
    diffusers_vae,
    text_encoder_tensors,
    write_small_kolors,
    write_text_encoder,
    write_unet,
)

CPU = torch.device("cpu")
# CLIP's own
TOKENIZER = Path(diffsynth.__file__).parent / "tokenizer_configs" / "stable_diffusion" / "tokenizer"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_kolors(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def kolors(models: Path) -> Backbone:
    torch.set_num_threads(1)
    return load_backbone("kolors", "cpu", "fp32", str(models))


@pytest.fixture
def linked(models: Path, tmp_path: Path) -> Path:
    """The same files in a folder of one's own, to be spoiled by replacing them."""
    for path in models.rglob("*.*"):
        if path.is_file():
            place = tmp_path / "models" / path.relative_to(models)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    return tmp_path / "models"


def spoil(folder: Path, path: str, content: bytes) -> None:
    (folder / path).unlink()
    (folder / path).write_bytes(content)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def with_weights(model: Any, path: Path) -> Any:
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model.eval()


@torch.no_grad()
def test_the_unet_predicts_what_diffusers_predicts(kolors: Backbone, models: Path) -> None:
    latents, tokens, pooled = noise(2, 4, 8, 8), noise(2, 5, TEXT_WIDTH), noise(2, TEXT_WIDTH)
    size = torch.tensor([[64, 64, 0, 0, 64, 64]]).repeat(2, 1)
    stock = with_weights(diffusers_unet(), models / UNET)
    for module in stock.modules():
        if isinstance(module, Transformer2DModel):
            module.norm.eps = 1e-5  # as DiffSynth 1.1.9 has it (models/sd_unet.py); diffusers has 1e-6
    theirs = stock(latents, 700, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": size}).sample
    ours = kolors.predict_noise(latents, torch.tensor([700.0]), tokens, pooled)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_vae_encodes_and_decodes_as_diffusers_does(kolors: Backbone, models: Path) -> None:
    stock = with_weights(diffusers_vae(), models / VAE)
    # as DiffSynth 1.1.9 has it (models/sd_vae_decoder.py); diffusers has 1e-6
    stock.decoder.conv_norm_out.eps = 1e-5
    images = noise(2, 3, 64, 64).clamp(-1, 1)
    theirs = stock.encode(images).latent_dist.mean * 0.13025
    torch.testing.assert_close(kolors.encode_images(images), theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        kolors.vae_decoder(theirs), stock.decode(theirs / 0.13025).sample, rtol=0, atol=1e-4
    )


def test_latents_decoded_a_few_at_a_time_give_the_same_images(
    kolors: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = noise(3, 4, 8, 8)
    together = kolors.decode(latents)
    monkeypatch.setattr(core.backbone.backbone, "DECODED_CELLS", 2 * 8 * 8)
    for one, other in zip(together, kolors.decode(latents), strict=True):
        assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 1


@torch.no_grad()
def test_the_seven_shards_make_one_text_encoder(kolors: Backbone, models: Path) -> None:
    stored = {
        name: tensor
        for path in SHARDS
        for name, tensor in torch.load(models / path, weights_only=True).items()
    }
    loaded = kolors.prompter.text_encoder.state_dict()
    assert stored.keys() - loaded.keys() == {"output_layer.weight"}
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in loaded.items())
    kolors.free_text_encoder()


def test_names_with_chatglm_s_own_prefix_are_read_too(linked: Path) -> None:
    for path in SHARDS:
        tensors = torch.load(linked / path, weights_only=True)
        (linked / path).unlink()
        torch.save(
            {f"transformer.{name}": tensor for name, tensor in tensors.items() if "inv_freq" not in name},
            linked / path,
        )
    model = WeightsFolder(linked, CPU, torch.float32).text_encoder()
    assert model.num_layers == 2
    assert model.rotary_pos_emb.inv_freq.tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])


def test_an_embedding_hardly_depends_on_what_stands_beside_it(kolors: Backbone) -> None:
    prompts = [
        "水彩画，红发女孩",
        "sea",
        "",
        "a long prompt about a girl, a cat, a house and a tree by the sea at night",
    ]
    tokens, pooled = kolors.encode_text(prompts)
    assert tokens.shape == (4, 256, TEXT_WIDTH)
    for row, prompt in enumerate(prompts):
        alone = kolors.encode_text([prompt])
        torch.testing.assert_close(tokens[row], alone[0][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(pooled[row], alone[1][0], rtol=0, atol=1e-5)
    kolors.free_text_encoder()


@torch.no_grad()
@pytest.mark.parametrize("pickled", [False, True])
def test_the_score_is_that_of_the_stock_predictor(
    kolors: Backbone, models: Path, linked: Path, pickled: bool
) -> None:
    stock = AestheticsPredictorV2Linear.from_pretrained(models / SCORER_FOLDER).eval()
    if pickled:  # the older layout, with an entry that newer models no longer have
        file = linked / SCORER_FOLDER / "model.safetensors"
        positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
        torch.save(load_file(file) | positions, file.with_name("pytorch_model.bin"))
        file.unlink()
        kolors = load_backbone("kolors", "cpu", "bf16", str(linked))
    image = Image.fromarray((noise(40, 50, 3).clamp(0, 1) * 255).byte().numpy())
    pixels = kolors.image_processor(images=image, return_tensors="pt")["pixel_values"]
    assert score_images(kolors, [image]).aesthetic[0] == pytest.approx(
        float(stock(pixel_values=pixels).logits), abs=1e-5
    )
    assert kolors.scorer.dtype == torch.float32
    assert kolors.model.scorer == SCORER_FOLDER


def test_every_part_has_a_fingerprint_that_follows_its_files(kolors: Backbone, linked: Path) -> None:
    assert kolors.weights.keys() == {"unet", "vae_encoder", "vae_decoder", "text_encoder", "scorer"}
    tensors = torch.load(linked / SHARDS[0], weights_only=True)
    # nothing of it is in a sample but its checksum
    tensors["embedding.word_embeddings.weight"][40_000, 7] += 1
    (linked / SHARDS[0]).unlink()
    torch.save(tensors, linked / SHARDS[0])
    changed = load_backbone("kolors", "cpu", "fp32", str(linked)).weights
    assert [part for part in changed if changed[part] != kolors.weights[part]] == ["text_encoder"]


def test_without_a_new_word_the_text_encoder_is_never_read(models: Path, linked: Path, cache: Cache) -> None:
    first = load_backbone("kolors", "cpu", "fp32", str(models))
    known = encode_prompts(["sea", "湖"], first, cache)
    again = load_backbone("kolors", "cpu", "fp32", str(linked))
    for path in SHARDS:
        (linked / path).unlink()
    found = encode_prompts(["湖", "sea"], again, Cache(cache.folder))
    assert torch.equal(found.tokens_NTD, known.tokens_NTD.flip(0))
    with pytest.raises((IndexError, OSError, ValueError)):
        encode_prompts(["a new word"], again, cache)


def test_the_text_encoder_is_gone_once_the_words_are_encoded(kolors: Backbone, cache: Cache) -> None:
    there = weakref.ref(kolors.prompter.text_encoder)
    encode_prompts(["sea"], kolors, cache)
    assert there() is None


def test_other_precisions_have_other_embeddings(kolors: Backbone, models: Path, cache: Cache) -> None:
    encode_prompts(["sea"], kolors, cache)
    words = encode_prompts(["sea"], load_backbone("kolors", "cpu", "bf16", str(models)), cache)
    assert cache.encoded == {"text": 2}
    assert words.tokens_NTD.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_lora_is_trained_and_rendered_in_one_precision(
    models: Path, cache: Cache, table: pd.DataFrame, story: Story, precision: str
) -> None:
    backbone = load_backbone("kolors", "cpu", precision, str(models))
    examples = encode_examples(table.head(2), 64, backbone, cache)
    training = Training(lora_rank=4, lora_alpha=4, epochs=1, steps_per_epoch=2, batch_size=2)
    losses = train_lora(backbone, examples, training, 1, lambda epoch, losses: None)
    assert all(np.isfinite(losses))
    assert {parameter.dtype for parameter in adapters.trained_parameters(backbone.unet).values()} == {
        torch.float32
    }
    (image,) = render_scenes(backbone, story.scenes[:1], Rendering(steps=2, cfg_scale=3, size_px=64), cache)
    assert image.size == (64, 64)
    adapters.remove(backbone.unet)
    assert {parameter.dtype for parameter in backbone.unet.parameters()} == {backbone.dtype}


def test_fp16_on_a_cpu_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"precision is fp16.*needs a GPU.*allowed here: fp32, bf16"):
        load_backbone("kolors", "cpu", None, str(tmp_path / "nothing"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'cuda:1'.*no GPU.*allowed: cpu"):
        load_backbone("kolors", "cuda:1")


def test_all_that_is_missing_is_named_at_once_with_the_command(linked: Path) -> None:
    gone = [UNET, SHARDS[2], f"{SCORER_FOLDER}/model.safetensors"]
    for path in gone:
        (linked / path).unlink()
    with pytest.raises(ValueError, match="not complete") as error:
        load_backbone("kolors", "cpu", "fp32", str(linked))
    assert all(path in str(error.value) for path in (*gone, str(linked), "core.kolors.download"))
    assert str(error.value).count("\n") == 0
    assert not any(file.path in str(error.value) for file in FILES if file.path not in gone)


@torch.no_grad()
def test_the_score_is_that_of_the_notebook_s_recipe(models: Path, linked: Path) -> None:
    """CLIPProcessor and predictor, read from the scorer's folder as the challenge's notebook reads them."""
    folder = linked / SCORER_FOLDER
    CLIPTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    processor, predictor = (
        CLIPProcessor.from_pretrained(folder),
        AestheticsPredictorV2Linear.from_pretrained(folder).eval(),
    )
    image = Image.fromarray((noise(40, 50, 3).clamp(0, 1) * 255).byte().numpy())
    recipe = float(predictor(**processor(images=image, return_tensors="pt")).logits)
    kolors = load_backbone("kolors", "cpu", "fp32", str(linked), parts=("scorer",))
    assert score_images(kolors, [image]).aesthetic[0] == pytest.approx(recipe, abs=1e-4)


def test_the_scorer_alone_needs_no_other_file(linked: Path) -> None:
    (linked / UNET).unlink()
    assert load_backbone("kolors", "cpu", "fp32", str(linked), parts=("scorer",)).scorer is not None


class Touch:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_pickled_code_in_a_bin_is_refused_and_not_run(linked: Path, tmp_path: Path) -> None:
    (linked / SHARDS[1]).unlink()
    torch.save({"embedding.word_embeddings.weight": Touch(tmp_path / "ran")}, linked / SHARDS[1])
    with pytest.raises(
        ValueError, match=r"pytorch_model-00002-of-00007\.bin: holds more than tensors.*never run"
    ):
        WeightsFolder(linked, CPU, torch.float32).text_encoder()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("path", "read"),
    [
        (UNET, lambda folder: WeightsFolder(folder, CPU, torch.float32).unet()),
        (SHARDS[6], lambda folder: WeightsFolder(folder, CPU, torch.float32).text_encoder()),
    ],
)
@pytest.mark.parametrize("kept", [10, 4000])
def test_a_file_cut_short_is_named(linked: Path, path: str, read, kept: int) -> None:
    spoil(linked, path, (linked / path).read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{Path(path).name}: cannot be read \(.*fetch it anew"):
        read(linked)


@pytest.mark.parametrize("change", ["SDXL's", "one too few", "one too many", "another shape"])
def test_another_model_s_file_is_refused_by_name(linked: Path, change: str) -> None:
    tensors = load_file(linked / UNET)
    match change:
        case "SDXL's":
            tensors = {name: tensor for name, tensor in tensors.items() if "encoder_hid_proj" not in name}
        case "one too few":
            del tensors["conv_out.bias"]
        case "one too many":
            tensors["down_blocks.0.resnets.0.extra.weight"] = torch.zeros(1)
        case "another shape":
            tensors["conv_out.weight"] = torch.zeros(8, 32, 3, 3)
    (linked / UNET).unlink()
    save_file(tensors, linked / UNET)
    with pytest.raises(
        ValueError, match=r"diffusion_pytorch_model\.safetensors: holds no unet of Kolors' kind"
    ):
        WeightsFolder(linked, CPU, torch.float32).unet()


MEASURE = """
import sys, torch
from pathlib import Path
from core.kolors.load import WeightsFolder

def kb(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

torch.set_num_threads(1)
for part, folder, dtype in zip(*[iter(sys.argv[1:])] * 3):
    model = None
    before = kb("VmRSS")
    model = getattr(WeightsFolder(Path(folder), torch.device("cpu"), getattr(torch, dtype)), part)()
    total = sum(float(parameter.sum()) for parameter in model.parameters())  # every page is looked at
    print(kb("VmHWM") - before)
"""


def test_loading_takes_less_than_1_3_times_the_file(tmp_path: Path) -> None:
    """A UNet of 110 MB with Kolors' share of convolutions; seven shards of text encoder that become another
    dtype.

    On a CPU the model counts too: of the shards, only one may lie beside it at a time.
    """
    with torch.device("meta"):
        empty = diffusers_unet(widths=(64, 64, 192), depths=(2, 10), context_width=256).state_dict()
    write_unet(
        tmp_path, {name: torch.zeros(tensor.shape, dtype=torch.float16) for name, tensor in empty.items()}
    )
    write_text_encoder(tmp_path, text_encoder_tensors(width=128, layers=13, ffn=8192))
    # The smaller first: a process remembers its highest mark, so what is measured is never too low.
    words = ["text_encoder", str(tmp_path), "bfloat16", "unet", str(tmp_path), "float16"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for part, paths, line in zip(
        ("text_encoder", "unet"), (SHARDS, [UNET]), done.stdout.split(), strict=True
    ):
        size_bytes = sum((tmp_path / path).stat().st_size for path in paths)
        share = int(line) * 1024 / size_bytes
        print(f"\n{part}: {size_bytes / 1e6:.0f} MB, peak {share:.2f} times that")
        assert 90e6 < size_bytes < 130e6
        assert share < 1.3
