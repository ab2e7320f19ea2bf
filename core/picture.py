"""One picture file as training, scoring and people see it: its first frame, upright, RGB, transparency on white."""
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

READING = 2  # part of every cache key made from a picture file: raise it when a file would be read differently
ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic"))
EIGHT_BIT_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))


class PictureError(ValueError):
    """Why a picture cannot be read, in a few words."""


def open_picture(path: Path) -> Image.Image:
    """Raises PictureError, whatever is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at twice that size it is an error
            with Image.open(path) as raw:
                image = ImageOps.exif_transpose(raw)
    except MemoryError:  # the machine's trouble, not the picture's
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them into
        raise PictureError(f"cannot be read: {_reason(path, error)}") from error
    return _in_rgb(image)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture" if path.stat().st_size else "it is empty"
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels, as a decompression bomb does"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "it is cut short or damaged"


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode not in EIGHT_BIT_MODES:
        raise PictureError(f"cannot be read: its pixels are of kind {image.mode}; save it as 8-bit RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey: the high byte, as Pillow reads 16-bit RGB; its own conversion of 16-bit grey clips at 255 (Pillow 13)."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise PictureError("cannot be read: it has 32 bits a pixel; save it as 8-bit RGB")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
