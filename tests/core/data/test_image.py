"""Every kind of image file is read upright, in RGB, on white, or refused with its reason."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from core.data.image import ImageError, open_image
from tests.core.data.colour_profiles import (
    ADOBE_RGB,
    DISPLAY_P3,
    PROPHOTO_RGB,
    cmyk_profile,
    grey_profile,
    rgb_profile,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(path: Path, values: np.ndarray, colour_type: int) -> Path:
    """A 16-bit PNG by hand (Pillow writes none in colour); values (height, width, channels)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 8), 0).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getextrema() == ((255, 255),) * 3


def test_a_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30] * 256)
    image.save(tmp_path / "clear.png", transparency=0)
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_half_transparency_is_blended_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_an_image_stands_upright(tmp_path: Path) -> None:
    """Orientation 6: the camera was turned a quarter to the left, so the file's left edge is the top."""
    image = Image.new("RGB", (60, 40), "black")
    image.paste("white", (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = open_image(tmp_path / "turned.jpg")
    assert upright.size == (40, 60)
    assert min(upright.getpixel((20, 5))) > 200
    assert max(upright.getpixel((20, 50))) < 50


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (8, 8)).save(path)
    assert open_image(path).mode == "RGB"


def test_cmyk_white_is_white(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "print.jpg", quality=95)
    assert min(open_image(tmp_path / "print.jpg").getpixel((4, 4))) > 250


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, colour_type: int, channels: int) -> None:
    values = np.repeat(np.array([[0x0000, 0x40FF, 0x8000, 0xFFFF]])[..., None], channels, axis=2)
    image = open_image(png(tmp_path / "deep.png", values, colour_type))
    assert [image.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, (0x40,) * 3, (0x80,) * 3, (0xFF,) * 3]


def test_16_bits_with_transparency_stand_on_white(tmp_path: Path) -> None:
    values = np.array([[[0x4000, 0x4000, 0x4000, 0], [0x4000, 0x4000, 0x4000, 0xFFFF]]])
    image = open_image(png(tmp_path / "deep.png", values, 6))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(255,) * 3, (0x40,) * 3]


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_a_transparent_colour_of_16_bits_is_refused_not_overlooked(
    tmp_path: Path, colour_type: int, channels: int
) -> None:
    path = png(tmp_path / "deep.png", np.full((1, 1, channels), 0x4000), colour_type)
    clear = struct.pack(f">{channels}H", *[0x4000] * channels)
    path.write_bytes(path.read_bytes()[:33] + chunk(b"tRNS", clear) + path.read_bytes()[33:])
    with pytest.raises(ImageError, match="its transparent colour has 16 bits"):
        open_image(path)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"film.{ending}", save_all=True, append_images=frames[1:], **options)
    assert open_image(tmp_path / f"film.{ending}").getpixel((8, 8)) == (255, 0, 0)


def test_a_decompression_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    path = png(tmp_path / "bomb.png", np.zeros((1, 1, 1), int), 0)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 50_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(ImageError, match="more than 178 megapixels"):
        open_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"no image", "it is no image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be read: "),
    ],
)
def test_what_is_no_image_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        open_image(tmp_path / "1.png")


def test_a_kind_without_a_reader_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ImageError, match="there is no reader for HEIC here; save it as PNG"):
        open_image(tmp_path / "1.HEIC")


def test_a_name_never_has_a_program_started(tmp_path: Path) -> None:
    """Pillow would hand PostScript to Ghostscript, whatever the file is called."""
    Image.new("RGB", (8, 8)).save(tmp_path / "1.eps")
    (tmp_path / "1.eps").rename(tmp_path / "1.png")
    with pytest.raises(ImageError, match="there is no reader for PostScript here; save it as PNG"):
        open_image(tmp_path / "1.png")


@pytest.mark.parametrize("ending", ["jfif", "jp2", "tga", "ppm", "ico", "avif"])
def test_rarer_kinds_are_read(tmp_path: Path, ending: str) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / f"1.{ending}")
    assert open_image(tmp_path / f"1.{ending}").getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=8)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif"])
