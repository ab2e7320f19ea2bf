"""A remote data set becomes a folder like any other: its columns found, its images' own bytes kept, written
whole.
"""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.data.folder import DataError, read_folder
from core.data.hub import (
    Columns,
    _plain_line,
    as_local_folder,
    choose_columns,
    fetch_dataset,
    rows_of,
    write_folder,
)
from core.data.image import open_image
from core.trial.spec import Data

DATA = Data(source="modelscope:iic/style_custom_dataset", subset="Watercolor")
RED = Image.new("RGB", (8, 6), "red")


def jpeg() -> bytes:
    content = io.BytesIO()
    RED.save(content, "JPEG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"Prompt": "a cat", "Image:FILE": "/somewhere/1.jpg"}, Columns("Image:FILE", "Prompt")),
        ({"Prompt": "a cat", "Target:FILE": "/cache/5f1c0a"}, Columns("Target:FILE", "Prompt")),
        ({"image": RED, "text": "a cat"}, Columns("image", "text")),
        (
            {"id": "7", "image": {"bytes": b"", "path": None}, "prompt": "a cat", "caption": "b"},
            Columns("image", "prompt"),
        ),
        ({"image": RED}, Columns("image", None)),
        ({"image": RED, "label": 3, "words": "a cat"}, Columns("image", "words")),
    ],
)
def test_columns_are_known_by_what_they_hold(row: dict[str, Any], expected: Columns) -> None:
    caption = "{prompt}" if expected.caption else "watercolor style"
    assert choose_columns([row], Data(source=DATA.source, caption=caption)) == expected


def test_an_empty_first_row_does_not_hide_a_column() -> None:
    assert choose_columns([{"image": None, "text": ""}, {"image": RED, "text": "a"}], DATA) == Columns(
        "image", "text"
    )


def test_a_setting_overrides_what_was_found() -> None:
    row = {"image": RED, "mask": RED, "text": "a", "text_zh": "猫"}
    data = Data(source=DATA.source, image_column="mask", text_column="text_zh")
    assert choose_columns([row], data) == Columns("mask", "text_zh")


@pytest.mark.parametrize(
    ("rows", "settings", "reason"),
    [
        ([], {}, "it has no rows"),
        ([{"text": "a"}], {}, r"no column holds images \(found: text\); name one with data.image_column"),
        ([{"image": RED}], {}, r"no column holds captions .* or write data.caption without \{prompt\}"),
        (
            [{"image": RED, "text": "a"}],
            {"text_column": "txet"},
            r"data.text_column is txet, .* \(allowed: image, text\)",
        ),
    ],
)
def test_what_cannot_be_chosen_is_one_clear_line(rows: list, settings: dict, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        choose_columns(rows, Data(source=DATA.source, **settings))


def test_rows_become_a_folder_with_the_images_own_bytes(tmp_path: Path) -> None:
    (tmp_path / "far.webp").write_bytes(b"RIFF")
    rows = [
        {"image": {"bytes": jpeg(), "path": "x/a.JPG"}, "text": '湖边, "quoted"'},
        {"image": RED, "text": None},
        {"image": str(tmp_path / "far.webp"), "text": "b"},
        {"image": str(tmp_path / "none.png"), "text": "c"},
        {"image": RED.convert("CMYK"), "text": "d"},
        {"image": {"bytes": b"junk", "path": None}, "text": "e"},
    ]
    said = write_folder(iter(rows), DATA, tmp_path / "cache" / "made")
    assert said == (
        "modelscope:iic/style_custom_dataset: 6 images from column 'image', captions from 'text' "
        "(columns: image, text)"
    )
    found = read_folder(Data(source=str(tmp_path / "cache" / "made"))).images
    assert [(p.file, p.prompt, p.problem) for p in found] == [
        ("00001.jpg", '湖边, "quoted"', ""),
        ("00002.png", "", "caption is empty"),
        ("00003.webp", "b", ""),
        ("00004.png", "c", "file is missing"),
        ("00005.png", "d", ""),
        ("00006.png", "e", ""),
    ]
    assert {p.subset for p in found} == {"Watercolor"}
    assert found[0].path.read_bytes() == jpeg()
    assert open_image(found[1].path).getpixel((0, 0)) == (255, 0, 0)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["made"]


def test_a_load_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Any:
        yield from [{"image": RED, "text": "a"}] * 30
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        write_folder(rows(), DATA, tmp_path / "cache" / "made")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_stays_as_it_is_and_what_was_not_brought_is_one_line(tmp_path: Path) -> None:
    folder = Data(source=str(tmp_path))
    assert as_local_folder(folder, tmp_path) is folder
    assert fetch_dataset(folder, tmp_path) is None
    with pytest.raises(DataError, match="start the command again to load them"):
        as_local_folder(DATA, tmp_path)


@pytest.mark.skipif(find_spec("datasets") is not None, reason="the package is installed")
def test_a_missing_package_is_named_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"missing; run: \S+ -m pip install -c constraints\.txt -e '\.\[modelscope\]'"
    ):
        fetch_dataset(DATA, tmp_path)


