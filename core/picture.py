"""One picture file as training, scoring and people see it: its first frame, upright, RGB, transparency on white."""
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

READING = 3  # part of every cache key made from a picture file: raise it when a file would be read differently
# Pillow's readers that are let near a file, whatever its name: no program is started (EPS) and nothing is fetched by them.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "PSD")
READ = frozenset((".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
                  ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".psd"))
NOT_READ = frozenset((".heic", ".heif", ".jxl", ".svg", ".eps", ".ai", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw",
                      ".raf", ".orf", ".rw2", ".raw"))
ENDINGS = READ | NOT_READ  # what counts as a picture in a folder
EIGHT_BIT_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))


class PictureError(ValueError):
    """Why a picture cannot be read, in a few words."""


def open_picture(path: Path) -> Image.Image:
    """Raises PictureError, whatever is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at twice that size it is an error
            with Image.open(path, formats=_readers()) as raw:
                return _in_rgb(ImageOps.exif_transpose(raw))
    except (MemoryError, PictureError):  # the one is the machine's trouble, not the picture's
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them into
        raise PictureError(f"cannot be read: {_reason(path, error)}") from error


@lru_cache
def _readers() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError) and path.stat().st_size == 0:
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):
        ending = path.suffix.lower()
        return f"there is no reader for {ending} here; save it as PNG" if ending in NOT_READ else "it is no picture"
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels, as a decompression bomb does"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "it is cut short or damaged"


def _in_rgb(image: Image.Image) -> Image.Image:
    if _is_cut_out_in_16_bits(image):
        raise PictureError("cannot be read: its transparent colour has 16 bits; save it as 8-bit RGBA")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode not in EIGHT_BIT_MODES:
        raise PictureError(f"cannot be read: its pixels are of kind {image.mode}; save it as 8-bit RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return image.convert("RGB")


def _is_cut_out_in_16_bits(image: Image.Image) -> bool:
    """Whether one colour of 16 bits is transparent, which no pixel of Pillow's 8 bits would match."""
    clear = image.info.get("transparency")
    return clear is not None and (image.mode.startswith("I") or (isinstance(clear, tuple) and max(clear) > 0xFF))


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey: the high byte, as Pillow reads 16-bit RGB; its own conversion of 16-bit grey clips at 255 (Pillow 13)."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise PictureError("cannot be read: it has 32 bits a pixel; save it as 8-bit RGB")
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
