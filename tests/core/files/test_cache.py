"""What was made once is read from then on, by whoever asks; half a file counts as none."""

from pathlib import Path

import pytest
import torch

from core.files.cache import Cache

KEY = ("latents", "weights", 128, "image")


def no_second_time() -> dict:
    raise AssertionError("made again")


def numbers() -> dict[str, torch.Tensor]:
    return {"plain": torch.arange(6.0).view(2, 3), "mirrored": torch.ones(2, 3).T}


def test_tensors_are_made_once(cache: Cache) -> None:
    cache.tensors(KEY, numbers)
    assert torch.equal(cache.tensors(KEY, no_second_time)["plain"], numbers()["plain"])
    assert cache.encoded == {"latents": 1}


def test_another_process_finds_tensors_on_disk(tmp_path: Path) -> None:
    Cache(tmp_path).tensors(KEY, numbers)
    again = Cache(tmp_path)
    found = again.tensors(KEY, no_second_time)
    assert all(torch.equal(found[part], value) for part, value in numbers().items())
    assert again.encoded == {}


def test_facts_are_made_once_and_found_again(tmp_path: Path) -> None:
    first = Cache(tmp_path)
    first.facts(KEY, lambda: {"width": 3, "name": "湖"})
    assert (
        first.facts(KEY, no_second_time)
        == Cache(tmp_path).facts(KEY, no_second_time)
        == {"width": 3, "name": "湖"}
    )


@pytest.mark.parametrize(
    "other",
    [
        ("latents", "weights", 256, "image"),
        ("latents", "weights", 128, "another"),
        ("latents", "others", 128, "image"),
    ],
)
def test_another_key_is_another_thing(cache: Cache, other: tuple) -> None:
    cache.tensors(KEY, numbers)
    cache.tensors(other, numbers)
    assert cache.encoded == {"latents": 2}


@pytest.mark.parametrize("left", [0, 5, 60, -1])
def test_a_tensor_file_that_was_cut_short_is_made_anew(tmp_path: Path, left: int) -> None:
    Cache(tmp_path).tensors(KEY, numbers)
    (path,) = tmp_path.glob("latents/*.safetensors")
    path.write_bytes(path.read_bytes()[:left])
    again = Cache(tmp_path)
    assert torch.equal(again.tensors(KEY, numbers)["plain"], numbers()["plain"])
    assert again.encoded == {"latents": 1}
    assert Cache(tmp_path).tensors(KEY, no_second_time)


@pytest.mark.parametrize("content", [b"", b'{"width": ', b"\x00" * 40, b"\xff\xfe"])
def test_a_fact_file_that_was_spoiled_is_made_anew(tmp_path: Path, content: bytes) -> None:
    Cache(tmp_path).facts(("audit", 1), lambda: {"width": 3})
    (path,) = tmp_path.glob("audit/*.json")
    path.write_bytes(content)
    assert Cache(tmp_path).facts(("audit", 1), lambda: {"width": 4}) == {"width": 4}


def test_what_could_not_be_made_is_not_kept(cache: Cache) -> None:
    with pytest.raises(AssertionError):
        cache.tensors(KEY, no_second_time)
    assert cache.encoded == {}
    assert torch.equal(cache.tensors(KEY, numbers)["plain"], numbers()["plain"])