def test_a_truncated_image_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"1.{ending}"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="cannot be read: "):
        open_image(path)


def test_pixels_that_have_no_8_bit_meaning_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match="kind F; save it as 8-bit RGB"):
        open_image(tmp_path / "float.tif")


def test_a_raw_file_s_thumbnail_is_not_taken_for_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (16, 12)).save(tmp_path / "1.dng", "TIFF", tiffinfo={254: 1})
    with pytest.raises(
        ImageError, match="it begins with a thumbnail, as a camera's raw file does; save it as PNG"
    ):
        open_image(tmp_path / "1.dng")


def test_an_image_that_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        open_image(tmp_path / "1.png")


def colours() -> Image.Image:
    """Smooth and saturated, inside every space of these tests."""
    across, down = np.meshgrid(np.linspace(40, 215, 64), np.linspace(40, 215, 48))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).round().astype(np.uint8))


def off_by(image: Image.Image, other: Image.Image) -> int:
    return int(differences(image, other).max())


def differences(image: Image.Image, other: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(image, int) - np.asarray(other.convert("RGB"), int))


def in_space(image: Image.Image, profile: bytes, mode: str = "RGB") -> Image.Image:
    """The same colours as a program writes them that works in another space."""
    found = ImageCms.profileToProfile(
        image,
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode=mode,
    )
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("ending", "options"),
    [("png", {}), ("tif", {}), ("webp", {"lossless": True}), ("jpg", {"quality": 100, "subsampling": 0})],
)
@pytest.mark.parametrize("profile", [ADOBE_RGB, DISPLAY_P3, PROPHOTO_RGB], ids=["adobe", "p3", "prophoto"])
def test_colours_are_those_that_the_profile_means(
    tmp_path: Path, profile: bytes, ending: str, options: dict
) -> None:
    path = tmp_path / f"1.{ending}"
    in_space(colours(), profile).save(path, icc_profile=profile, **options)
    # ProPhoto in 8 bits and JPEG lose about one
    assert differences(open_image(path, pytest.fail), colours()).mean() < 2
    with Image.open(path) as plain:
        assert differences(plain, colours()).mean() > 5


def test_adobe_rgb_is_computed_as_the_standard_says(tmp_path: Path) -> None:
    """Adobe RGB (1998) 4.3.4 and IEC 61966-2-1, by their matrices; both have the white point D65."""
    to_xyz = np.array([[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]])
    from_xyz = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    linear = from_xyz @ to_xyz @ (np.array([150, 120, 90]) / 255) ** 2.19921875
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    Image.new("RGB", (8, 8), (150, 120, 90)).save(tmp_path / "1.png", icc_profile=ADOBE_RGB)
    assert open_image(tmp_path / "1.png").getpixel((4, 4)) == pytest.approx(expected, abs=1.5)


def test_transparency_is_kept_through_a_profile(tmp_path: Path) -> None:
    layered = in_space(colours(), ADOBE_RGB)
    layered.putalpha(Image.linear_gradient("L").resize(layered.size))
    layered.save(tmp_path / "1.png", icc_profile=ADOBE_RGB)
    plain = colours()
    plain.putalpha(Image.linear_gradient("L").resize(plain.size))
    plain.save(tmp_path / "2.png")
    assert off_by(open_image(tmp_path / "1.png"), open_image(tmp_path / "2.png")) <= 4


