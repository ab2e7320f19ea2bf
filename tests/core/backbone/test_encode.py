"""Nothing is encoded twice, and what is encoded is what DiffSynth would see."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffsynth.data.simple_text_image import TextImageDataset
from PIL import Image

from core.backbone.backbone import Backbone
from core.backbone.encode import encode_examples, encode_images, encode_prompts, image_tensor
from core.data.image import ImageError, open_image
from core.files.cache import Cache
from core.files.files import sha256
from core.trial.spec import Story


def rows_of(*paths: Path) -> pd.DataFrame:
    return pd.DataFrame(
        [{"path": str(path), "sha256": sha256(path), "caption": "a red hair girl, sea"} for path in paths]
    )


def test_a_second_encoding_encodes_nothing(backbone: Backbone, table: pd.DataFrame, tmp_path: Path) -> None:
    first = Cache(tmp_path)
    one = encode_examples(table.head(3), 128, backbone, first)
    assert first.encoded == {"latents": 3, "text": 3}
    again = Cache(tmp_path)
    other = encode_examples(table.head(3), 128, backbone, again)
    assert again.encoded == {}
    assert torch.equal(one.latents_NCHW, other.latents_NCHW)
    assert torch.equal(one.mirrored_NCHW, other.mirrored_NCHW)
    assert torch.equal(one.captions.tokens_NTD, other.captions.tokens_NTD)
    assert torch.equal(one.captions.pooled_ND, other.captions.pooled_ND)


def test_a_prompt_used_twice_is_encoded_once(backbone: Backbone, cache: Cache, story: Story) -> None:
    prompts = [scene.prompt for scene in story.scenes]
    words = encode_prompts([*prompts, *prompts, "", ""], backbone, cache)
    assert words.tokens_NTD.shape == (18, 256, 64)
    assert cache.encoded == {"text": 9}


def test_prompts_encoded_together_are_the_same_as_one_by_one(
    backbone: Backbone, cache: Cache, story: Story
) -> None:
    """As a GPU encodes them: of different lengths, padded to the same."""
    prompts = ["", *(scene.prompt for scene in story.scenes)]
    alone = encode_prompts(prompts, backbone, cache)
    tokens_BTD, pooled_BD = backbone.encode_text(prompts)
    torch.testing.assert_close(tokens_BTD, alone.tokens_NTD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled_BD, alone.pooled_ND, rtol=1e-4, atol=1e-5)


def test_another_size_is_encoded_anew(backbone: Backbone, table: pd.DataFrame, cache: Cache) -> None:
    encode_examples(table.head(1), 128, backbone, cache)
    assert encode_examples(table.head(1), 64, backbone, cache).latents_NCHW.shape == (1, 4, 8, 8)
    assert cache.encoded["latents"] == 2


def test_other_weights_encode_anew(backbone: Backbone, cache: Cache) -> None:
    encode_prompts(["a"], backbone, cache)
    encode_prompts(["a"], replace(backbone, weights=backbone.weights | {"text_encoder": "other"}), cache)
    assert cache.encoded == {"text": 2}


def test_the_rows_stand_in_the_table_s_order(backbone: Backbone, table: pd.DataFrame, cache: Cache) -> None:
    forward = encode_examples(table.head(3), 128, backbone, cache)
    backward = encode_examples(table.head(3).iloc[::-1], 128, backbone, cache)
    assert torch.equal(forward.latents_NCHW, backward.latents_NCHW.flip(0))


def test_the_mirrored_latent_is_that_of_the_flipped_image(
    backbone: Backbone, table: pd.DataFrame, cache: Cache, tmp_path: Path
) -> None:
    image = open_image(Path(table.loc[0, "path"])).resize((128, 128))
    image.save(tmp_path / "plain.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "flipped.png")
    examples = encode_examples(
        rows_of(tmp_path / "plain.png", tmp_path / "flipped.png"), 128, backbone, cache
    )
    torch.testing.assert_close(examples.mirrored_NCHW[0], examples.latents_NCHW[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(examples.mirrored_NCHW[1], examples.latents_NCHW[0], rtol=0, atol=1e-5)
    assert not torch.allclose(examples.latents_NCHW[0], examples.latents_NCHW[1], atol=0.1)


@pytest.mark.parametrize("size", [(128, 128), (300, 200), (90, 141), (131, 127)])
def test_an_image_is_cut_as_diffsynth_s_dataset_cuts_it(
    table: pd.DataFrame, tmp_path: Path, size: tuple[int, int]
) -> None:
    train = tmp_path / "train"
    train.mkdir()
    open_image(Path(table.loc[0, "path"])).resize(size).save(train / "1.png")
    (train / "metadata.csv").write_text("file_name,text\n1.png,a\n", encoding="utf-8-sig")
    stock = TextImageDataset(tmp_path, steps_per_epoch=1, height=128, width=128)[0]["image"]
    torch.testing.assert_close(image_tensor(open_image(train / "1.png"), 128), stock, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1100, 120), (120, 1101), (1003, 61)])
def test_of_a_strip_the_middle_is_cut_out_as_before(table: pd.DataFrame, size: tuple[int, int]) -> None:
    strip = open_image(Path(table.loc[0, "path"])).resize(size)
    scale = 128 / min(size)
    whole = strip.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR)
    x, y = (whole.width - 128) // 2, (whole.height - 128) // 2
    expected = (
        torch.from_numpy(np.array(whole.crop((x, y, x + 128, y + 128)), dtype=np.float32)).permute(2, 0, 1)
        / 127.5
        - 1
    )
    assert (image_tensor(strip, 128) - expected).abs().mean() < 0.02  # moved by less than a pixel


def test_what_the_encoder_does_not_take_is_told_by_row(
    backbone: Backbone, cache: Cache, table: pd.DataFrame
) -> None:
    class Choosy(torch.nn.Module):
        def forward(self, pixels: torch.Tensor, *more: object) -> torch.Tensor:
            if float(pixels.std()) > 0:  # no plain image
                raise ValueError("I do not like it")
            return torch.zeros(1, 4, 16, 16)

    choosy = replace(backbone, readers=backbone.readers | {"vae_encoder": Choosy}, _parts={})
    rows = table.head(2).set_axis([3, 5])
    assert encode_images(rows, 128, choosy, cache) == dict.fromkeys(
        (3, 5), "cannot be processed: I do not like it"
    )
    with pytest.raises(ImageError, match="cannot be processed: I do not like it"):
        encode_examples(rows, 128, choosy, cache)


@pytest.mark.parametrize("size_px", [64, 192])
def test_any_multiple_of_64_px_is_encoded(
    backbone: Backbone, table: pd.DataFrame, cache: Cache, size_px: int
) -> None:
    examples = encode_examples(table.head(1), size_px, backbone, cache)
    assert examples.latents_NCHW.shape == (1, 4, size_px // 8, size_px // 8)
