"""A training's state is believed only whole and for its own words."""

import pytest
import torch

from core.train.state import TrainState, load_state, save_state

STATE = TrainState(
    [0.1, 1 / 3], {"a": torch.arange(6.0).view(2, 3), "step.a": torch.tensor(2.0)}, {"scale": 1024.0}
)


def test_a_state_reads_back_bit_for_bit(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_state(path, STATE, "words")
    state = load_state(path, "words")
    assert (state.step, state.losses, state.scaler) == (2, STATE.losses, STATE.scaler)
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in STATE.tensors.items())


def test_equal_states_are_equal_files(tmp_path):
    for name in "ab":
        save_state(tmp_path / name, STATE, "words")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_state_of_other_words_is_not_taken(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_state(path, STATE, "words")
    assert load_state(path, "other words") is None
    assert load_state(tmp_path / "none", "words") is None


def test_every_cut_and_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_state(path, STATE, "words")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        assert load_state(path, "words") is None, place
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        torn = load_state(path, "words")
        assert torn is None or whole[place : place + 1] == b" ", place  # padding of the header says nothing


def test_the_old_state_stays_when_a_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    save_state(path, STATE, "words")
    monkeypatch.setenv("LORA_SWEEP_FAIL", "checkpoint_written=disk_full")
    with pytest.raises(OSError, match="No space left"):
        save_state(path, TrainState([0.5], {}), "words")
    assert load_state(path, "words").losses == STATE.losses
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
