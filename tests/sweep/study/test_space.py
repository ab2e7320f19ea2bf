"""The search space as Optuna sees it."""

import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.search.optuna_study import distributions
from sweep.study.errors import Mistake
from sweep.study.setting import SETTINGS
from sweep.study.space import Choices, Range, check_search, edges


def searching(**space: Choices | Range) -> dict[str, Choices | Range]:
    return {name: check_search(name, search) for name, search in space.items()}


def test_every_kind_of_search_has_its_distribution() -> None:
    assert distributions(
        searching(
            lora_rank=Choices(choices=(2, 4)),
            epochs=Range(low=1, high=5),
            batch_size=Range(low=2, high=8, step=2),
            steps=Range(low=1, high=50, log=True),
            size_px=Range(low=64, high=256),
            min_score=Range(low=0, high=1),
            lora_dropout=Range(low=0, high=0.3, step=0.1),
            learning_rate=Range(low=1e-4, high=1e-2, log=True),
            random_flip=Choices(choices=(True, False)),
            max_images=Choices(choices=(None, 8)),
            deduplicate=Choices(choices=("phash", "none")),
        )
    ) == {
        "lora_rank": CategoricalDistribution((2, 4)),
        "epochs": IntDistribution(1, 5),
        "batch_size": IntDistribution(2, 8, step=2),
        "steps": IntDistribution(1, 50, log=True),
        "size_px": IntDistribution(64, 256, step=64),
        "min_score": FloatDistribution(0, 1),
        "lora_dropout": FloatDistribution(0, 0.3, step=0.1),
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "random_flip": CategoricalDistribution((True, False)),
        "max_images": CategoricalDistribution((None, 8)),
        "deduplicate": CategoricalDistribution(("phash", "none")),
    }


def test_size_px_goes_in_steps_of_64() -> None:
    with pytest.raises(Mistake) as raised:
        check_search("size_px", Range(low=64, high=256, step=32))
    assert (raised.value.at, raised.value.guess) == (("size_px", "step"), "64")


@given(low=st.floats(0, 1), span=st.floats(0, 1), steps=st.integers(1, 50))
def test_a_range_that_ends_on_a_step_is_allowed(low: float, span: float, steps: int) -> None:
    high = low + span
    assume(span > 1e-6 and high <= 1)
    assert check_search("min_score", Range(low=low, high=high, step=span / steps)).allows(high)


@given(data=st.data())
def test_optuna_takes_what_the_setting_allows(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["lora_rank", "size_px", "cfg_scale", "learning_rate", "max_images"]))
    setting = SETTINGS[name]
    whole = st.integers(int(setting.low) // setting.multiple_of, int(setting.high) // setting.multiple_of)
    numbers = (
        st.floats(1, setting.high) if setting.kind is float else whole.map(lambda n: n * setting.multiple_of)
    )
    low, high = sorted((data.draw(numbers), data.draw(numbers)))
    try:
        search = check_search(name, Range(low=low, high=high, log=data.draw(st.booleans())))
    except Mistake:
        return
    trial = optuna.create_trial(params={name: low}, distributions=distributions({name: search}), value=0.0)
    assert search.allows(setting.check(trial.params[name]))
    assert search.allows(high)


@pytest.mark.parametrize(
    ("name", "search", "value", "end"),
    [
        ("lora_rank", Choices(choices=(4, 8, 16)), 16, "upper"),
        ("lora_rank", Choices(choices=(4, 8, 16)), 8, ""),
        ("lora_rank", Choices(choices=(4, 8)), 8, ""),
        ("epochs", Range(low=1, high=5), 5, "upper"),
        ("epochs", Range(low=1, high=5), 1, ""),  # fewer than one there are not
        ("learning_rate", Range(low=1e-5, high=1e-2, log=True), 1.2e-5, "lower"),
        ("deduplicate", Choices(choices=("phash", "ahash", "none")), "none", ""),
        ("learning_rate", Range(low=1e-5, high=1e-2, log=True), 1e-4, ""),
        ("max_images", Choices(choices=(4, 8, None)), 8, ""),
    ],
)
def test_a_best_value_at_the_edge_of_its_search_is_told(name, search, value, end):
    space = searching(**{name: search})
    assert [f"is at the {end} end of its search" in line for line in edges(space, {name: value})] == [
        True
    ] * bool(end)
