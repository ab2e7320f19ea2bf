"""Each filter drops what Data-Juicer's would, by its name, bounds inclusive."""

import pandas as pd
import pytest

from core.data.filters import STAGES, left_after, select, why_dropped
from core.trial.spec import Filters, setting_names

HASHES = ("phash", "dhash", "whash", "ahash")
GOOD = {"width": 128, "height": 128, "ratio": 1.0, "size": 5000, "score": 5.0, "subset": "", "problem": ""}


def table(*rows: dict) -> pd.DataFrame:
    """Audit rows that differ from a good image in the given columns; every image has a hash of its own."""
    return pd.DataFrame(
        [
            {"file": f"{number}.png", **GOOD} | dict.fromkeys(HASHES, f"h{number}") | row
            for number, row in enumerate(rows)
        ]
    )


def reason(row: dict, filters: Filters) -> str:
    return why_dropped(table(row), filters).iloc[0]


@pytest.mark.parametrize(
    ("row", "filters", "expected"),
    [
        ({"width": 99}, Filters(min_width=100), "image_shape_filter"),
        ({"height": 99}, Filters(min_height=100), "image_shape_filter"),
        ({"width": 201}, Filters(max_width=200), "image_shape_filter"),
        ({"height": 201}, Filters(max_height=200), "image_shape_filter"),
        ({"subset": "anime"}, Filters(subset="sketch"), "subset"),
        ({"ratio": 0.49}, Filters(min_ratio=0.5), "image_aspect_ratio_filter"),
        ({"ratio": 2.01}, Filters(max_ratio=2.0), "image_aspect_ratio_filter"),
        ({"size": 999}, Filters(min_size=1000), "image_size_filter"),
        ({"size": 1001}, Filters(max_size=1000), "image_size_filter"),
        ({"score": 2.9}, Filters(min_score=0.3), "image_aesthetics_filter"),
        ({"score": 7.1}, Filters(max_score=0.7), "image_aesthetics_filter"),
    ],
)
def test_an_image_beyond_a_bound_goes_with_the_filter_s_name(
    row: dict, filters: Filters, expected: str
) -> None:
    assert reason(row, filters) == expected


@pytest.mark.parametrize(
    ("row", "filters"),
    [
        ({"width": 200}, Filters(max_width=200)),
        ({"height": 200}, Filters(max_height=200)),
        ({"subset": "sketch"}, Filters(subset="sketch")),
        ({"subset": "anime"}, Filters()),
        ({"width": 100}, Filters(min_width=100)),
        ({"height": 100}, Filters(min_height=100)),
        ({"ratio": 0.5}, Filters(min_ratio=0.5)),
        ({"ratio": 2.0}, Filters(max_ratio=2.0)),
        ({"size": 1000}, Filters(min_size=1000)),
        ({"size": 1000}, Filters(max_size=1000)),
        ({"score": 3.0}, Filters(min_score=0.3)),
        ({"score": 7.0}, Filters(max_score=0.7)),
    ],
)
def test_an_image_on_a_bound_stays(row: dict, filters: Filters) -> None:
    assert reason(row, filters) == ""


@pytest.mark.parametrize("score", [-0.4, 10.6])
def test_a_score_beyond_the_scale_counts_as_its_end(score: float) -> None:
    assert reason({"score": score}, Filters()) == ""


@pytest.mark.parametrize("method", HASHES)
def test_of_twins_the_first_stays(method: str) -> None:
    reasons = why_dropped(
        table({method: "same"}, {}, {method: "same"}, {method: "same"}), Filters(deduplicate=method)
    )
    assert list(reasons) == ["", "", "image_deduplicator", "image_deduplicator"]


def test_twins_stay_when_nobody_looks_for_them() -> None:
    assert list(why_dropped(table({"phash": "same"}, {"phash": "same"}), Filters(deduplicate="none"))) == [
        "",
        "",
    ]


def test_a_dropped_image_does_not_take_its_twin_along() -> None:
    reasons = why_dropped(table({"phash": "same", "width": 50}, {"phash": "same"}), Filters(min_width=100))
    assert list(reasons) == ["image_shape_filter", ""]


def test_max_images_keeps_the_best_scored_in_the_table_s_order() -> None:
    kept = select(
        table({"score": 5.0}, {"score": 3.0}, {"score": 7.0}, {"score": 6.0}), Filters(max_images=2)
    )
    assert list(kept["file"]) == ["2.png", "3.png"]


def test_of_equal_scores_the_first_file_is_kept() -> None:
    rows = table({"file": "b.png"}, {"file": "a.png"}, {"file": "c.png"})
    assert list(why_dropped(rows, Filters(max_images=1))) == ["max_images", "", "max_images"]


def test_max_images_counts_after_the_other_filters() -> None:
    rows = table({"score": 9.0, "width": 50}, {"score": 5.0}, {"score": 4.0})
    assert list(why_dropped(rows, Filters(min_width=100, max_images=1))) == [
        "image_shape_filter",
        "",
        "max_images",
    ]


def test_a_problem_is_named_before_any_filter() -> None:
    broken = {"problem": "cannot be read: OSError"} | dict.fromkeys(
        ("width", "height", "ratio", "size", "score"), float("nan")
    )
    assert list(why_dropped(table(broken, {}), Filters(max_images=1))) == ["cannot be read: OSError", ""]


def test_the_first_reason_is_the_one_told() -> None:
    assert reason({"width": 50, "score": 1.0}, Filters(min_width=100, min_score=0.5)) == "image_shape_filter"


def test_the_defaults_keep_every_good_image() -> None:
    assert len(select(table({}, {}, {}), Filters())) == 3


def test_every_setting_belongs_to_one_stage() -> None:
    assert sorted(name for names in STAGES.values() for name in names) == sorted(setting_names(Filters))


def test_it_is_counted_what_each_stage_leaves() -> None:
    rows = table(
        {},
        {"problem": "file is missing"},
        {"width": 50},
        {"phash": "h0"},
        {"score": 1.0},
        {"score": 4.0},
        {"score": 4.5},
    )
    left = left_after(why_dropped(rows, Filters(min_width=100, min_score=0.2, max_images=2)))
    assert left == {
        "problem": 6,
        "subset": 6,
        "image_shape_filter": 5,
        "image_aspect_ratio_filter": 5,
        "image_size_filter": 5,
        "image_aesthetics_filter": 4,
        "image_deduplicator": 3,
        "max_images": 2,
    }
