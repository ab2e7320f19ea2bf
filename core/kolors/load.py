"""Read Kolors' weights tensor by tensor from the mapped files to the device and dtype.

The networks are built without memory of their own and take over the tensors, so a host never holds more than
the file that is being read (and, on a CPU, the model itself).
"""

import pickle
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
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
    weights = WeightsFolder(folder, device, dtype)
    return Backbone(
        model=model,
        device=device,
        dtype=dtype,
        text_encoder_alone=True,
        readers={
            "unet": weights.unet,
            "vae_encoder": weights.vae_encoder,
            "vae_decoder": weights.vae_decoder,
            "text_encoder": weights.text_encoder,
            # In fp32 whatever the precision: rounding could move a score across the gate.
            "scorer": replace(weights, dtype=torch.float32).scorer,
        },
        image_processor=CLIPImageProcessor.from_pretrained(folder / SCORER_FOLDER),
        weights=fingerprints(folder, parts),
    )


@dataclass(frozen=True, slots=True)
class WeightsFolder:
    """A folder with Kolors' weights; each method reads a part to `device`. They raise WeightsError."""

    folder: Path
    device: torch.device
    dtype: torch.dtype

    def unet(self) -> KolorsUNet:
        """The denoising network."""
        return self._read(
            "unet", _diffsynth_names(KolorsUNet), lambda tensors: KolorsUNet(UNetShape.of(tensors))
        )

    def vae_encoder(self) -> KolorsVAEEncoder:
        """The first half of the VAE's file."""

        def build(tensors: Tensors) -> KolorsVAEEncoder:
            return KolorsVAEEncoder(VAEShape.of(tensors, (0, 4, 7)))

        return self._read("vae", _diffsynth_names(KolorsVAEEncoder), build, r"(encoder|quant_conv)\.")

    def vae_decoder(self) -> KolorsVAEDecoder:
        """The second half of the VAE's file."""

        def build(tensors: Tensors) -> KolorsVAEDecoder:
            return KolorsVAEDecoder(VAEShape.of(tensors, (17, 13, 0)))

        return self._read("vae", _diffsynth_names(KolorsVAEDecoder), build, r"(decoder|post_quant_conv)\.")

    def text_encoder(self) -> ChatGLMModel:
        """ChatGLM3 without its language-model head."""

        def rename(tensors: Tensors) -> Tensors:  # ChatGLM3's own files prefix every name
            return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}

        def build(tensors: Tensors) -> ChatGLMModel:
            return chatglm(self.dtype, **chatglm_sizes(tensors))

        return self._read("text_encoder", rename, build, r"(?!.*output_layer\.)")

    def scorer(self) -> AestheticsPredictorV2Linear:
        """The aesthetic predictor."""
        config = CLIPVisionConfig.from_pretrained(self.folder / SCORER_FOLDER)
        # Files of older transformers also hold `position_ids`, which are no weights.
        return self._read(
            "scorer", dict, lambda _: AestheticsPredictorV2Linear(config), r"(?!.*position_ids$)"
        )

    def _read(
        self,
        part: Part,
        rename: Callable[[Tensors], Tensors],
        build: Callable[[Tensors], Model],
        names: str = "",
    ) -> Model:
        """Load a part's model: `build` makes it from the renamed tensors, whose shapes give its sizes.

        `names` is a regular expression of the tensors to read, by their names in the files.
        """
        paths = [path for path in part_paths(self.folder, part) if path.suffix != ".json"]
        found = {
            name: self._placed(tensor)
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
            name: tensor.shape
            for name, tensor in model.state_dict().items()
            if tensor.is_meta or name in tensors
        }
        given = {name: tensor.shape for name, tensor in tensors.items()}
        if wanted != given:
            odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
            raise WeightsError(
                f"{paths[0]}: holds no {part} of Kolors' kind: {len(odd)} tensors are missing, unknown or of "
                f"another shape, {odd[0]} among them"
            )
        model.load_state_dict(tensors, strict=False, assign=True)
        return model.to(self.device).eval().requires_grad_(False)

    def _placed(self, tensor: Tensor) -> Tensor:
        """Move a tensor to the device and dtype, in the memory format that convolutions are fastest in."""
        order = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None, memory_format=order)


def _diffsynth_names(model: type[Any]) -> Callable[[Tensors], Tensors]:
    """DiffSynth's own converter from diffusers' names to those of `model`."""

    def convert(tensors: Tensors) -> Tensors:
        converted = model.state_dict_converter().from_diffusers(tensors)
        # some converters also return arguments for the class
        return converted[0] if isinstance(converted, tuple) else converted

    return convert


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
