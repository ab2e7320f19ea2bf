"""The audit says what each image is, once, and of every one that cannot be used why."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from core.backbone.backbone import Backbone
from core.data.audit import audit, bad_images
from core.data.filters import select, why_dropped
from core.files.cache import Cache
from core.story.score import rate
from core.trial.spec import Data, Filters
from tests.conftest import STUDIES


def folder_with(root: Path, table: str, *, encoding: str = "utf-8") -> Data:
    (root / "train").mkdir(parents=True)
    (root / "train" / "metadata.csv").write_text(table, encoding=encoding)
    return Data(source=str(root))


def image(path: Path, colour: tuple[int, ...] = (200, 40, 40), size: tuple[int, int] = (64, 48)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def brightness(image: Image.Image) -> float:
    """A stand-in for a scorer: the audit takes any number."""
    return float(np.asarray(image).mean()) / 25.5


def problems(data: Data, cache: Cache) -> dict[str, str]:
    table = audit(data, cache, brightness, "brightness")
    return dict(zip(table["file"], table["problem"], strict=True))


def test_the_audit_says_what_an_image_is(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(tmp_path, "file_name,text\n1.png,a cat\n")
    path = image(tmp_path / "train" / "1.png")
    row = audit(data, cache, brightness, "brightness").iloc[0]
    assert (row["width"], row["height"], row["size"], row["problem"]) == (64, 48, path.stat().st_size, "")
    assert row["ratio"] == pytest.approx(4 / 3)
    assert row["score"] == pytest.approx(280 / 3 / 25.5)
    assert row["caption"] == "a cat"


def test_what_cannot_be_used_says_why(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(
        tmp_path / "data",
        "file_name,text\ngood.png,a\nabsent.png,a\nmute.png,\ntext.png,a\n../../out.png,a\n,a\n",
    )
    for name in ("good.png", "mute.png"):
        image(tmp_path / "data" / "train" / name)
    image(tmp_path / "out.png")
    (tmp_path / "data" / "train" / "text.png").write_text("no image")
    found = problems(data, cache)
    assert found == {
        "good.png": "",
        "absent.png": "file is missing",
        "mute.png": "caption is empty",
        "text.png": "cannot be read: it is no image",
        "../../out.png": "lies outside the data folder",
        "row 6": "file name is empty",
    }


def test_an_empty_caption_is_no_problem_where_the_template_wants_none(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(tmp_path, "file_name,text\n1.png,\n")
    image(tmp_path / "train" / "1.png")
    assert problems(Data(source=data.source, caption="watercolor style"), cache) == {"1.png": ""}


def test_a_folder_of_broken_images_is_dropped_whole(tmp_path: Path, cache: Cache) -> None:
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
    assert len(seen) == scored == 28  # the repeated and the broken file are not scored
    assert again.encoded == {}


def test_only_images_that_are_new_are_looked_at(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(tmp_path, "file_name,text\n1.png,a\n2.png,b\n3.png,c\n")
    for name, colour in (("1.png", (9, 9, 9)), ("2.png", (99, 99, 99))):
        image(tmp_path / "train" / name, colour)
    looked: list[tuple[int, int]] = []

    def audit_now() -> pd.DataFrame:
        return audit(
            data,
            cache,
            brightness,
            "brightness",
            looking=lambda number, total: looked.append((number, total)),
        )

    audit_now()
    image(tmp_path / "train" / "3.png", (200, 200, 200))
    assert list(audit_now()["problem"]) == ["", "", ""]
    assert looked == [(1, 3), (2, 3)] * 2 + [(3, 3)] * 2


def test_a_file_that_was_changed_is_looked_at_again(tmp_path: Path, cache: Cache) -> None:
    data = folder_with(tmp_path, "file_name,text\n1.png,a\n")
    image(tmp_path / "train" / "1.png")
    audit(data, cache, brightness, "brightness")
    image(tmp_path / "train" / "1.png", size=(32, 16))
    row = audit(data, cache, brightness, "brightness").iloc[0]
    assert (row["width"], row["height"]) == (32, 16)


def test_bad_images_are_named_in_one_line_each(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "1.png").touch()
    (tmp_path / "two\nlines\x1b[31m.png").touch()
    data = Data(source=str(tmp_path), caption="style")
    assert bad_images(audit(data, cache, brightness, "brightness")) == {
        "1.png": "cannot be read: it is empty",
        "two?lines?[31m.png": "cannot be read: it is empty",
    }


SIZES = {"good.png": (64, 48), "thin.png": (40, 1), "strip.png": (1, 3000)}


def three_images(folder: Path) -> Data:
    for number, (name, size) in enumerate(SIZES.items()):
        image(folder / name, (50 * number, 9, 9), size)
    return Data(source=str(folder), caption="style")


def test_what_a_scorer_does_not_take_is_that_image_s_reason_today(tmp_path: Path, cache: Cache) -> None:
    def choosy(image: Image.Image) -> float:
        if image.height == 1:
            raise ValueError("mean must have 1 elements\nand more")
        return 5.0

    data = three_images(tmp_path)
    assert problems(data, cache) | {"thin.png": ""} == dict.fromkeys(SIZES, "")
    table = audit(data, cache, choosy, "choosy")
    assert bad_images(table) == {"thin.png": "cannot be processed: mean must have 1 elements"}
    # as after an update of the scorer's library
    assert bad_images(audit(data, cache, lambda image: 5.0, "choosy")) == {}


def test_what_is_raised_for_every_image_is_a_fault_of_the_program(tmp_path: Path, cache: Cache) -> None:
    def broken(image: Image.Image) -> float:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        audit(three_images(tmp_path), cache, broken, "broken")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_trouble_of_the_machine_is_no_image_s_fault(tmp_path: Path, cache: Cache, error: Exception) -> None:
    def greedy(image: Image.Image) -> float:
        if image.height == 1:
            raise error
        return 5.0

    with pytest.raises(type(error)):
        audit(three_images(tmp_path), cache, greedy, "greedy")


def test_shape_ratio_size_and_subset_are_judged_before_an_image_is_scored(
    tmp_path: Path, cache: Cache
) -> None:
    data = three_images(tmp_path)
    scored: list[tuple[int, int]] = []

    def score(image: Image.Image) -> float:
        scored.append(image.size)
        return 5.0

    table = audit(data, cache, score, "score", Filters(min_width=2, max_ratio=3))
    assert scored == [(64, 48)]
    assert dict(zip(table["file"], why_dropped(table, Filters(min_width=2, max_ratio=3)), strict=True)) == {
        "good.png": "",
        "thin.png": "image_aspect_ratio_filter",
        "strip.png": "image_shape_filter",
    }
    audit(data, cache, score, "score", Filters(subset="none"))
    audit(data, cache, score, "score", Filters(min_size=10**6))
    assert scored == [(64, 48)]
    assert audit(data, cache, score, "score")["score"].notna().all()
    assert scored == [(64, 48), (1, 3000), (40, 1)]


def test_the_real_scorer_takes_images_of_any_shape(tmp_path: Path, cache: Cache, backbone: Backbone) -> None:
    table = audit(three_images(tmp_path), cache, lambda image: rate(backbone, image).aesthetic, "tiny")
    assert list(table["problem"]) == [""] * 3
    assert table["score"].between(1, 10).all()


def test_what_was_missed_beside_the_pixels_is_noted_once_with_names(tmp_path: Path, cache: Cache) -> None:
    for number in range(7):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png", icc_profile=b"oops")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "8.png", exif=b"Exif\0\0oops")
    notes: list[str] = []
    for _ in range(2):  # the second time by what was kept
        audit(Data(source=str(tmp_path), caption="style"), cache, brightness, "brightness", note=notes.append)
    assert (
        notes
        == [
            "colour profile cannot be read: taken as sRGB (0.png, 1.png, 2.png, 3.png, 4.png and 2 more)",
            "EXIF block cannot be read: not rotated (8.png)",
        ]
        * 2
    )


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


def test_the_demo_s_spoiled_images_score_below_its_good_ones(table: pd.DataFrame) -> None:
    scores = table["score"].astype(float).to_numpy()
    print(f"\ngood {scores[:20].min():.2f} to {scores[:20].max():.2f}, spoiled {scores[25:28].round(2)}")
    assert scores[25:28].mean() < scores[:20].min()
    assert scores[:20].mean() > 6


def test_the_demo_s_search_over_min_score_reaches_spoiled_images_and_no_good_one(table: pd.DataFrame) -> None:
    study = yaml.safe_load((STUDIES / "demo.yaml").read_text(encoding="utf-8"))
    reasons = why_dropped(table, Filters(min_score=study["space"]["min_score"]["high"]))
    assert "image_aesthetics_filter" in list(reasons[25:28])
    assert set(reasons[:20]) == {""}
