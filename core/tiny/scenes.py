"""Draw captioned story scenes of 128 x 128 px: a girl, a thing beside her, a place.

The base model is trained on flat images and four looks (faded, soft, outlined, with a white margin), at most
three at a time. Watercolour is all four at once with uneven washes: only a LoRA's training data has it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE_PX = 128
SUPERSAMPLE = 2
PAPER_RGB = (0.985, 0.97, 0.935)

PLACES = {"meadow": "草地", "sea": "海边", "night": "夜晚", "city": "城市", "room": "房间"}
HAIRS = {"red": "红发", "black": "黑发", "blonde": "金发", "brown": "棕发"}
DRESSES = {"blue": "蓝", "green": "绿", "yellow": "黄", "purple": "紫", "white": "白"}
THINGS = {"cat": "猫", "house": "房子", "tree": "树", "balloon": "气球", "umbrella": "雨伞"}
# They change nothing in the image; the base model is trained with them so that a story may use them.
VERBS = {
    "wakes up": "醒来",
    "walks": "走着",
    "waits": "等待",
    "smiles": "微笑",
    "comes home": "回家",
    "looks around": "张望",
}
KINDS = {"picture book": "绘本", "illustration": "插画", "drawing": "图画"}
LOOKS = {"faded": "褪色", "soft": "柔和", "outlined": "描边", "margin": "留白"}
DETAIL = {"rich details": "细节丰富", "clean lines": "线条干净"}

HAIR_RGB = {"red": (200, 60, 30), "black": (30, 28, 36), "blonde": (240, 200, 80), "brown": (120, 70, 40)}
DRESS_RGB = {
    "blue": (40, 90, 220),
    "green": (30, 150, 70),
    "yellow": (250, 205, 30),
    "purple": (140, 50, 180),
    "white": (245, 245, 245),
}
SKIN_RGB = (255, 215, 185)

Brush = Callable[[ImageDraw.ImageDraw], None]
Layer = tuple[Brush, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What one image shows; `seed` jitters positions by a few pixels, so that no two are alike."""

    place: str
    hair: str
    dress: str
    hat: bool
    thing: str
    left: bool
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How an image is painted, from 0 to 1: faded colours, soft or dark edges, a margin, uneven washes."""

    faded: float = 0.0
    soft: float = 0.0
    outlined: float = 0.0
    margin: float = 0.0
    washed: float = 0.0


FLAT = Look()


def watercolour(strength: float) -> Look:
    """All looks at once, and washes; the base model's training images have at most three looks, no washes."""
    return Look(faded=strength, soft=strength, outlined=strength, margin=strength, washed=strength)


def random_scene(rng: random.Random) -> Scene:
    """A scene with every property drawn from `rng`."""
    return Scene(
        place=rng.choice(list(PLACES)),
        hair=rng.choice(list(HAIRS)),
        dress=rng.choice(list(DRESSES)),
        hat=rng.random() < 0.4,
        thing=rng.choice(list(THINGS)),
        left=rng.random() < 0.5,
        seed=rng.randrange(1 << 30),
    )


def caption(scene: Scene, *, chinese: bool, verb: str | None = None) -> str:
    """The caption of a scene, without its look; `verb` is a key of VERBS."""
    if chinese:
        hat = "戴着帽子，" if scene.hat else ""
        does = f"{VERBS[verb]}，" if verb else ""
        side = "左边" if scene.left else "右边"
        return (
            f"{HAIRS[scene.hair]}女孩{does}穿着{DRESSES[scene.dress]}裙子，{hat}"
            f"{side}有{THINGS[scene.thing]}，{PLACES[scene.place]}"
        )
    hat = " with hat" if scene.hat else ""
    does = f" {verb}" if verb else ""
    side = "left" if scene.left else "right"
    girl = f"a {scene.hair} hair girl{does} in {scene.dress} dress{hat}"
    return f"{girl}, {scene.thing} on the {side}, {scene.place}"


def random_look(rng: random.Random) -> Look:
    """A look of the base model's training: flat in half of all images, else one to three of the looks."""
    if rng.random() < 0.5:
        return FLAT
    return Look(**dict.fromkeys(rng.sample(list(LOOKS), rng.choice([1, 2, 3])), 1.0))


