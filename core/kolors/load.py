"""Read Kolors' weights tensor by tensor from the mapped files to the device and dtype.

The networks are built without memory of their own and take over the tensors, so a host never holds more than
the file that is being read (and, on a CPU, the model itself).
"""

import pickle
import re
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from aesthetics_predictor import AestheticsPredictorV2Linear
from diffsynth.models.kolors_text_encoder import ChatGLMModel
from diffsynth.models.utils import init_weights_on_device
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPImageProcessor
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from core.backbone.backbone import Backbone
from core.base_models import BaseModel
from core.errors import UserError, first_line
from core.files.weight_files import Part, WeightsError
from core.kolors.files import SCORER_FOLDER, describe_missing, fingerprints, missing_files, part_paths
from core.kolors.models import (
    KolorsUNet,
    KolorsVAEDecoder,
    KolorsVAEEncoder,
    Tensors,
    UNetShape,
    VAEShape,
    chatglm,
    chatglm_sizes,
)

Model = TypeVar("Model", bound=nn.Module)


def read_backbone(
    model: BaseModel, device: torch.device, dtype: torch.dtype, folder: Path, parts: Collection[Part]
) -> Backbone:
    """The backbone for `load_backbone`; `parts` are those whose files must be there.

    Raises UserError, before anything is read, where a file is missing.
    """
    if missing := missing_files(folder, parts):
        raise UserError(describe_missing(missing, folder))
    return Backbone(
        name=model.name,
        architecture=model.architecture,
        device=device,
        dtype=dtype,
        text_encoder_alone=True,
        readers={
            "unet": partial(read_unet, folder, device, dtype),
            "vae_encoder": partial(read_vae_encoder, folder, device, dtype),
            "vae_decoder": partial(read_vae_decoder, folder, device, dtype),
            "text_encoder": partial(read_text_encoder, folder, device, dtype),
            "scorer": partial(read_scorer, folder, device),
        },
        scorer_name=model.scorer,
        image_processor=read_image_processor(folder),
        weights=fingerprints(folder, parts),
    )


def read_unet(folder: Path, device: torch.device, dtype: torch.dtype) -> KolorsUNet:
    """The denoising network. Raises WeightsError."""
    return _read(
        folder,
        "unet",
        device,
        dtype,
        _diffsynth_names(KolorsUNet),
        lambda tensors: KolorsUNet(UNetShape.of(tensors)),
    )


def read_vae_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> KolorsVAEEncoder:
    """The first half of the VAE's file. Raises WeightsError."""
    return _read(
        folder,
        "vae",
        device,
        dtype,
        _diffsynth_names(KolorsVAEEncoder),
        lambda tensors: KolorsVAEEncoder(VAEShape.of(tensors, (0, 4, 7))),
        r"(encoder|quant_conv)\.",
    )


def read_vae_decoder(folder: Path, device: torch.device, dtype: torch.dtype) -> KolorsVAEDecoder:
    """The second half of the VAE's file. Raises WeightsError."""
    return _read(
        folder,
        "vae",
        device,
        dtype,
        _diffsynth_names(KolorsVAEDecoder),
        lambda tensors: KolorsVAEDecoder(VAEShape.of(tensors, (17, 13, 0))),
        r"(decoder|post_quant_conv)\.",
    )


def read_text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> ChatGLMModel:
    """ChatGLM3 without its language-model head. Raises WeightsError."""
    # ChatGLM3's own files prefix every name with `transformer.`.
    return _read(
        folder,
        "text_encoder",
        device,
        dtype,
        lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()},
        lambda tensors: chatglm(dtype, **chatglm_sizes(tensors)),
        r"(?!.*output_layer\.)",
    )


def read_scorer(folder: Path, device: torch.device) -> AestheticsPredictorV2Linear:
    """The scorer, in fp32 whatever the precision: rounding could move a score across the gate."""
    config = CLIPVisionConfig.from_pretrained(folder / SCORER_FOLDER)
    # Files of older transformers also hold `position_ids`, which are no weights.
    return _read(
        folder,
        "scorer",
        device,
        torch.float32,
        dict,
        lambda _: AestheticsPredictorV2Linear(config),
        r"(?!.*position_ids$)",
    )


def read_image_processor(folder: Path) -> CLIPImageProcessor:
    """The preprocessing of images for the scorer."""
    return CLIPImageProcessor.from_pretrained(folder / SCORER_FOLDER)


def _diffsynth_names(model: type[Any]) -> Callable[[Tensors], Tensors]:
    """DiffSynth's own converter from diffusers' names to those of `model`."""

    def convert(tensors: Tensors) -> Tensors:
        converted = model.state_dict_converter().from_diffusers(tensors)
        # some converters also return arguments for the class
        return converted[0] if isinstance(converted, tuple) else converted

    return convert


def _read(
    folder: Path,
    part: Part,
    device: torch.device,
    dtype: torch.dtype,
    rename: Callable[[Tensors], Tensors],
    build: Callable[[Tensors], Model],
    names: str = "",
) -> Model:
    """Load a part's model: `build` makes it from the renamed tensors, whose shapes give its sizes.

    `names` is a regular expression of the tensors to read, by their names in the files. Raises WeightsError.
    """
    paths = [path for path in part_paths(folder, part) if path.suffix != ".json"]
    found = {
        name: _placed(tensor, device, dtype)
        for path in paths
        for name, tensor in _mapped(path)
        if re.match(names, name)
    }
    try:
        tensors = rename(found)
        with init_weights_on_device():
            model = build(tensors)
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"{paths[0]}: holds no {part} of Kolors' kind ({error})") from error
    # Buffers that no file holds have their values already.
    wanted = {
        name: tensor.shape for name, tensor in model.state_dict().items() if tensor.is_meta or name in tensors
    }
    given = {name: tensor.shape for name, tensor in tensors.items()}
    if wanted != given:
        odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise WeightsError(
            f"{paths[0]}: holds no {part} of Kolors' kind: {len(odd)} tensors are missing, unknown or of "
            f"another shape, {odd[0]} among them"
        )
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.to(device).eval().requires_grad_(False)


def _placed(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Move a tensor to the device and dtype, in the memory format that convolutions are fastest in."""
    order = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
    return tensor.to(device, dtype if tensor.is_floating_point() else None, memory_format=order)


def _mapped(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file by name, memory-mapped; never runs pickled code. Raises WeightsError."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  safetensors' file is no dict
                    yield name, file.get_tensor(name)
        else:
            yield from torch.load(path, map_location="cpu", mmap=True, weights_only=True).items()
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: holds more than tensors, and pickled code is never run; delete it and fetch it anew"
        ) from None
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({first_line(error)}); delete it and fetch it anew"
        ) from None
