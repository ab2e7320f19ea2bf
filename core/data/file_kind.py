"""What a file is that cannot be read as an image, judged by its first bytes."""

from pathlib import Path

START_BYTES = 1024
WITHOUT_A_READER = {  # first bytes -> kind
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"FUJIFILMCCD-RAW": "camera raw",
    b"IIRO": "camera raw",
    b"IIRS": "camera raw",
    b"IIU\0": "camera raw",
    b"%PDF": "PDF",
    b"II*\0": "this kind of TIFF",
    b"MM\0*": "this kind of TIFF",
}
NO_IMAGE = {  # first bytes -> what it is, and what to do
    b"version https://git-lfs": "a Git LFS pointer, not the image; git lfs pull fetches it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x1f\x8b": "a gzip archive; unpack it",
}
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def kind_of(path: Path) -> str:
    """What the file is and what the user can do, in a few words; empty if not known. Raises OSError."""
    with path.open("rb") as handle:
        start = handle.read(START_BYTES)
    if not start:
        return "it is empty"
    if what := next((what for begins, what in NO_IMAGE.items() if start.startswith(begins)), None):
        return f"it is {what}"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "it is an HTML page, not the image; download it again"
    kind = next((kind for begins, kind in WITHOUT_A_READER.items() if start.startswith(begins)), None)
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!doctype svg")) and b"<svg" in text):
        kind = "SVG"
    if start[4:8] == b"ftyp":
        kind = _of_brands(start)
    return f"there is no reader for {kind} here; save it as PNG" if kind else ""


def _of_brands(start: bytes) -> str | None:
    """HEIC, AVIF and video begin with a box of brands (ISO/IEC 14496-12, section 4.3)."""
    end = min(int.from_bytes(start[:4]), len(start))
    brands = [start[8:12], *(start[i : i + 4] for i in range(16, end, 4))]
    if any(brand in (b"avif", b"avis") for brand in brands):
        return None  # Pillow reads AVIF, so this file is damaged
    if brands[0] == b"crx ":
        return "camera raw"
    return "HEIC" if any(brand in HEIC_BRANDS for brand in brands) else "video"
