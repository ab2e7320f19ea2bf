"""Every kind of picture file is read upright, in RGB, on white, or refused with its reason."""
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.picture import PictureError, open_picture


def png(path: Path, values: np.ndarray, colour_type: int) -> Path:
    """A 16-bit PNG by hand (Pillow writes none in colour); values (height, width, channels)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 8), 0).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getextrema() == ((255, 255),) * 3


def test_a_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30] * 256)
    image.save(tmp_path / "clear.png", transparency=0)
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_half_transparency_is_blended_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "grey.png")
    assert open_picture(tmp_path / "grey.png").getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_a_picture_stands_upright(tmp_path: Path) -> None:
    """Orientation 6: the camera was turned a quarter to the left, so the file's left edge is the top."""
    image = Image.new("RGB", (60, 40), "black")
    image.paste("white", (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = open_picture(tmp_path / "turned.jpg")
    assert upright.size == (40, 60)
    assert min(upright.getpixel((20, 5))) > 200
    assert max(upright.getpixel((20, 50))) < 50


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "I;16"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new(mode, (8, 8)).save(path)
    assert open_picture(path).mode == "RGB"


def test_cmyk_white_is_white(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "print.jpg", quality=95)
    assert min(open_picture(tmp_path / "print.jpg").getpixel((4, 4))) > 250


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, colour_type: int, channels: int) -> None:
    values = np.repeat(np.array([[0x0000, 0x40FF, 0x8000, 0xFFFF]])[..., None], channels, axis=2)
    image = open_picture(png(tmp_path / "deep.png", values, colour_type))
    assert [image.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, (0x40,) * 3, (0x80,) * 3, (0xFF,) * 3]


def test_16_bits_with_transparency_stand_on_white(tmp_path: Path) -> None:
    values = np.array([[[0x4000, 0x4000, 0x4000, 0], [0x4000, 0x4000, 0x4000, 0xFFFF]]])
    image = open_picture(png(tmp_path / "deep.png", values, 6))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(255,) * 3, (0x40,) * 3]


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_a_transparent_colour_of_16_bits_is_refused_not_overlooked(tmp_path: Path, colour_type: int, channels: int) -> None:
    path = png(tmp_path / "deep.png", np.full((1, 1, channels), 0x4000), colour_type)
    clear = struct.pack(f">{channels}H", *[0x4000] * channels)
    chunk = struct.pack(">I", len(clear)) + b"tRNS" + clear + struct.pack(">I", zlib.crc32(b"tRNS" + clear))
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAT", 1)[:33] + chunk + path.read_bytes()[33:])
    with pytest.raises(PictureError, match="its transparent colour has 16 bits"):
        open_picture(path)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"film.{ending}", save_all=True, append_images=frames[1:], **options)
    assert open_picture(tmp_path / f"film.{ending}").getpixel((8, 8)) == (255, 0, 0)


def test_a_decompression_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    path = png(tmp_path / "bomb.png", np.zeros((1, 1, 1), int), 0)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 50_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(PictureError, match="more than 178 megapixels"):
        open_picture(path)


@pytest.mark.parametrize(("content", "reason"), [(b"", "it is empty"), (b"no picture", "it is no picture"),
                                                 (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be read: ")])
def test_what_is_no_picture_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(PictureError, match=reason):
        open_picture(tmp_path / "1.png")


def test_a_kind_without_a_reader_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(PictureError, match=r"there is no reader for \.heic here; save it as PNG"):
        open_picture(tmp_path / "1.HEIC")


def test_a_name_never_has_a_program_started(tmp_path: Path) -> None:
    """Pillow would hand PostScript to Ghostscript, whatever the file is called."""
    Image.new("RGB", (8, 8)).save(tmp_path / "1.eps")
    (tmp_path / "1.eps").rename(tmp_path / "1.png")
    with pytest.raises(PictureError, match="it is no picture"):
        open_picture(tmp_path / "1.png")


@pytest.mark.parametrize("ending", ["jfif", "jp2", "tga", "ppm", "ico", "avif"])
def test_rarer_kinds_are_read(tmp_path: Path, ending: str) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / f"1.{ending}")
    assert open_picture(tmp_path / f"1.{ending}").getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=8)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif"])
def test_a_truncated_picture_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"1.{ending}"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(PictureError, match="cannot be read: "):
        open_picture(path)


def test_pixels_that_have_no_8_bit_meaning_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(PictureError, match="kind F; save it as 8-bit RGB"):
        open_picture(tmp_path / "float.tif")


def test_a_picture_that_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no such file"):
        open_picture(tmp_path / "1.png")