def test_a_palette_has_a_profile_too(tmp_path: Path) -> None:
    palette = in_space(colours(), ADOBE_RGB).quantize(200)
    palette.save(tmp_path / "1.png", icc_profile=ADOBE_RGB, transparency=0)
    palette.convert("RGB").save(tmp_path / "2.png", icc_profile=ADOBE_RGB)
    opened, whole = open_image(tmp_path / "1.png", pytest.fail), open_image(tmp_path / "2.png")
    seen = np.asarray(palette) != 0
    assert (np.asarray(opened)[seen] == np.asarray(whole)[seen]).all()
    assert (np.asarray(opened)[~seen] == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_by_a_grey_profile(tmp_path: Path, mode: str) -> None:
    """Linear grey of 55 is sRGB's 128."""
    Image.new("L", (8, 8), 255 if mode == "1" else 55).convert(mode).save(
        tmp_path / "1.png", icc_profile=grey_profile(1.0)
    )
    expected = 255 if mode == "1" else 128
    assert open_image(tmp_path / "1.png", pytest.fail).getpixel((4, 4)) == pytest.approx(
        (expected,) * 3, abs=2
    )


def test_deep_grey_by_a_grey_profile(tmp_path: Path) -> None:
    Image.new("I;16", (8, 8), 55 << 8).save(tmp_path / "1.png", icc_profile=grey_profile(1.0))
    assert open_image(tmp_path / "1.png", pytest.fail).getpixel((4, 4)) == pytest.approx((128,) * 3, abs=2)


def test_grey_pixels_by_a_profile_for_colours(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 55).save(tmp_path / "1.png", icc_profile=rgb_profile(gamma=1.0))
    assert open_image(tmp_path / "1.png", pytest.fail).getpixel((4, 4)) == pytest.approx((128,) * 3, abs=2)


def test_cmyk_by_its_profile(tmp_path: Path) -> None:
    """Paper is white, and this printer's black a warm grey; Pillow's own formula has it black."""
    for ink, expected in ((0, (255, 255, 255)), (255, (92, 83, 52))):
        Image.new("CMYK", (8, 8), (0, 0, 0, ink)).save(
            tmp_path / "1.jpg", icc_profile=cmyk_profile(), quality=100
        )
        assert open_image(tmp_path / "1.jpg", pytest.fail).getpixel((4, 4)) == pytest.approx(expected, abs=4)


@pytest.mark.parametrize("profile", [SRGB, rgb_profile()], ids=["lcms", "table"])
def test_an_image_that_says_it_is_srgb_is_left_as_it_is(tmp_path: Path, profile: bytes) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for mode in ("RGB", "RGBA", "L"):
        noise.convert(mode).save(tmp_path / "1.png", icc_profile=profile)
        noise.convert(mode).save(tmp_path / "2.png")
        assert off_by(open_image(tmp_path / "1.png", pytest.fail), open_image(tmp_path / "2.png")) == 0


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (b"nonsense", "colour profile cannot be read: taken as sRGB"),
        (ADOBE_RGB[:200], "colour profile cannot be read: taken as sRGB"),
        (cmyk_profile(), "colour profile is for CMYK pixels and they are RGB: taken as sRGB"),
    ],
    ids=["nonsense", "cut short", "cmyk"],
)
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_a_profile_that_cannot_be_used_is_noted_and_costs_no_image(
    tmp_path: Path, profile: bytes, reason: str, ending: str
) -> None:
    colours().save(tmp_path / f"1.{ending}", icc_profile=profile)
    colours().save(tmp_path / f"2.{ending}")
    notes: list[str] = []
    assert (
        off_by(open_image(tmp_path / f"1.{ending}", notes.append), open_image(tmp_path / f"2.{ending}")) == 0
    )
    assert notes == [reason]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), at=st.integers(0, 499), cut=st.booleans())
def test_no_profile_whatever_is_in_it_costs_an_image(
    tmp_path: Path, content: bytes, at: int, cut: bool
) -> None:
    profile = ADOBE_RGB[:at] + content + (b"" if cut else ADOBE_RGB[at + len(content) :])
    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.png", icc_profile=profile or b"x")
    assert open_image(tmp_path / "1.png").size == (8, 8)


