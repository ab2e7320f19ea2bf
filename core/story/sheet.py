"""The story on one sheet: rows of four images, in order."""

from collections.abc import Sequence

from PIL import Image

COLUMNS = 4
GAP_PX = 4


def story_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """One image of all pictures, which have the same size, on white with gaps of 4 px."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new(
        "RGB", (COLUMNS * (width + GAP_PX) - GAP_PX, rows * (height + GAP_PX) - GAP_PX), "white"
    )
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % COLUMNS * (width + GAP_PX), index // COLUMNS * (height + GAP_PX)))
    return sheet
