"""Small colour profiles made by hand, for no standard one may be passed on with this repository
(ICC.1:2001-04).
"""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
D65_XY, D50_XY = (0.3127, 0.3290), (0.3457, 0.3585)


def rgb_profile(
    primaries: tuple = SRGB_PRIMARIES, white: tuple[float, float] = D65_XY, gamma: float | None = None
) -> bytes:
    """Chromaticities and a gamma; None is sRGB's own curve, as a table."""
    xyz = np.array([_xyz(*xy) for xy in primaries]).T
    white_xyz = np.array(_xyz(*white))
    xyz = xyz * np.linalg.solve(xyz, white_xyz)
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white_xyz)) @ BRADFORD @ xyz
    curve = _curve(gamma)
    tags = {b"wtpt": _point(D50)}
    for i, colour in enumerate((b"r", b"g", b"b")):
        tags |= {colour + b"XYZ": _point(adapted[:, i]), colour + b"TRC": curve}
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"wtpt": _point(D50), b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A table of the sixteen corners, cyan first: yellowish paper, L 90, that all inks together darken."""
    lightness = np.array([90 * 0.62 ** f"{i:04b}".count("1") - 20 * (i % 2) for i in range(16)])
    lab = (
        np.stack([lightness * 2.55, np.full(16, 128), np.full(16, 148)], axis=-1)
        .clip(0, 255)
        .round()
        .astype(np.uint8)
    )
    identity = bytes(range(256))
    table = (
        b"mft1"
        + bytes(4)
        + bytes([4, 3, 2, 0])
        + struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
        + identity * 4
        + lab.tobytes()
        + identity * 3
    )
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"wtpt": _point(D50), b"A2B0": table, b"A2B1": table})


def _xyz(x: float, y: float) -> tuple[float, float, float]:
    return x / y, 1.0, (1 - x - y) / y


def _point(xyz: object) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(np.array(xyz) * 65536).round().astype(int))


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    x = np.linspace(0, 1, 1024)
    y = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *(y * 65535).round().astype(int))


def _profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"made for a test\0"
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78), **tags}
    entries, body, at = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        entries += name + struct.pack(">II", at + len(body), len(value))
        body += value
    header = (
        struct.pack(">I4sI", at + len(body), b"none", 0x02400000)
        + kind
        + space
        + connection
        + bytes(12)
        + b"acsp"
        + bytes(28)
        + struct.pack(">3i", *(np.array(D50) * 65536).round().astype(int))
        + bytes(48)
    )
    assert len(header) == 128, len(header)
    return header + struct.pack(">I", len(tags)) + entries + body


ADOBE_RGB = rgb_profile(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), gamma=2.19921875)
DISPLAY_P3 = rgb_profile(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)))
PROPHOTO_RGB = rgb_profile(((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50_XY, gamma=1.8)
