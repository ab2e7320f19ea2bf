"""Converts images with an embedded colour profile (ICC) to sRGB, which training and scorer assume."""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

GREY_MODES = ("1", "L", "LA")
# colour space of a profile -> Pillow's mode of the pixels that it describes
MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
SAME_LEVELS = 2  # of 255: sRGB's own profiles differ from each other by rounding
Note = Callable[[str], object]


class _ProfileError(ValueError):
    """Why a profile cannot be used, in a few words."""


def to_srgb(image: Image.Image, note: Note) -> Image.Image:
    """Convert to RGB or RGBA in sRGB; returns the image itself where it is sRGB or has no usable profile.

    `note` is called with a line where a profile cannot be used.
    """
    if "icc_profile" not in image.info:
        return image
    try:
        mode, transform = _transform(image.info["icc_profile"] or b"", _family(image))
        if transform is None:
            return image
        converted = ImageCms.applyTransform(image.convert(mode), transform)
    except MemoryError:
        raise
    except Exception as error:  # lcms raises many kinds on a damaged profile
        reason = error if isinstance(error, _ProfileError) else "colour profile cannot be read"
        note(f"{reason}: taken as sRGB")
        return image
    assert converted is not None
    if image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


def _family(image: Image.Image) -> str:
    return "CMYK" if image.mode == "CMYK" else "L" if image.mode in GREY_MODES else "RGB"


@lru_cache(maxsize=8)  # most images of a folder have the same profile
def _transform(content: bytes, family: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """-> the mode to convert the pixels to, and the transform from it to sRGB; None if it changes nothing."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    space = profile.profile.xcolor_space
    mode = MODES.get(space, "")
    if mode != family and (mode, family) != ("RGB", "L"):  # grey is a colour too
        raise _ProfileError(f"colour profile is for {space.strip()} pixels and they are {family}")
    # Photoshop's default; lcms' own default intent differs from it only for profiles made of tables.
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(profile, srgb, mode, "RGB", intent, flags)
    return mode, None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether sample colours stay as they are; the name of a profile is not reliable."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    samples = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    image = Image.fromarray(samples if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    converted = ImageCms.applyTransform(image, transform)
    differences = np.asarray(image.convert("RGB"), dtype=int) - np.asarray(converted, dtype=int)
    return int(np.abs(differences).max()) <= SAME_LEVELS
