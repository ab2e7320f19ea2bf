"""A data folder is read as the field writes it, in each of its layouts."""
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from core.data_folder import DataError, caption_of, read_folder
from core.settings import Data


def folder_with(root: Path, table: str, *, encoding: str = "utf-8", name: str = "train/metadata.csv") -> Data:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(table, encoding=encoding)
    return Data(source=str(root))


def pictures_in(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def problems(data: Data) -> dict[str, str]:
    return {picture.file: picture.problem for picture in read_folder(data).pictures}


def one_line(data: Data) -> str:
    with pytest.raises(DataError) as raised:
        read_folder(data)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_is_read_with_or_without_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    rows = read_folder(folder_with(tmp_path, "file_name,text\n1.png,湖边的小画家\n", encoding=encoding)).pictures
    assert [(row.file, row.prompt, row.path) for row in rows] == [("1.png", "湖边的小画家", tmp_path / "train" / "1.png")]


def test_a_caption_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    row, = read_folder(folder_with(tmp_path, 'file_name,text\n1.png,"a ""red"" hat,\non a cat"\n')).pictures
    assert row.prompt == 'a "red" hat,\non a cat'


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    row, = read_folder(folder_with(tmp_path, "text,extra,file_name\na cat,9,1.png\n")).pictures
    assert (row.file, row.prompt) == ("1.png", "a cat")


def test_a_folder_without_anything_is_one_line(tmp_path: Path) -> None:
    assert "holds no pictures (allowed: metadata.csv or metadata.jsonl" in one_line(Data(source=str(tmp_path)))
    assert "there is no such folder" in one_line(Data(source=str(tmp_path / "gone")))


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


@pytest.mark.parametrize("name", ["metadata.csv", "train/metadata.csv"])
def test_a_table_may_lie_in_the_folder_or_in_train(tmp_path: Path, name: str) -> None:
    row, = read_folder(folder_with(tmp_path, "file_name,text\n1.png,a\n", name=name)).pictures
    assert row.path == (tmp_path / name).parent / "1.png"


@pytest.mark.parametrize("name", ["metadata.jsonl", "train/metadata.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_lines_are_read(tmp_path: Path, name: str, encoding: str) -> None:
    lines = [{"file_name": "1.png", "text": "湖边\u2028的猫"}, {"text": 7, "file_name": "2.png", "subset": "sketch"}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    rows = read_folder(folder_with(tmp_path, text, name=name, encoding=encoding)).pictures
    assert [(row.file, row.prompt, row.subset) for row in rows] == [("1.png", "湖边\u2028的猫", ""), ("2.png", "7", "sketch")]


@pytest.mark.parametrize("line", ["{", "[1]", "null", "[" * 100_000])
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, line: str) -> None:
    data = folder_with(tmp_path, '{"file_name": "1.png", "text": "a"}\n' + line, name="metadata.jsonl")
    assert one_line(data).endswith("metadata.jsonl: line 2 is no JSON object")


def test_a_caption_without_end_is_one_clear_line(tmp_path: Path) -> None:
    assert "is no CSV after line 1" in one_line(folder_with(tmp_path, f"file_name,text\n1.png,{'x' * 200_000}\n"))


def test_words_that_fell_into_two_cells_are_named_by_line(tmp_path: Path) -> None:
    line = one_line(folder_with(tmp_path, "file_name,text\n1.png,a cat\n2.png,a boat, at sea\n"))
    assert line.endswith("metadata.csv: line 3 has more cells than columns; quote a caption that has a comma")


def test_a_quote_without_end_swallows_no_rows(tmp_path: Path) -> None:
    assert "is no CSV after line" in one_line(folder_with(tmp_path, 'file_name,text\n1.png,"a cat\n2.png,a dog\n'))


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    data = folder_with(tmp_path, "image,prompt\n1.png,a cat\n")
    row, = read_folder(Data(source=data.source, image_column="image", text_column="prompt")).pictures
    assert (row.file, row.prompt) == ("1.png", "a cat")
    assert "data.image_column can name another" in one_line(data)


def test_a_style_alone_needs_no_column_of_words(tmp_path: Path) -> None:
    data = folder_with(tmp_path, "file_name\n1.png\n")
    row, = read_folder(Data(source=data.source, caption="watercolor style")).pictures
    assert row.file == "1.png"


def test_each_picture_may_have_a_text_beside_it(tmp_path: Path) -> None:
    pictures_in(tmp_path, "b.JPG", "a.png", "c.png", "d.png", ".hidden.png")
    (tmp_path / "a.txt").write_text("一只猫\n", encoding="utf-8-sig")
    (tmp_path / "b.txt").write_text(" a dog ")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    rows = read_folder(Data(source=str(tmp_path))).pictures
    assert [(row.file, row.prompt, row.problem) for row in rows] == [
        ("a.png", "一只猫", ""), ("b.JPG", "a dog", ""), ("c.png", "", "caption c.txt is not UTF-8"),
        ("d.png", "", "caption is missing (there is no d.txt)")]


@pytest.mark.parametrize(("name", "row"), [("metadata.csv", "file_name,text\n./a.png,a cat\n"),
                                         ("metadata.jsonl", '{"file_name": "a.png", "text": "a cat"}\n')])
def test_a_picture_that_the_table_forgets_is_named(tmp_path: Path, name: str, row: str) -> None:
    data = folder_with(tmp_path, row, name=f"train/{name}")
    pictures_in(tmp_path / "train", "a.png", "b/湖边.png")
    assert [(p.problem, p.in_table) for p in read_folder(data).pictures] == [("", True), (f"{name} does not name it", False)]


def test_pictures_alone_are_enough_for_a_style_alone(tmp_path: Path) -> None:
    pictures_in(tmp_path / "train", "2.png", "1.webp")
    assert problems(Data(source=str(tmp_path), caption="watercolor style")) == {"1.webp": "", "2.png": ""}
    assert "holds pictures but no captions; write a .txt beside each" in one_line(Data(source=str(tmp_path)))


def test_a_subset_is_the_sub_folder_or_the_table_s_column(tmp_path: Path) -> None:
    pictures_in(tmp_path / "a", "top.png", "anime/1.png", "sketch/1.png", "deep/er/1.png")
    rows = read_folder(Data(source=str(tmp_path / "a"), caption="style")).pictures
    assert {row.file: row.subset for row in rows} == {"top.png": "", "anime/1.png": "anime", "sketch/1.png": "sketch",
                                                      "deep/er/1.png": "deep/er"}
    table = folder_with(tmp_path / "b", "file_name,text,subset\nx/1.png,a,anime\n")
    assert [row.subset for row in read_folder(table).pictures] == ["anime"]
    table = folder_with(tmp_path / "c", "file_name,text\nx/1.png,a\n")
    assert [row.subset for row in read_folder(table).pictures] == ["x"]


def test_pictures_beside_a_folder_train_are_not_hidden_by_it(tmp_path: Path) -> None:
    pictures_in(tmp_path, "train/1.png", "boats/2.png")
    rows = read_folder(Data(source=str(tmp_path), caption="style")).pictures
    assert {row.file: row.subset for row in rows} == {"train/1.png": "train", "boats/2.png": "boats"}


def test_what_a_sweep_drew_is_no_data(tmp_path: Path) -> None:
    pictures_in(tmp_path, "1.png", "runs/mine/trials/0000/story/1.png")
    (tmp_path / "runs" / "mlflow.lock").touch()
    assert [row.file for row in read_folder(Data(source=str(tmp_path), caption="style")).pictures] == ["1.png"]


def test_names_with_spaces_quotes_and_chinese_are_read(tmp_path: Path) -> None:
    names = ["a b.png", "湖边.png", "it's \"q\".png", "50%.png", "a,b.png"]
    pictures_in(tmp_path / "train", *names)
    lines = "".join(f"{json.dumps({'file_name': name, 'text': 'x'})}\n" for name in names)
    assert problems(folder_with(tmp_path, lines, name="train/metadata.jsonl")) == dict.fromkeys(names, "")


def test_what_is_no_file_of_the_folder_says_why(tmp_path: Path) -> None:
    pictures_in(tmp_path, "secret.png", "data/train/good.png")
    (tmp_path / "data" / "train" / "folder.png").mkdir()
    os.symlink(tmp_path / "secret.png", tmp_path / "data" / "train" / "link.png")
    os.symlink("loop.png", tmp_path / "data" / "train" / "loop.png")
    outside = ["../../secret.png", str(tmp_path / "secret.png"), "link.png"]
    names = ["good.png", "folder.png", "absent.png", "loop.png", "x" * 300 + ".png", "nul\0.png", "half\ud800.png", *outside]
    lines = "".join(f"{json.dumps({'file_name': name, 'text': 'x'})}\n" for name in [*names, ""])
    assert problems(folder_with(tmp_path / "data", lines, name="train/metadata.jsonl")) == {
        "good.png": "", "folder.png": "is no file", "absent.png": "file is missing", "loop.png": "file is missing",
        "x" * 300 + ".png": "no file can have its name", "nul\0.png": "no file can have its name",
        "half?.png": "file is missing", "row 11": "file name is empty"} | dict.fromkeys(outside, "lies outside the data folder")


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    pictures_in(tmp_path / "data" / "all", "1.png")
    data = folder_with(tmp_path / "data", "file_name,text\nlink.png,a\n../all/1.png,b\n")
    os.symlink("../all/1.png", tmp_path / "data" / "train" / "link.png")
    os.symlink(tmp_path / "data", tmp_path / "short")
    assert problems(Data(source=str(tmp_path / "short"))) == problems(data) == {"link.png": "", "../all/1.png": ""}


def test_a_name_that_is_not_utf_8_is_told_as_far_as_it_can_be(tmp_path: Path) -> None:
    pictures_in(tmp_path, "1.png")
    os.rename(tmp_path / "1.png", os.fsencode(tmp_path) + b"/\xff.png")
    assert problems(Data(source=str(tmp_path), caption="style")) == {"?.png": "its name is not UTF-8"}
