"""Write the demo's data set: `python -m core.tiny.demo_data DIR`.

Thirty watercolours as a contestant might collect them: mixed sizes and shapes, a few that the filters should
drop (small, wide, spoiled), one image twice and one broken file.
"""

import csv
import io
import random
import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image

from core.files.files import write_text
from core.tiny import scenes

SEED = 77
SPOILING_SEED = 3600  # gives three different kinds, each severe
GOOD_SIZES_PX = (128, 128, 160, 192, 256)


def main() -> None:
    """Write DIR/train with the images and metadata.csv; the same files at each call."""
    train = Path(sys.argv[1]) / "train"
    train.mkdir(parents=True, exist_ok=True)
    rows = [("file_name", "text"), *write_images(train, random.Random(SEED))]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    # with a byte order mark, as spreadsheet programs write it
    write_text(train / "metadata.csv", "\N{ZERO WIDTH NO-BREAK SPACE}" + table.getvalue())


def write_images(train: Path, rng: random.Random) -> list[tuple[str, str]]:
    """Write 30 files into `train`, return their rows of metadata.csv."""
    kinds = ["good"] * 20 + ["small"] * 3 + ["wide"] * 2 + ["spoiled"] * 3 + ["repeated", "broken"]
    rows: list[tuple[str, str]] = []
    for number, kind in enumerate(kinds, start=1):
        name = f"{number:02d}.png"
        scene = _even_scene(rng, number)
        image = Image.fromarray(scenes.draw(scene, scenes.watercolour(rng.uniform(0.9, 1.0))))
        if kind == "good":
            size = rng.choice(GOOD_SIZES_PX)
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        elif kind == "small":
            image = image.resize((80, 80), Image.Resampling.LANCZOS)
        elif kind == "wide":
            image = image.crop((0, 30, 128, 98)).resize((256, 136), Image.Resampling.LANCZOS)
        elif kind == "spoiled":
            painted = scenes.draw(scene, scenes.watercolour(1.0))
            image = Image.fromarray(scenes.degrade(painted, random.Random(SPOILING_SEED + number))[0])
        image.save(train / name)
        if kind == "repeated":
            (train / name).write_bytes((train / rows[2][0]).read_bytes())
        if kind == "broken":
            content = (train / name).read_bytes()
            (train / name).write_bytes(content[: len(content) // 3])
        caption = rows[2][1] if kind == "repeated" else scenes.caption(scene, chinese=rng.random() < 0.5)
        rows.append((name, caption))
    return rows


def _even_scene(rng: random.Random, number: int) -> scenes.Scene:
    """A random scene with place and thing in turn, so that few images cover all of them, day and night."""
    places, things = list(scenes.PLACES), list(scenes.THINGS)
    thing = things[(number // 5 + number) % 5]
    return replace(scenes.random_scene(rng), place=places[number % 5], thing=thing)


if __name__ == "__main__":
    main()
