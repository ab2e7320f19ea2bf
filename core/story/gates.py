"""Five gates that a measure passes before it is believed, tried on sets of images whose answer is known."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from core.backbone.backbone import Backbone
from core.story.measures import Embedded, embed, measure

Images = Sequence[Image.Image]
Embed = Callable[[Images], Embedded]
GATES = {  # name -> heading
    "pair": "right against wrong",
    "seed": "another seed",
    "half": "half wrong",
    "file": "PNG and JPEG",
    "tone": "darker tone",
}
RISES = ("style_gain", "scene_kept")  # greater where all is well; the other measures are smaller there
STYLE_IMAGES = 24  # that are used at most
# of the way from right to wrong; half the images make a quarter of the pairs
TIE, FOUND, SAME_FILE, SAME_TONE = 0.1, 0.1, 0.02, 0.1


@dataclass(frozen=True, slots=True)
class Planted:
    """Stories of which one measure must tell `right` from `wrong`."""

    right: Images
    wrong: Images

    @property
    def half(self) -> Images:
        """Every second image wrong."""
        pairs = enumerate(zip(self.right, self.wrong, strict=True))
        return [wrong if number % 2 else right for number, (right, wrong) in pairs]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gated:
    """What one measure did at the gates: its values, then what it moved by, in shares of their distance.

    `seed`: between the base model's stories of two other seeds; `half`: from the right story to one with
    every second image wrong; `file` and `tone`: by writing and reading a story, and by darkening it, at most.
    """

    measure: str
    right: float
    wrong: float
    seed: float
    half: float
    file: float
    tone: float

    @property
    def passes(self) -> dict[str, bool]:
        """For each of GATES whether it is passed."""
        apart = self.right > self.wrong if self.measure in RISES else self.right < self.wrong
        return {
            "pair": apart,
            "seed": self.seed <= TIE,
            "half": self.half >= max(FOUND, 2 * self.seed),
            "file": self.file <= SAME_FILE,
            "tone": self.tone <= SAME_TONE,
        }

    @property
    def sound(self) -> bool:
        """Whether all gates are passed."""
        return all(self.passes.values())


def plant(base: Images, other: Images, style: Images) -> dict[str, Planted]:
    """For each measure a right story and a wrong one, as long as the base model's.

    `other` is the base model's story from other seeds; of `style` the images at odd places are references.
    """
    half = len(other) // 2
    unseen, known = (list(islice(cycle(part), len(base))) for part in (style[::2], style[1::2]))
    return {
        "style_gain": Planted(unseen, base),
        "scene_kept": Planted(other, [*other[half:], *other[:half]]),
        "sameness": Planted(other, [other[0]] * len(other)),
        "copy_risk": Planted(unseen, known),
        "clipped": Planted(unseen, [ImageEnhance.Brightness(image).enhance(1.8) for image in unseen]),
        "saturation": Planted(unseen, [ImageEnhance.Color(image).enhance(1.8) for image in unseen]),
        "sharpness": Planted(unseen, [image.filter(ImageFilter.UnsharpMask(2, 200, 0)) for image in unseen]),
    }


def try_gates(embed_all: Embed, base: Images, seeds: tuple[Images, Images], style: Images) -> list[Gated]:
    """Try every measure on the base model's story, two of other seeds, and at least four style images."""
    style = style[:STYLE_IMAGES]
    reference = embed_all(base)
    known = embed_all(style[1::2])

    def try_one(name: str, planted: Planted) -> Gated:
        def value(story: Images) -> float:
            return float(getattr(measure(embed_all(story), reference, known, known), name))

        def change(alter: Callable[[Image.Image], Image.Image]) -> float:
            pairs = ((value([*map(alter, story)]), value(story)) for story in (planted.right, planted.wrong))
            return max(abs(after - before) for after, before in pairs)

        right, wrong = value(planted.right), value(planted.wrong)
        distance = abs(right - wrong) or np.finfo(float).eps
        return Gated(
            measure=name,
            right=right,
            wrong=wrong,
            seed=abs(value(seeds[0]) - value(seeds[1])) / distance,
            half=abs(value(planted.half) - right) / distance,
            file=max(change(as_png), change(as_jpeg)) / distance,
            tone=change(darker) / distance,
        )

    return [try_one(name, planted) for name, planted in plant(base, seeds[0], style).items()]


def embedder(backbone: Backbone) -> Embed:
    """`measures.embed`, with a forward pass only for images that it was not given before."""
    seen: dict[bytes, Embedded] = {}

    def once(image: Image.Image) -> Embedded:
        key = hashlib.sha256(image.tobytes()).digest() + bytes(str(image.size), "ascii")
        if key not in seen:
            seen[key] = embed(backbone, [image])
        return seen[key]

    return lambda images: Embedded.joined([once(image) for image in images])


def other_seeds(base: Images) -> tuple[Images, Images]:
    """Stand-ins for the base model's stories of other seeds, which take a GPU to draw: two framings."""

    def framed(image: Image.Image, corner: int) -> Image.Image:
        width, height = image.size
        left, top = corner * width // 32, corner * height // 32
        inner = (left, top, left + width * 31 // 32, top + height * 31 // 32)
        return image.resize(image.size, Image.Resampling.BICUBIC, inner)

    return [framed(image, 0) for image in base], [framed(image, 1) for image in base]


def darker(image: Image.Image) -> Image.Image:
    """The same image, every level 8 % lower."""
    return ImageEnhance.Brightness(image).enhance(0.92)


def as_png(image: Image.Image) -> Image.Image:
    """The image as written and read back."""
    return _read_back(image, "PNG")


def as_jpeg(image: Image.Image) -> Image.Image:
    """The image as written in quality 95 and read back."""
    return _read_back(image, "JPEG")


def _read_back(image: Image.Image, kind: str) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, quality=95)
    return Image.open(file).convert("RGB")
