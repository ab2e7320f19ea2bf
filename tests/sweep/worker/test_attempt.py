"""What may be an accident is retried once; after a lack of memory with fewer rows at a time."""

import pytest

from sweep.events import Attempt


@pytest.mark.parametrize("reason", ["hung", "killed", "device_lost"])
def test_an_accident_gets_one_more_try(reason):
    again = Attempt(micro_batch=4).after(reason)
    assert again == Attempt(micro_batch=4, retried=(reason,))
    assert again.after(reason) is None


@pytest.mark.parametrize(("before", "after"), [(6, 3), (8, 4), (5, 1), (9, 3)])
def test_too_little_memory_halves_the_micro_batch_to_a_divisor(before, after):
    assert Attempt(micro_batch=before).after("cuda_oom") == Attempt(micro_batch=after, retried=("cuda_oom",))


def test_one_row_cannot_be_halved_and_gets_one_more_try_as_it_is():
    again = Attempt(micro_batch=1).after("cuda_oom")
    assert again == Attempt(micro_batch=1, retried=("cuda_oom",))
    assert again.after("cuda_oom") is None


def test_a_note_about_another_batch_size_counts_as_none(tmp_path):
    Attempt(micro_batch=4, retried=("cuda_oom",)).save(tmp_path / "attempt.json")
    assert Attempt.load(tmp_path / "attempt.json", 6) == Attempt(micro_batch=6)


@pytest.mark.parametrize("reason", [None, "nan_loss", "no_images", "disk_full", "bug", "host_oom"])
def test_the_rest_is_final(reason):
    assert Attempt(micro_batch=4).after(reason) is None


@pytest.mark.parametrize("torn", ["", "{", "{}", "[]"])
def test_a_torn_note_counts_as_none(tmp_path, torn):
    path = tmp_path / "attempt.json"
    path.write_text(torn)
    assert Attempt.load(path, 6) == Attempt(micro_batch=6)


def test_a_note_reads_back(tmp_path):
    attempt = Attempt(micro_batch=3, retried=("cuda_oom", "hung"))
    attempt.save(tmp_path / "attempt.json")
    assert Attempt.load(tmp_path / "attempt.json", 6) == attempt