def test_a_local_data_set_goes_through_the_real_loader(tmp_path: Path) -> None:
    """modelscope takes a folder's path too: all but its network is the way of a remote data set."""
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    for number, value in enumerate((40, 90, 200)):
        Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(tmp_path / "set" / f"{number}.png")
    (tmp_path / "set" / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{n}.png,image {n}\n" for n in range(3))
    )
    data = Data(source=f"modelscope:{tmp_path / 'set'}")
    said = fetch_dataset(data, tmp_path / "cache")
    assert said is not None
    assert "3 images from column 'image', captions from 'text'" in said
    assert fetch_dataset(data, tmp_path / "cache") is None
    found = read_folder(as_local_folder(data, tmp_path / "cache")).images
    assert [p.prompt for p in found] == ["image 0", "image 1", "image 2"]
    assert [p.path.read_bytes() for p in found] == [
        (tmp_path / "set" / f"{n}.png").read_bytes() for n in range(3)
    ]


def test_a_table_with_a_file_column_is_read_as_modelscope_s_own_builder_makes_it(tmp_path: Path) -> None:
    """The older kind of data set, a CSV and a zip of images, without the server that names the two."""
    pytest.importorskip("datasets")
    from datasets import DatasetDict
    from modelscope.msdatasets import MsDataset
    from modelscope.msdatasets.download.dataset_builder import CsvDatasetBuilder

    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "a.jpg").write_bytes(jpeg())
    (tmp_path / "train.csv").write_text("Image:FILE,Prompt\na.jpg,一只鹤\n", encoding="utf-8")
    builder = CsvDatasetBuilder.__new__(CsvDatasetBuilder)
    builder.csv_delimiter, builder.csv_engine, builder.split_path_dict = (
        ",",
        None,
        {"train": str(tmp_path / "unpacked")},
    )
    table = builder._convert_csv_to_dataset("train", str(tmp_path / "train.csv"))
    found = MsDataset.to_ms_dataset(DatasetDict({"train": table}))
    said = write_folder(rows_of(found), DATA, tmp_path / "made")
    assert "1 images from column 'Image:FILE', captions from 'Prompt'" in said
    (image,) = read_folder(Data(source=str(tmp_path / "made"))).images
    assert (image.prompt, image.path.read_bytes()) == ("一只鹤", jpeg())


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no route to http://ann:S3/CRET@proxy:1\nmore", "no route to ...@proxy:1"),
        ("port 'CRET' is no number", None),
        ("Cannot connect to 'https://oauth2:T0KEN@host/x'", "Cannot connect to '...@host/x'"),
        ("not found", "not found"),
        ("", "OSError"),
    ],
)
def test_what_a_loader_says_holds_no_login(said, shown, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://ann:S3/CRET@proxy:1")
    assert _plain_line(OSError(said)) == (
        shown or "OSError, whose text is not shown: it holds parts of a proxy's login"
    )