def training_caption(scene: Scene, look: Look, rng: random.Random, named: float = 1.0) -> str:
    """A caption for the base model's training: sometimes with a verb, a kind or a detail.

    `named` is the probability, 0 to 1, that it names the look.
    """
    chinese = rng.random() < 0.6
    parts = [caption(scene, chinese=chinese, verb=rng.choice(list(VERBS)) if rng.random() < 0.4 else None)]
    if named == 1 or rng.random() < named:
        parts += [_say(LOOKS, name, chinese) for name in LOOKS if getattr(look, name)]
    if rng.random() < 0.3:
        parts.insert(0, _say(KINDS, rng.choice(list(KINDS)), chinese))
    if rng.random() < 0.3:
        parts.append(_say(DETAIL, rng.choice(list(DETAIL)), chinese))
    return ("，" if chinese else ", ").join(parts)


def draw(scene: Scene, look: Look = FLAT) -> np.ndarray:
    """Paint a scene -> uint8 (128, 128, 3)."""
    noise = np.random.RandomState(scene.seed % (1 << 31))
    canvas: np.ndarray = np.ones((SIZE_PX, SIZE_PX, 3), np.float32) * np.array(PAPER_RGB, np.float32)
    pigment = _cloud(noise, 7) * 0.6 + _cloud(noise, 16) * 0.5
    for index, (brush, rgb) in enumerate(_layers(scene)):
        stencil = Image.new("L", (SIZE_PX * SUPERSAMPLE,) * 2)
        brush(ImageDraw.Draw(stencil))
        stencil = stencil.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX)
        colour = np.array(rgb, np.float32) / 255
        canvas = _lay(canvas, stencil, colour, np.roll(pigment, 17 * index, 0), look, background=index == 0)
    if look.margin:
        canvas = _paper_margin(canvas, noise, look.margin)
    return (np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def degrade(pixels: np.ndarray, rng: random.Random) -> tuple[np.ndarray, float]:
    """Spoil an image at random -> (uint8 image, severity from 0.2 to 1)."""
    severity = rng.uniform(0.2, 1)
    kind = rng.choice(["blur", "noise", "pale", "dark", "mixed"])
    image: np.ndarray = pixels.astype(np.float32)
    if kind in ("blur", "mixed"):
        blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.8 + 5 * severity))
        image = np.asarray(blurred, np.float32)
    if kind in ("noise", "mixed"):
        grain = np.random.RandomState(rng.randrange(1 << 30)).standard_normal(
            (rng.choice([128, 32, 16]),) * 2 + (3,)
        )
        planes = [
            np.asarray(Image.fromarray(grain[..., c].astype(np.float32)).resize((SIZE_PX, SIZE_PX)))
            for c in range(3)
        ]
        image = image + np.stack(planes, -1) * (12 + 60 * severity)
    if kind == "pale":
        image = image * (1 - 0.8 * severity) + 225 * 0.8 * severity
    if kind == "dark":
        image = image * (1 - 0.8 * severity)
    return np.clip(image, 0, 255).astype(np.uint8), severity


def _cloud(noise: np.random.RandomState, cells: int) -> np.ndarray:
    """Smooth noise of standard deviation 1 -> (128, 128)."""
    coarse = Image.fromarray(noise.standard_normal((cells, cells)).astype(np.float32))
    fine = np.asarray(coarse.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC))
    return fine / (fine.std() + 1e-6)


def _say(translations: dict[str, str], name: str, chinese: bool) -> str:
    return translations[name] if chinese else name


def _lay(
    canvas: np.ndarray,
    stencil: Image.Image,
    colour: np.ndarray,
    pigment: np.ndarray,
    look: Look,
    *,
    background: bool,
) -> np.ndarray:
    """Paint one shape, the stencil's, over the canvas in this look."""
    grey = float(colour @ np.array([0.3, 0.59, 0.11], np.float32))
    faded = (colour * 0.75 + grey * 0.25) * 0.72 + np.array([0.96, 0.88, 0.74], np.float32) * 0.26
    colour = colour * (1 - look.faded) + faded * look.faded
    blurred = np.asarray(stencil.filter(ImageFilter.GaussianBlur(1.0)), np.float32) / 255
    mask = np.asarray(stencil, np.float32) / 255 * (1 - look.soft) + blurred * look.soft
    edge = 4 * blurred * (1 - blurred) * (0 if background else 1)
    shade = 1 + 0.045 * look.washed * pigment - 0.28 * look.outlined * edge
    cover = mask[..., None] * (1 - 0.06 * look.washed)
    return canvas * (1 - cover) + np.clip(colour * shade[..., None], 0, 1) * cover


