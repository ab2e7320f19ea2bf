"""A data folder is read as the field writes it, and every picture that cannot be used says why."""
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from core.cache import Cache
from core.dataset import audit, caption_of, open_picture, read_folder
from core.filters import select, why_dropped
from core.settings import Data, Filters
from tests.conftest import STUDIES


def folder_with(root: Path, table: str, *, encoding: str = "utf-8") -> Data:
    (root / "train").mkdir(parents=True)
    (root / "train" / "metadata.csv").write_text(table, encoding=encoding)
    return Data(source=str(root))


def picture(path: Path, colour: tuple[int, ...] = (200, 40, 40), size: tuple[int, int] = (64, 48)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def brightness(image: Image.Image) -> float:
    """A stand-in for a scorer: the audit takes any number."""
    return float(np.asarray(image).mean()) / 25.5


def problems(data: Data, cache: Cache) -> dict[str, str]:
    table = audit(data, cache, brightness, "brightness")
    return dict(zip(table["file"], table["problem"], strict=True))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_is_read_with_or_without_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    rows = read_folder(folder_with(tmp_path, "file_name,text\n1.png,湖边的小画家\n", encoding=encoding))
    assert [(row.file, row.prompt, row.path) for row in rows] == [("1.png", "湖边的小画家", tmp_path / "train" / "1.png")]


def test_a_caption_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    row, = read_folder(folder_with(tmp_path, 'file_name,text\n1.png,"a ""red"" hat,\non a cat"\n'))
    assert row.prompt == 'a "red" hat,\non a cat'


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    row, = read_folder(folder_with(tmp_path, "text,extra,file_name\na cat,9,1.png\n"))
    assert (row.file, row.prompt) == ("1.png", "a cat")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metadata\.csv: not found") as raised:
        read_folder(Data(source=str(tmp_path)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("table", "column"), [("file_name,caption\n1.png,a\n", "text"), ("image,text\n1.png,a\n", "file_name"),
                                               ("", "file_name")])
def test_a_missing_column_is_named(tmp_path: Path, table: str, column: str) -> None:
    with pytest.raises(ValueError, match=rf"metadata\.csv: column {column} is missing") as raised:
        read_folder(folder_with(tmp_path, table))
    assert "\n" not in str(raised.value)


def test_a_table_that_is_not_utf_8_is_one_clear_line(tmp_path: Path) -> None:
    data = folder_with(tmp_path, "file_name,text\n1.png,湖边\n", encoding="gbk")
    with pytest.raises(ValueError, match=r"metadata\.csv") as raised:
        read_folder(data)
    assert "\n" not in str(raised.value)


def test_the_caption_template_stands_around_the_prompt() -> None:
    assert caption_of("a {cat}", "{prompt}, watercolor style") == "a {cat}, watercolor style"


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


def test_the_audit_says_what_a_picture_is(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(tmp_path, "file_name,text\n1.png,a cat\n")
    path = picture(tmp_path / "train" / "1.png")
    row = audit(data, cache, brightness, "brightness").iloc[0]
    assert (row["width"], row["height"], row["size"], row["problem"]) == (64, 48, path.stat().st_size, "")
    assert row["ratio"] == pytest.approx(4 / 3)
    assert row["score"] == pytest.approx(280 / 3 / 25.5)
    assert row["caption"] == "a cat"


def test_what_cannot_be_used_says_why(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(tmp_path / "data", "file_name,text\ngood.png,a\nabsent.png,a\nmute.png,\ntext.png,a\n"
                                          "../../out.png,a\n,a\n")
    for name in ("good.png", "mute.png"):
        picture(tmp_path / "data" / "train" / name)
    picture(tmp_path / "out.png")
    (tmp_path / "data" / "train" / "text.png").write_text("no picture")
    found = problems(data, cache)
    assert found == {"good.png": "", "absent.png": "file is missing", "mute.png": "caption is empty",
                     "text.png": "cannot be read: UnidentifiedImageError",
                     "../../out.png": "lies outside the data folder", "": "file is missing"}


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(tmp_path / "data", "file_name,text\nlink.png,a\n")
    picture(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "data" / "train" / "link.png")
    assert problems(data, cache) == {"link.png": "lies outside the data folder"}


def test_an_empty_caption_is_no_problem_where_the_template_wants_none(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(tmp_path, "file_name,text\n1.png,\n")
    picture(tmp_path / "train" / "1.png")
    assert problems(Data(source=data.source, caption="watercolor style"), cache) == {"1.png": ""}


def test_a_folder_of_broken_pictures_is_dropped_whole(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(tmp_path, "file_name,text\n1.png,a\n2.png,b\n")
    table = audit(data, cache, brightness, "brightness")
    assert list(why_dropped(table, Filters(max_images=1))) == ["file is missing"] * 2


def test_a_table_without_rows_keeps_nothing(tmp_path: Path, cache: Cache) -> None:
    table = audit(folder_with(tmp_path, "file_name,text\n"), cache, brightness, "brightness")
    assert len(select(table, Filters(max_images=1))) == 0


def test_a_second_audit_scores_nothing_anew(tmp_path: Path, data: Data) -> None:
    seen: list[int] = []

    def count(image: Image.Image) -> float:
        seen.append(1)
        return 5.0

    first = audit(data, Cache(tmp_path), count, "count")
    scored = len(seen)
    again = Cache(tmp_path)  # as the next process opens it
    pd.testing.assert_frame_equal(audit(data, again, count, "count"), first)
    assert len(seen) == scored == 28  # the twin and the broken file are not scored
    assert again.encoded == {}


def test_another_scorer_scores_anew(tmp_path: Path, data: Data) -> None:
    cache = Cache(tmp_path)
    audit(data, cache, lambda image: 5.0, "one")
    assert set(audit(data, cache, lambda image: 6.0, "other")["score"].dropna()) == {6.0}


def test_the_demo_s_broken_file_is_named_and_its_twin_dropped(table: pd.DataFrame) -> None:
    reasons = dict(zip(table["file"], why_dropped(table, Filters()), strict=True))
    assert reasons["30.png"].startswith("cannot be read")
    assert (reasons["29.png"], reasons["03.png"]) == ("image_deduplicator", "")
    assert len(table) == 30


def test_the_demo_s_filters_drop_what_they_are_there_for(table: pd.DataFrame) -> None:
    reasons = list(why_dropped(table, Filters(min_width=96, max_ratio=1.6)))
    assert reasons[20:23] == ["image_shape_filter"] * 3
    assert reasons[23:25] == ["image_aspect_ratio_filter"] * 2


def test_the_demo_s_spoiled_pictures_score_below_its_good_ones(table: pd.DataFrame) -> None:
    scores = table["score"].astype(float).to_numpy()
    print(f"\ngood {scores[:20].min():.2f} to {scores[:20].max():.2f}, spoiled {scores[25:28].round(2)}")
    assert scores[25:28].mean() < scores[:20].min()
    assert scores[:20].mean() > 6


def test_the_demo_s_search_over_min_score_reaches_spoiled_pictures_and_no_good_one(table: pd.DataFrame) -> None:
    study = yaml.safe_load((STUDIES / "demo.yaml").read_text(encoding="utf-8"))
    reasons = why_dropped(table, Filters(min_score=study["space"]["min_score"]["high"]))
    assert "image_aesthetics_filter" in list(reasons[25:28])
    assert set(reasons[:20]) == {""}
