"""A file is the old one or the new one, never half of one."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from core.files.files import (
    content_key,
    from_json,
    read_json,
    sampled_sha256,
    sha256,
    write_json,
    write_text,
    write_whole,
)
from core.trial.result import Result
from core.trial.spec import TrialSpec
from tests.examples import make_result, make_spec


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "old")
    assert write_text(path, "湖") == path
    assert path.read_text(encoding="utf-8") == "湖"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    seen: list[str] = []

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        seen.append(path.read_text())

    write_whole(path, write)
    assert seen == ["old"]
    assert path.read_text() == "new"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [1.0, float("-inf")]}])
def test_a_number_that_cannot_be_read_back_is_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert list(tmp_path.iterdir()) == []


def test_json_keeps_chinese_readable(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"title": "湖边的小画家"})
    assert "湖边的小画家" in path.read_text(encoding="utf-8")
    assert read_json(path, dict) == json.loads(path.read_text(encoding="utf-8")) == {"title": "湖边的小画家"}


def test_a_dataclass_is_written_as_an_object_and_read_back(tmp_path: Path) -> None:
    result = make_result(make_spec(0), 6.5)
    assert read_json(write_json(tmp_path / "result.json", result), Result) == result


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"number": "first"}, "number: input should be a valid integer"),
        ({"story": {"title": "t"}}, "story.scenes: field required"),
        ({"render": {"sise_px": 64}}, "render.sise_px: unexpected keyword argument"),
        ({"of_a_later_version": 1}, "of_a_later_version: unexpected keyword argument"),
    ],
)
def test_what_is_no_value_of_that_kind_is_refused_in_one_line(change: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match="^" + why) as refusal:
        from_json(asdict(make_spec(0)) | change, TrialSpec)
    assert "\n" not in str(refusal.value)


def test_sha256_is_the_file_s(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_equal_parts_make_equal_keys() -> None:
    assert content_key("a", 1, {"x": 1, "y": 2}) == content_key("a", 1, {"y": 2, "x": 1})
    assert (
        len({content_key("ab", "c"), content_key("a", "bc"), content_key("a", 1), content_key("a", "1")}) == 4
    )


def test_a_fingerprint_of_a_large_file_sees_its_size_its_ends_and_samples_between(tmp_path: Path) -> None:
    path = tmp_path / "large"
    size_bytes = 2**33
    seen = set()
    for change, at in (("none", 0), ("start", 100), ("sample", 2**22 * 900 + 7), ("end", size_bytes - 1)):
        with path.open("wb") as handle:
            handle.truncate(size_bytes)  # takes no room on the disk
            handle.seek(at)
            handle.write(b"\0" if change == "none" else b"x")
        seen.add(sampled_sha256(path))
    os.truncate(path, size_bytes - 1)
    seen.add(sampled_sha256(path))
    assert len(seen) == 5
