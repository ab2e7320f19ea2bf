"""The story on one sheet: rows of four images, in order."""

from collections.abc import Sequence

from PIL import Image

COLUMNS = 4
GAP_PX = 4


def story_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """One image that shows all of them, which have the same size, on white with gaps of 4 px."""
    width, height = images[0].size
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new(
        "RGB", (COLUMNS * (width + GAP_PX) - GAP_PX, rows * (height + GAP_PX) - GAP_PX), "white"
    )
    for index, image in enumerate(images):
        sheet.paste(image, (index % COLUMNS * (width + GAP_PX), index // COLUMNS * (height + GAP_PX)))
    return sheet