TEXT = zlib.compress(b"x" * 2_000_000)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"prompt\0\0" + TEXT),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + TEXT),
        chunk(b"tEXt", b"a\0" + b"b" * 70_000_000),
        chunk(b"tEXt", b"a\0b")[:-4] + b"oops",
        chunk(b"zTXt", b"prompt\0\7oops"),
        chunk(b"pHYs", b""),
        chunk(b"fcTL", b"oops"),
        chunk(b"iCCP", b"name\0\7oops"),
        chunk(b"iCCP", b""),
    ],
    ids=[
        "zTXt",
        "iTXt",
        "long tEXt",
        "checksum",
        "method",
        "pHYs",
        "fcTL",
        "profile's method",
        "profile without a name",
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_what_is_not_pixels_never_costs_a_png(tmp_path: Path, extra: bytes, last: bool) -> None:
    colours().save(tmp_path / "1.png")
    content = (tmp_path / "1.png").read_bytes()
    at = len(content) - 12 if last else 33
    (tmp_path / "1.png").write_bytes(content[:at] + extra + content[at:])
    assert off_by(open_image(tmp_path / "1.png"), colours()) == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(
        [
            b"tEXt",
            b"zTXt",
            b"iTXt",
            b"eXIf",
            b"iCCP",
            b"pHYs",
            b"gAMA",
            b"cHRM",
            b"sRGB",
            b"acTL",
            b"bKGD",
            b"tIME",
            b"sBIT",
            b"hIST",
            b"sPLT",
            b"vpAg",
        ]
    ),
    value=st.binary(max_size=60),
    good=st.booleans(),
)
def test_no_chunk_beside_the_pixels_whatever_is_in_it_costs_a_png(
    tmp_path: Path, kind: bytes, value: bytes, good: bool
) -> None:
    path = png(tmp_path / "1.png", np.full((2, 3, 3), 0x4000), 2)
    content, extra = path.read_bytes(), chunk(kind, value)
    path.write_bytes(content[:33] + (extra if good else extra[:-1] + bytes([extra[-1] ^ 1])) + content[33:])
    assert open_image(path).size == (3, 2)


def test_a_profile_over_a_megabyte_is_used(tmp_path: Path) -> None:
    in_space(colours(), ADOBE_RGB).save(tmp_path / "1.png", icc_profile=ADOBE_RGB + b"\0" * 1_200_000)
    assert off_by(open_image(tmp_path / "1.png", pytest.fail), colours()) <= 4


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0oops", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff"]
)
def test_a_broken_exif_block_costs_no_image(tmp_path: Path, ending: str, exif: bytes) -> None:
    options = {"lossless": True} if ending == "webp" else {"quality": 100}
    colours().save(tmp_path / f"1.{ending}", exif=exif, **options)
    colours().save(tmp_path / f"2.{ending}", **options)
    assert off_by(open_image(tmp_path / f"1.{ending}"), open_image(tmp_path / f"2.{ending}")) == 0


def test_a_broken_exif_block_is_noted(tmp_path: Path) -> None:
    colours().save(tmp_path / "1.png", exif=b"Exif\0\0oops")
    notes: list[str] = []
    open_image(tmp_path / "1.png", notes.append)
    assert notes == ["EXIF block cannot be read: not rotated"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + bytes(99),
            "there is no reader for HEIC here; save it as PNG",
        ),
        (b"\xff\x0a" + bytes(99), "there is no reader for JPEG XL here; save it as PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "there is no reader for JPEG XL here; save it as PNG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "there is no reader for video here; save it as PNG"),
        (b'<?xml version="1.0"?>\n<svg/>', "there is no reader for SVG here; save it as PNG"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a Git LFS pointer, not the image; git lfs pull fetches it",
        ),
        (b"\n<!DOCTYPE html><html>", "it is an HTML page, not the image; download it again"),
        (b"PK\x03\x04", "it is a zip archive; unpack it"),
    ],
)
def test_a_file_is_named_by_what_it_holds_whatever_it_is_called(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    for name in ("1.jpg", "1.heic", "1.svg"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError) as raised:
            open_image(tmp_path / name)
        assert str(raised.value) == f"cannot be read: {reason}"