def _paper_margin(canvas: np.ndarray, noise: np.random.RandomState, strength: float) -> np.ndarray:
    """Leave an uneven rim of paper around the painting."""
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32)
    inside = np.minimum.reduce([x, y, SIZE_PX - 1 - x, SIZE_PX - 1 - y]) - 8 + _cloud(noise, 9) * 0.9
    painted = 1 - (1 - 1 / (1 + np.exp(-inside * 0.9)))[..., None] * strength
    return canvas * painted + (1 - painted) * np.array(PAPER_RGB, np.float32)


def _ellipse(x: float, y: float, rx: float, ry: float) -> Brush:
    box = [v * SUPERSAMPLE for v in (x - rx, y - ry, x + rx, y + ry)]
    return lambda pen: pen.ellipse(box, fill=255)


def _box(x0: float, y0: float, x1: float, y1: float) -> Brush:
    box = [v * SUPERSAMPLE for v in (x0, y0, x1, y1)]
    return lambda pen: pen.rectangle(box, fill=255)


def _polygon(*points: tuple[float, float]) -> Brush:
    scaled = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
    return lambda pen: pen.polygon(scaled, fill=255)


def _dome(x: float, y: float, rx: float, ry: float) -> Brush:
    """The upper half of an ellipse."""
    box = [v * SUPERSAMPLE for v in (x - rx, y - ry, x + rx, y + ry)]
    return lambda pen: pen.pieslice(box, 180, 360, fill=255)


def _layers(scene: Scene) -> list[Layer]:
    rng = random.Random(scene.seed)
    ground_y = 112 + rng.uniform(-3, 3)
    thing_x = (31 if scene.left else 97) + rng.uniform(-4, 4)
    girl_x = (88 if scene.left else 40) + rng.uniform(-5, 5)
    return [
        *_place(scene.place, rng, ground_y - 28),
        *_thing(scene.thing, thing_x, ground_y),
        *_girl(scene, girl_x, ground_y + 6, rng.uniform(0.95, 1.07)),
    ]


def _place(place: str, rng: random.Random, horizon: float) -> list[Layer]:
    everything, right, bottom = _box(0, 0, SIZE_PX, SIZE_PX), SIZE_PX, SIZE_PX
    shift = rng.uniform(-4, 4)
    if place == "meadow":
        return [
            (everything, (120, 200, 250)),
            (_ellipse(30, horizon + 20, 70, 28), (90, 190, 80)),
            (_box(0, horizon + 4, right, bottom), (110, 205, 80)),
        ]
    if place == "sea":
        return [
            (everything, (150, 215, 250)),
            (_box(0, horizon - 22, right, bottom), (20, 110, 190)),
            (_box(0, horizon + 16, right, bottom), (245, 220, 150)),
        ]
    if place == "night":
        stars = [
            (_ellipse(x + rng.uniform(-4, 4), y + rng.uniform(-4, 4), 2.6, 2.6), (255, 250, 200))
            for x, y in ((14, 14), (38, 30), (90, 30), (112, 14), (20, 48), (110, 48))
        ]
        return [
            (everything, (24, 28, 84)),
            (_ellipse(64 + shift, 20, 11, 11), (250, 240, 170)),
            *stars,
            (_box(0, horizon + 6, right, bottom), (35, 64, 64)),
        ]
    if place == "city":
        towers: list[Layer] = []
        x = 0.0
        while x < SIZE_PX:
            width = rng.uniform(17, 26)
            grey = (110, 110, 130) if rng.random() < 0.5 else (85, 90, 115)
            towers.append((_box(x, rng.uniform(24, 62), x + width - 2, bottom), grey))
            x += width
        return [(everything, (250, 190, 140)), *towers, (_box(0, horizon + 10, right, bottom), (70, 70, 80))]
    return [
        (everything, (245, 215, 185)),
        (_box(46 + shift, 10, 82 + shift, 46), (250, 250, 250)),
        (_box(48.5 + shift, 12.5, 62.5 + shift, 43.5), (120, 200, 245)),
        (_box(65.5 + shift, 12.5, 79.5 + shift, 43.5), (120, 200, 245)),
        (_box(0, horizon + 8, right, bottom), (165, 105, 65)),
    ]


