"""A data folder is read as the field writes it, in each of its layouts."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.data.folder import DataError, caption_of, read_folder
from core.trial.spec import Data


def folder_with(root: Path, table: str, *, encoding: str = "utf-8", name: str = "train/metadata.csv") -> Data:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(table, encoding=encoding)
    return Data(source=str(root))


def images_in(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def problems(data: Data) -> dict[str, str]:
    return {image.file: image.problem for image in read_folder(data).images}


def one_line(data: Data) -> str:
    with pytest.raises(DataError) as raised:
        read_folder(data)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_is_read_with_or_without_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    rows = read_folder(
        folder_with(tmp_path, "file_name,text\n1.png,湖边的小画家\n", encoding=encoding)
    ).images
    assert [(row.file, row.prompt, row.path) for row in rows] == [
        ("1.png", "湖边的小画家", tmp_path / "train" / "1.png")
    ]


def test_a_caption_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    (row,) = read_folder(folder_with(tmp_path, 'file_name,text\n1.png,"a ""red"" hat,\non a cat"\n')).images
    assert row.prompt == 'a "red" hat,\non a cat'


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    (row,) = read_folder(folder_with(tmp_path, "text,extra,file_name\na cat,9,1.png\n")).images
    assert (row.file, row.prompt) == ("1.png", "a cat")


def test_paths_are_told_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert one_line(Data(source=str(tmp_path / "gone"))) == "gone: there is no such folder"
    assert one_line(folder_with(tmp_path / "mine", "a;b\n")).startswith("mine/train/metadata.csv: ")
    (tmp_path / "none").mkdir()
    assert one_line(Data(source=str(tmp_path / "none"))).startswith("none: holds no images")
    images_in(tmp_path / "bare", "1.png")
    assert one_line(Data(source=str(tmp_path / "bare"))).startswith("bare: holds images but no captions")


def test_a_folder_without_anything_is_one_line(tmp_path: Path) -> None:
    assert "holds no images (allowed: metadata.csv or metadata.jsonl" in one_line(Data(source=str(tmp_path)))
    assert "there is no such folder" in one_line(Data(source=str(tmp_path / "gone")))


@pytest.mark.parametrize(
    ("table", "column"),
    [("file_name,caption\n1.png,a\n", "text"), ("image,text\n1.png,a\n", "file_name"), ("", "file_name")],
)
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
    (row,) = read_folder(folder_with(tmp_path, "file_name,text\n1.png,a\n", name=name)).images
    assert row.path == (tmp_path / name).parent / "1.png"


@pytest.mark.parametrize("name", ["metadata.jsonl", "train/metadata.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_lines_are_read(tmp_path: Path, name: str, encoding: str) -> None:
    lines = [
        {"file_name": "1.png", "text": "湖边\u2028的猫"},
        {"text": "7", "file_name": "2.png", "subset": "sketch"},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    rows = read_folder(folder_with(tmp_path, text, name=name, encoding=encoding)).images
    assert [(row.file, row.prompt, row.subset) for row in rows] == [
        ("1.png", "湖边\u2028的猫", ""),
        ("2.png", "7", "sketch"),
    ]


@pytest.mark.parametrize("line", ["{", "[1]", "null", "[" * 100_000])
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, line: str) -> None:
    data = folder_with(tmp_path, '{"file_name": "1.png", "text": "a"}\n' + line, name="metadata.jsonl")
    assert one_line(data).endswith("metadata.jsonl: line 2 is no JSON object")


def test_a_caption_without_end_is_one_clear_line(tmp_path: Path) -> None:
    assert "is no CSV after line 1" in one_line(
        folder_with(tmp_path, f"file_name,text\n1.png,{'x' * 200_000}\n")
    )


def test_words_that_fell_into_two_cells_are_named_by_line(tmp_path: Path) -> None:
    line = one_line(folder_with(tmp_path, "file_name,text\n1.png,a cat\n2.png,a boat, at sea\n"))
    assert line.endswith("metadata.csv: line 3 has more cells than columns; quote a caption that has a comma")


def test_a_quote_without_end_swallows_no_rows(tmp_path: Path) -> None:
    assert "is no CSV after line" in one_line(
        folder_with(tmp_path, 'file_name,text\n1.png,"a cat\n2.png,a dog\n')
    )


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    data = folder_with(tmp_path, "image,prompt\n1.png,a cat\n")
    (row,) = read_folder(Data(source=data.source, image_column="image", text_column="prompt")).images
    assert (row.file, row.prompt) == ("1.png", "a cat")
    assert "data.image_column can name another" in one_line(data)


def test_a_style_alone_needs_no_column_of_words(tmp_path: Path) -> None:
    data = folder_with(tmp_path, "file_name\n1.png\n")
    (row,) = read_folder(Data(source=data.source, caption="watercolor style")).images
    assert row.file == "1.png"


def test_each_image_may_have_a_text_beside_it(tmp_path: Path) -> None:
    images_in(tmp_path, "b.JPG", "a.png", "c.png", "d.png", ".hidden.png")
    (tmp_path / "a.txt").write_text("一只猫\n", encoding="utf-8-sig")
    (tmp_path / "b.txt").write_text(" a dog ")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    rows = read_folder(Data(source=str(tmp_path))).images
    assert [(row.file, row.prompt, row.problem) for row in rows] == [
        ("a.png", "一只猫", ""),
        ("b.JPG", "a dog", ""),
        ("c.png", "", "caption c.txt is not UTF-8"),
        ("d.png", "", "caption is missing (there is no d.txt)"),
    ]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("metadata.csv", "file_name,text\n./a.png,a cat\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a cat"}\n'),
    ],
)
def test_an_image_that_the_table_forgets_is_named(tmp_path: Path, name: str, row: str) -> None:
    data = folder_with(tmp_path, row, name=f"train/{name}")
    images_in(tmp_path / "train", "a.png", "b/湖边.png")
    assert [(p.problem, p.in_table) for p in read_folder(data).images] == [
        ("", True),
        (f"{name} does not name it", False),
    ]


def test_images_alone_are_enough_for_a_style_alone(tmp_path: Path) -> None:
    images_in(tmp_path / "train", "2.png", "1.webp")
    assert problems(Data(source=str(tmp_path), caption="watercolor style")) == {"1.webp": "", "2.png": ""}
    assert "holds images but no captions; write a .txt beside each" in one_line(Data(source=str(tmp_path)))


def test_a_subset_is_the_sub_folder_or_the_table_s_column(tmp_path: Path) -> None:
    images_in(tmp_path / "a", "top.png", "anime/1.png", "sketch/1.png", "deep/er/1.png")
    rows = read_folder(Data(source=str(tmp_path / "a"), caption="style")).images
    assert {row.file: row.subset for row in rows} == {
        "top.png": "",
        "anime/1.png": "anime",
        "sketch/1.png": "sketch",
        "deep/er/1.png": "deep/er",
    }
    table = folder_with(tmp_path / "b", "file_name,text,subset\nx/1.png,a,anime\n")
    assert [row.subset for row in read_folder(table).images] == ["anime"]
    table = folder_with(tmp_path / "c", "file_name,text\nx/1.png,a\n")
    assert [row.subset for row in read_folder(table).images] == ["x"]


def test_images_beside_a_folder_train_are_not_hidden_by_it(tmp_path: Path) -> None:
    images_in(tmp_path, "train/1.png", "boats/2.png")
    rows = read_folder(Data(source=str(tmp_path), caption="style")).images
    assert {row.file: row.subset for row in rows} == {"train/1.png": "train", "boats/2.png": "boats"}


def test_what_a_sweep_drew_is_no_data(tmp_path: Path) -> None:
    images_in(tmp_path, "1.png", "runs/mine/trials/0000/story/1.png")
    (tmp_path / "runs" / "mlflow.lock").touch()
    assert [row.file for row in read_folder(Data(source=str(tmp_path), caption="style")).images] == ["1.png"]


def test_names_with_spaces_quotes_and_chinese_are_read(tmp_path: Path) -> None:
    names = ["a b.png", "湖边.png", 'it\'s "q".png', "50%.png", "a,b.png"]
    images_in(tmp_path / "train", *names)
    lines = "".join(f"{json.dumps({'file_name': name, 'text': 'x'})}\n" for name in names)
    assert problems(folder_with(tmp_path, lines, name="train/metadata.jsonl")) == dict.fromkeys(names, "")


def test_what_is_no_file_of_the_folder_says_why(tmp_path: Path) -> None:
    images_in(tmp_path, "secret.png", "data/train/good.png")
    (tmp_path / "data" / "train" / "folder.png").mkdir()
    os.symlink(tmp_path / "secret.png", tmp_path / "data" / "train" / "link.png")
    os.symlink("loop.png", tmp_path / "data" / "train" / "loop.png")
    outside = ["../../secret.png", str(tmp_path / "secret.png"), "link.png"]
    names = [
        "good.png",
        "folder.png",
        "absent.png",
        "loop.png",
        "x" * 300 + ".png",
        "nul\0.png",
        "half\ud800.png",
        *outside,
    ]
    lines = "".join(f"{json.dumps({'file_name': name, 'text': 'x'})}\n" for name in [*names, ""])
    assert problems(folder_with(tmp_path / "data", lines, name="train/metadata.jsonl")) == {
        "good.png": "",
        "folder.png": "is no file",
        "absent.png": "file is missing",
        "loop.png": "file is missing",
        "x" * 300 + ".png": "no file can have its name",
        "nul\0.png": "no file can have its name",
        "half?.png": "file is missing",
        "row 11": "file name is empty",
    } | dict.fromkeys(outside, "lies outside the data folder")


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    images_in(tmp_path / "data" / "all", "1.png")
    data = folder_with(tmp_path / "data", "file_name,text\nlink.png,a\n../all/1.png,b\n")
    os.symlink("../all/1.png", tmp_path / "data" / "train" / "link.png")
    os.symlink(tmp_path / "data", tmp_path / "short")
    assert (
        problems(Data(source=str(tmp_path / "short")))
        == problems(data)
        == {"link.png": "", "../all/1.png": ""}
    )


def test_a_name_that_is_not_utf_8_is_told_as_far_as_it_can_be(tmp_path: Path) -> None:
    images_in(tmp_path, "1.png")
    os.rename(tmp_path / "1.png", os.fsencode(tmp_path) + b"/\xff.png")
    assert problems(Data(source=str(tmp_path), caption="style")) == {"?.png": "its name is not UTF-8"}


CAPTIONS = {
    "[1]": "is a list",
    '["a", "b"]': "is a list",
    "{}": "is an object",
    "true": "is a boolean",
    "7": "is a number",
    "0.5": "is a number",
    "Infinity": "is a number",
    "NaN": "is missing",
    "null": "is missing",
    '""': "is empty",
    '" \\n"': "is empty",
}


@pytest.mark.parametrize(("value", "why"), CAPTIONS.items())
def test_a_caption_that_is_no_text_is_named(tmp_path: Path, value: str, why: str) -> None:
    images_in(tmp_path, "1.png", "2.png")
    lines = f'{{"file_name": "1.png", "text": {value}}}\n{{"file_name": "2.png", "text": "a cat"}}\n'
    problem = f"caption {why}{', not text' if why.startswith('is a') else ''}"
    assert problems(folder_with(tmp_path, lines, name="metadata.jsonl")) == {"1.png": problem, "2.png": ""}


def test_a_file_name_or_subset_that_is_no_text_is_named(tmp_path: Path) -> None:
    images_in(tmp_path, "3.png", "4.png")
    lines = [
        {"file_name": 3, "text": "a"},
        {"file_name": None, "text": "a"},
        {"file_name": "3.png", "text": "a", "subset": ["x"]},
        {"file_name": "4.png", "text": "a", "subset": None},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert problems(folder_with(tmp_path, text, name="metadata.jsonl")) == {
        "row 1": "file name is a number, not text",
        "row 2": "file name is missing",
        "3.png": "subset is a list, not text",
        "4.png": "",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
in_one_folder = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@in_one_folder
@given(value=json_values)
def test_a_caption_is_the_very_text_or_has_a_reason(tmp_path: Path, value: object) -> None:
    images_in(tmp_path, "1.png")
    (row,) = read_folder(
        folder_with(tmp_path, json.dumps({"file_name": "1.png", "text": value}), name="metadata.jsonl")
    ).images
    if isinstance(value, str) and value.strip():
        assert (row.problem, row.prompt) == ("", value.encode("utf-8", "replace").decode().strip())
    else:
        assert row.problem.startswith("caption is ")
        assert row.prompt == ""


@in_one_folder
@given(
    value=st.lists(st.text(max_size=4), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=3)
    | st.booleans()
    | st.integers()
    | st.floats(allow_infinity=False)
    | st.none(),
    as_json=st.booleans(),
)
def test_no_cell_of_a_csv_is_another_program_s_spelling_of_something(
    tmp_path: Path, value: object, as_json: bool
) -> None:
    images_in(tmp_path, "1.png")
    cell = (json.dumps(value) if as_json else str(value)).replace('"', '""')
    cell = cell.encode("utf-8", "replace").decode().replace("\0", "")
    (row,) = read_folder(
        folder_with(tmp_path, f'file_name,text\n1.png,"{cell}"\n', name="metadata.csv")
    ).images
    assert row.problem.startswith("caption is ")
    assert row.prompt == ""


@pytest.mark.parametrize(
    "caption",
    [
        "[masterpiece, best quality]",
        "{cat|dog} on a mat",
        "1girl",
        "no",
        "Infinity",
        "a, b",
        "7 boats",
        "none of them",
        "'quoted'",
    ],
)
def test_a_caption_that_only_looks_like_something_else_is_text(tmp_path: Path, caption: str) -> None:
    images_in(tmp_path, "1.png")
    (row,) = read_folder(
        folder_with(tmp_path, f'file_name,text\n1.png,"{caption}"\n', name="metadata.csv")
    ).images
    assert (row.problem, row.prompt) == ("", caption)


@pytest.mark.parametrize(
    ("separator", "name"), [(";", "semicolons (';')"), ("\t", r"tabs ('\t')"), ("|", "bars ('|')")]
)
def test_another_separator_is_named(tmp_path: Path, separator: str, name: str) -> None:
    table = f"file_name{separator}text\n1.png{separator}a cat\n2.png{separator}a boat, at sea\n"
    assert one_line(folder_with(tmp_path, table)).endswith(
        f"its columns are separated by {name}; save it with commas"
    )


def test_blanks_after_commas_are_no_part_of_a_cell(tmp_path: Path) -> None:
    images_in(tmp_path, "1.png", "2.png")
    data = folder_with(
        tmp_path,
        'file_name, text ,subset\n1.png, "a boat, at sea", x\n2.png, a cat, x\n',
        name="metadata.csv",
    )
    assert [(row.prompt, row.problem, row.subset) for row in read_folder(data).images] == [
        ("a boat, at sea", "", "x"),
        ("a cat", "", "x"),
    ]


def test_a_table_without_a_header_is_told_so(tmp_path: Path) -> None:
    assert one_line(folder_with(tmp_path, "01.png,a cat\n02.png,a dog\n")).endswith(
        "metadata.csv: has no header, for its first line names an image; "
        "write the columns above it: file_name,text"
    )


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("01.png ", "01.png"),
        ("01.PNG", "01.png"),
        ("01", "01.png"),
        ("01.jpg", "01.png"),
        ("train/01.png", "01.png"),
        ("boats\\b.png", "boats/b.png"),
        ("b.png", "boats/b.png"),
        ("C:\\images\\b.png", "boats/b.png"),
        ("/home/me/01.png", "01.png"),
        (unicodedata.normalize("NFD", "caf\u00e9.png"), "caf\u00e9.png"),
        ("caf\u00e9.png", "caf\u00e9.png"),
        ("03.png", ""),
        ("c.png", ""),
    ],
)
def test_a_name_that_is_nearly_right_is_told_and_its_file_is_counted_once(
    tmp_path: Path, written: str, found: str
) -> None:
    there = ["01.png", "02.png", "boats/b.png", "caf\u00e9.png", "c/c.png", "d/c.png"]
    images_in(tmp_path / "train", *there)
    row, *forgotten = read_folder(folder_with(tmp_path, f'file_name,text\n"{written}",a\n')).images
    unseen = (
        ", the same letters in another Unicode form" if unicodedata.normalize("NFC", written) == found else ""
    )
    assert row.problem.partition("; ")[2] == (
        f"did you mean {found}{unseen}?" if found and written != found else ""
    )
    assert {image.file for image in forgotten} == {name for name in there if name != found}


@in_one_folder
@given(
    name=st.text(
        st.characters(exclude_characters="/\0\\", exclude_categories=["Cs"]), min_size=1, max_size=20
    ),
    change=st.sampled_from(
        [
            str.upper,
            "{} ".format,
            "x/{}".format,
            "x\\{}".format,
            lambda name: unicodedata.normalize("NFD", name),
        ]
    ),
)
def test_any_name_is_found_again_in_another_form(
    tmp_path_factory: pytest.TempPathFactory, name: str, change: Any
) -> None:
    folder = tmp_path_factory.mktemp("near")
    try:
        images_in(folder, f"a{name}.png")
    except OSError:  # too long for a file system
        return
    written = change(f"a{name}.png")
    table = json.dumps({"file_name": written, "text": "a"})
    images = read_folder(folder_with(folder, table, name="metadata.jsonl")).images
    unseen = ", the same letters in another Unicode form" * (
        unicodedata.normalize("NFC", written) == unicodedata.normalize("NFC", f"a{name}.png")
    )
    assert [row.problem for row in images] in ([""], [f"file is missing; did you mean a{name}.png{unseen}?"])


@pytest.mark.parametrize("name", ["1.txt", "1.TXT", "1.caption", "1.Caption", "1.png.txt", "1.png.caption"])
def test_words_lie_beside_an_image_under_any_of_the_field_s_names(tmp_path: Path, name: str) -> None:
    images_in(tmp_path, "1.png")
    (tmp_path / name).write_text("a cat")
    (row,) = read_folder(Data(source=str(tmp_path))).images
    assert (row.prompt, row.problem) == ("a cat", "")


def test_of_several_texts_the_usual_one_counts(tmp_path: Path) -> None:
    images_in(tmp_path, "1.png", "1.jpg")
    for name in ("1.png.txt", "1.caption", "1.TXT", "1.txt"):
        (tmp_path / name).write_text(name)
    found = read_folder(Data(source=str(tmp_path)))
    assert [row.prompt for row in found.images] == ["1.txt"] * 2
    assert found.notes == (
        "2 images have more than one text: 1.txt is read, 1.TXT, 1.caption are not, and so on",
    )
    assert read_folder(Data(source=str(tmp_path), caption="style")).notes == ()


def test_captions_that_a_table_goes_before_are_named(tmp_path: Path) -> None:
    images_in(tmp_path, "train/1.png")
    data = folder_with(tmp_path, "file_name,text\n1.png,a\n")
    assert read_folder(data).notes == ()
    (tmp_path / "train" / "1.txt").write_text("b")
    assert read_folder(data).notes == ("captions are read from train/metadata.csv, not from train/1.txt",)
    folder_with(tmp_path, "file_name,text\ntrain/1.png,c\n", name="metadata.csv")
    assert read_folder(data).notes == (
        "captions are read from train/metadata.csv, not from metadata.csv and 1 more",
    )


def test_a_second_text_of_an_image_is_named(tmp_path: Path) -> None:
    images_in(tmp_path, "a/1.png", "a/2.png")
    for name in ("1.txt", "1.png.txt", "2.caption"):
        (tmp_path / "a" / name).write_text(name)
    assert read_folder(Data(source=str(tmp_path))).notes == (
        "an image has more than one text: a/1.txt is read, a/1.png.txt is not",
    )


@pytest.mark.parametrize("name", ["images/metadata.csv", "captions.csv", "train/metadata.parquet"])
def test_a_table_where_none_is_looked_for_is_named(tmp_path: Path, name: str) -> None:
    images_in(tmp_path / "images", "1.png")
    line = one_line(folder_with(tmp_path, "file_name,text\n1.png,a\n", name=name))
    said = (
        f"{name} is not read: a table is metadata.csv or metadata.jsonl "
        f"in data.source itself or in its train/"
    )
    assert line.endswith(f"; {said}")
    # with which the folder is good, and the table still not read
    (tmp_path / "images" / "1.txt").write_text("a cat")
    assert read_folder(Data(source=str(tmp_path))).notes == (said,)


@pytest.mark.parametrize(
    ("content", "name", "what"),
    [
        (b"PK\x03\x04", "data.zip", "it is a zip archive; unpack it"),
        (b"x", "1.png", "it is an image; name the folder that it lies in"),
        (b"x", "notes", "it is a file, not a folder"),
    ],
)
def test_a_source_that_is_no_folder_says_what_it_is(
    tmp_path: Path, content: bytes, name: str, what: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert one_line(Data(source=str(tmp_path / name))).endswith(f"{name}: {what}")


def test_litter_is_left_out_with_one_note(tmp_path: Path) -> None:
    images_in(
        tmp_path,
        "train/1.png",
        "train/1-masklabel.png",
        "train/1-condlabel.png",
        "train/@eaDir/1.png/T.jpg",
        "test/2.png",
        "__MACOSX/train/1.png",
        "validation/3.png",
        "validation/4.png",
        "boats/5.png",
    )
    found = read_folder(Data(source=str(tmp_path), caption="style"))
    assert [image.file for image in found.images] == ["boats/5.png", "train/1.png"]
    assert found.notes == (
        "left out: __MACOSX/ (1), test/ (1), *-condlabel.png (1), *-masklabel.png (1), @eaDir/ (1), "
        "validation/ (2); to have such images, name them in a metadata.csv, or rename them or their folder",
    )


def test_a_table_has_litter_trained_that_it_names(tmp_path: Path) -> None:
    images_in(tmp_path, "1.png", "1-masklabel.png", "2-masklabel.png")
    found = read_folder(
        folder_with(tmp_path, "file_name,text\n1.png,a\n1-masklabel.png,a\n", name="metadata.csv")
    )
    assert [(image.file, image.problem) for image in found.images] == [("1.png", ""), ("1-masklabel.png", "")]


def test_a_folder_test_alone_is_nothing_to_leave_out(tmp_path: Path) -> None:
    images_in(tmp_path, "test/1.png", "reg/2.png")
    found = read_folder(Data(source=str(tmp_path), caption="style"))
    assert ([image.file for image in found.images], found.notes) == (["reg/2.png", "test/1.png"], ())


def test_what_is_held_out_lies_beside_a_train_folder_at_any_depth(tmp_path: Path) -> None:
    images_in(tmp_path, "set/train/1.png", "set/test/2.png", "set/deep/val/a/3.png", "other/test/4.png")
    found = read_folder(Data(source=str(tmp_path), caption="style"))
    assert [image.file for image in found.images] == [
        "other/test/4.png",
        "set/deep/val/a/3.png",
        "set/train/1.png",
    ]
    assert [note.partition(";")[0] for note in found.notes] == ["left out: set/test/ (1)"]


def test_sd_scripts_reg_folder_is_known_by_its_own_numbers(tmp_path: Path) -> None:
    images_in(tmp_path, "1.png", "reg/1_girl/2.png", "reg/1_girl/3.png")
    found = read_folder(Data(source=str(tmp_path), caption="style"))
    assert [image.file for image in found.images] == ["1.png"]
    assert [note.partition(";")[0] for note in found.notes] == ["left out: reg/ (2)"]


def test_a_folder_of_litter_alone_says_what_was_left_out(tmp_path: Path) -> None:
    images_in(tmp_path, "@eaDir/1.png")
    assert "left out: @eaDir/ (1)" in one_line(Data(source=str(tmp_path)))


def test_folders_numbered_for_sd_scripts_say_how_often_their_images_are_drawn(tmp_path: Path) -> None:
    images_in(
        tmp_path,
        "img/10_watercolor style/1.png",
        "img/2_portrait/2.png",
        "img/2024_sea/3.png",
        "img/0_off/4.png",
        "reg/1_girl/5.png",
    )
    found = read_folder(Data(source=str(tmp_path), caption="style"))
    assert {image.file: (image.repeats, image.problem) for image in found.images} == {
        "img/10_watercolor style/1.png": (10, ""),
        "img/2_portrait/2.png": (2, ""),
        "img/2024_sea/3.png": (1, ""),
        "img/0_off/4.png": (0, "its folder's name says 0 repeats"),
    }
    left_out, drawn = found.notes
    assert left_out.startswith("left out: reg/ (1); ")
    assert drawn == (
        "images are drawn as often as their folders' names say, as by sd-scripts: "
        "img/10_watercolor style (10), img/2024_sea (1), img/2_portrait (2); without a number: once"
    )


def test_equal_repeats_are_nothing_to_tell(tmp_path: Path) -> None:
    images_in(tmp_path, "10_a/1.png", "10_b/2.png")
    assert read_folder(Data(source=str(tmp_path), caption="style")).notes == ()
