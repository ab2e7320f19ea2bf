"""Reads an image file: its first frame, upright, in sRGB, transparency on white."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from core.data.colour_profile import Note, to_srgb
from core.data.file_kind import kind_of
from core.errors import UserError, first_line
from core.machine_trouble import machine_trouble

# part of the cache keys of images: raise it when files are read differently than before
READING = 4
# Pillow's readers that are allowed, whatever a file's name: none starts a program (EPS) or uses the network.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "PSD")
READ = (
    ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .bmp .dib .gif .tif .tiff .avif .jp2 .j2k .jpx "
    ".ppm .pgm .pbm .pnm .tga .ico .psd"
)
NOT_READ = ".heic .heif .jxl .svg .eps .ai .exr .hdr .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .raw"
ENDINGS = frozenset(f"{READ} {NOT_READ}".split())  # what counts as an image in a folder
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
MAX_PROFILE_BYTES = 2**25
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
NEW_SUBFILE_TYPE = 254  # TIFF 6.0: bit 0 says that an image is a smaller version of another in the same file
EIGHT_BIT_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
STRIP = 8  # long side over short side from which an image counts as a strip
PLAIN = Image.new("RGB", (64, 64), "grey")
Answer = TypeVar("Answer")


class ImageError(UserError):
    """An image cannot be read; the message says why, in a few words."""


def open_image(path: Path, note: Note = lambda text: None) -> Image.Image:
    """Read an image as RGB. Raises ImageError on any fault of the file.

    `note` is called with a line about each part beside the pixels that could not be used (rotation, profile).
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata, and of sizes of which it refuses the double
            warnings.simplefilter("ignore")
            return _read(path, note)
    except (MemoryError, ImageError):  # MemoryError is the machine's fault, not the image's
        raise
    except Exception as error:  # Pillow's readers raise many kinds on a damaged file
        raise ImageError(f"cannot be read: {_reason(path, error)}") from error


def without_ends(image: Image.Image) -> Image.Image:
    """Crop a very long image to its middle.

    Resizing to cover a square and cropping keeps only the middle anyway, but could take gigabytes on the way.
    """
    width, height = image.size
    x, y = max(0, width - STRIP * height) // 2, max(0, height - STRIP * width) // 2
    return image.crop((x, y, width - x, height - y)) if x or y else image


def ask(look: Callable[[Image.Image], Answer], image: Image.Image) -> Answer:
    """`look(image)`, whose exceptions become an ImageError if they are this image's fault.

    They are raised as they are if the machine is at fault, or if `look` fails on a plain image as well.
    """
    try:
        return look(image)
    except Exception as error:  # libraries raise many kinds on images that they do not accept
        if machine_trouble(error):  # which the plain image, being small, might not run into
            raise
        look(PLAIN)  # raises if the program is at fault
        raise ImageError(f"cannot be processed: {first_line(error)}") from error


def _read(path: Path, note: Note) -> Image.Image:
    try:
        with Image.open(path, formats=_readers()) as raw:
            return _as_seen(raw, note)
    except (MemoryError, ImageError):
        raise
    # of a PNG the fault may lie in metadata that the pixels do not need: try without
    except Exception as error:
        pixels, info = _png_pixels(path)
        if not pixels:
            raise
        try:
            with Image.open(io.BytesIO(pixels), formats=_readers()) as raw:
                raw.info.update(info)
                return _as_seen(raw, note)
        except (MemoryError, ImageError):
            raise
        except Exception:
            raise error from None


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height of the upright image from the file's header; None where the header does not say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_readers()) as raw:
                # In a PNG, Pillow looks for a rotation behind the pixels and would read them all for it.
                turned = raw.format != "PNG" and raw.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return (raw.height, raw.width) if turned else raw.size
    except Exception:  # a damaged file; `open_image` reports why
        return None


@lru_cache
def _readers() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _png_pixels(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """-> a PNG of only the chunks that the pixels need, and its EXIF and colour profile as in `Image.info`.

    The bytes are empty if the file is no PNG, a profile is if it is damaged.
    """
    content, info = path.read_bytes(), {}
    if not content.startswith(PNG_START):
        return b"", {}
    kept, at = [PNG_START], len(PNG_START)
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        value = content[at + 8 : at + 8 + length]
        if kind in PNG_PIXELS:
            kept.append(content[at : at + 12 + length])
        elif kind == b"eXIf":
            info["exif"] = b"Exif\0\0" + value
        elif kind == b"iCCP":
            info["icc_profile"] = _unpacked(value.partition(b"\0")[2][1:])
        at += 12 + length
    return b"".join(kept), info


def _unpacked(compressed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(compressed, MAX_PROFILE_BYTES)
    except zlib.error:
        return b""


def _reason(path: Path, error: Exception) -> str:
    """Why the file cannot be read; must not depend on its name, for it is cached under the content's hash."""
    if isinstance(error, Image.DecompressionBombError):
        megapixels = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return f"it claims more than {megapixels} megapixels, as a decompression bomb does"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UnidentifiedImageError):
        return kind_of(path) or "it is no image"
    return "it is cut short or damaged"


def _as_seen(raw: Image.Image, note: Note) -> Image.Image:
    if isinstance(raw, TiffImagePlugin.TiffImageFile) and raw.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1:
        raise ImageError(
            "cannot be read: it begins with a thumbnail, as a camera's raw file does; save it as PNG"
        )
    raw.load()
    return _in_rgb(_upright(raw, note), note)


def _upright(image: Image.Image, note: Note) -> Image.Image:
    """Rotate by the EXIF orientation.

    ImageOps.exif_transpose also rewrites the rest of the EXIF block and fails on a damaged one.
    """
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many kinds on a damaged block
        note("EXIF block cannot be read: not rotated")
        return image
    return image if turn is None else image.transpose(turn)


def _in_rgb(image: Image.Image, note: Note) -> Image.Image:
    if _is_cut_out_in_16_bits(image):
        raise ImageError("cannot be read: its transparent colour has 16 bits; save it as 8-bit RGBA")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bits(image)
    if image.mode not in EIGHT_BIT_MODES:
        raise ImageError(f"cannot be read: its pixels are of kind {image.mode}; save it as 8-bit RGB")
    image = to_srgb(image, note)
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return image.convert("RGB")


def _is_cut_out_in_16_bits(image: Image.Image) -> bool:
    """Whether one 16-bit colour is transparent: converted to 8 bits, no pixel would match it."""
    clear = image.info.get("transparency")
    is_wide = isinstance(clear, tuple) and max(clear) > 0xFF
    return is_wide or (clear is not None and image.mode.startswith("I"))


def _from_16_bits(image: Image.Image) -> Image.Image:
    """The high byte of 16-bit grey, as Pillow reads 16-bit RGB; its conversion clips at 255 (Pillow 13)."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError("cannot be read: it has 32 bits a pixel; save it as 8-bit RGB")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    grey.info = image.info
    return grey