def _thing(thing: str, x: float, y: float) -> list[Layer]:
    if thing == "cat":
        fur, eye = (240, 140, 35), (25, 30, 20)
        return [
            (_ellipse(x, y - 13, 15, 15), fur),
            (_ellipse(x, y - 37, 14, 12), fur),
            (_polygon((x - 14, y - 38), (x - 12, y - 57), (x - 1, y - 46)), fur),
            (_polygon((x + 14, y - 38), (x + 12, y - 57), (x + 1, y - 46)), fur),
            (_ellipse(x - 5.5, y - 38, 2.6, 3.2), eye),
            (_ellipse(x + 5.5, y - 38, 2.6, 3.2), eye),
            (_ellipse(x, y - 10, 7, 9), (255, 232, 205)),
        ]
    if thing == "house":
        wall, roof, pane = (245, 235, 215), (200, 50, 45), (110, 190, 235)
        return [
            (_box(x - 20, y - 38, x + 20, y), wall),
            (_polygon((x - 26, y - 36), (x, y - 64), (x + 26, y - 36)), roof),
            (_box(x - 5, y - 20, x + 6, y), (120, 70, 40)),
            (_box(x - 16, y - 32, x - 8, y - 24), pane),
            (_box(x + 9, y - 32, x + 17, y - 24), pane),
        ]
    if thing == "tree":
        leaf = (30, 130, 60)
        return [
            (_box(x - 4, y - 34, x + 4, y), (115, 70, 35)),
            (_ellipse(x - 10, y - 46, 15, 14), leaf),
            (_ellipse(x + 10, y - 46, 15, 14), leaf),
            (_ellipse(x, y - 60, 16, 15), (40, 150, 70)),
        ]
    if thing == "balloon":
        return [
            (_box(x - 1.2, y - 50, x + 1.2, y - 14), (60, 60, 60)),
            (_ellipse(x, y - 66, 17, 20), (235, 50, 80)),
            (_ellipse(x - 6, y - 73, 4.5, 5.5), (255, 170, 185)),
        ]
    return [
        (_box(x - 1.8, y - 50, x + 1.8, y - 6), (90, 60, 40)),
        (_dome(x, y - 50, 26, 26), (240, 90, 160)),
        (_dome(x, y - 50, 9, 26), (255, 190, 220)),
    ]


def _girl(scene: Scene, x: float, y: float, k: float) -> list[Layer]:
    hair, dress, face_y = HAIR_RGB[scene.hair], DRESS_RGB[scene.dress], y - 62 * k
    dark, straw = (30, 25, 30), (230, 190, 110)

    def outline(*points: tuple[float, float]) -> Brush:
        return _polygon(*((x + dx * k, y - dy * k) for dx, dy in points))

    layers: list[Layer] = [
        (_ellipse(x, face_y + 6 * k, 19 * k, 22 * k), hair),
        (_box(x - 7 * k, y - 12 * k, x - 2 * k, y), SKIN_RGB),
        (_box(x + 2 * k, y - 12 * k, x + 7 * k, y), SKIN_RGB),
        (outline((-19, 34), (-5, 44), (-5, 36), (-17, 27)), SKIN_RGB),
        (outline((19, 34), (5, 44), (5, 36), (17, 27)), SKIN_RGB),
        (outline((-7, 47), (7, 47), (20, 9), (-20, 9)), dress),
        (_ellipse(x, face_y, 14 * k, 14.5 * k), SKIN_RGB),
        (_dome(x, face_y - 3 * k, 15.5 * k, 14 * k), hair),
        (_ellipse(x - 5 * k, face_y + 2 * k, 2.3, 3), dark),
        (_ellipse(x + 5 * k, face_y + 2 * k, 2.3, 3), dark),
        (_ellipse(x, face_y + 8.5 * k, 3, 1.5), (215, 80, 80)),
    ]
    if scene.hat:
        layers += [
            (_ellipse(x, face_y - 9 * k, 23 * k, 5 * k), straw),
            (_dome(x, face_y - 10 * k, 13 * k, 14 * k), straw),
            (_box(x - 13 * k, face_y - 13 * k, x + 13 * k, face_y - 9.5 * k), (190, 60, 60)),
        ]
    return layers
