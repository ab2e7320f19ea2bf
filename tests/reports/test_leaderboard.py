import math
from io import StringIO

import pytest
from rich.console import Console

from core.files.files import write_json
from reports.console import leaderboard_table
from reports.leaderboard import leaderboard
from reports.units import counted, numbered, size
from tests.examples import fill, make_spec


def printed(study) -> str:
    console = Console(width=100, record=True, file=StringIO())
    console.print(leaderboard_table(leaderboard(study.verdict())))
    return console.export_text()


def test_base_first_then_passed_then_under_the_gate_then_failed(make_study):
    frame = leaderboard(make_study((5.0, 6.2, 6.4, 5.9), failed=2).verdict())
    assert frame["trial"].tolist() == ["base", 2, 1, 3, 0, 4, 5]
    assert frame["gate"].tolist() == ["fail", "pass", "pass", "fail", "fail", "", ""]
    assert frame["reason"].tolist()[-2:] == ["nan_loss", "nan_loss"]


def test_a_failed_trial_has_no_score_rather_than_zero(make_study):
    frame = leaderboard(make_study((6.1,), failed=1).verdict())
    assert math.isnan(frame["aesthetic_mean"].iloc[-1])


def test_only_settings_that_differ_get_a_column(make_study):
    frame = leaderboard(make_study((6.1, 6.2)).verdict())
    assert "min_width" in frame.columns
    assert "max_ratio" not in frame.columns
    assert frame["lora_rank"].tolist()[1:] == [4, 4]


def test_the_base_model_has_no_settings_it_was_never_trained_with(make_study):
    base = leaderboard(make_study((6.1, 6.2)).verdict()).iloc[0]
    assert base[["lora_rank", "images", "min_width"]].isna().all()


def test_winner_has_the_highest_mean_and_ties_go_to_the_earlier_trial(make_study):
    assert make_study((6.1, 6.4, 6.4, 5.0)).verdict().winner.spec.number == 1


def accept_change(study, from_trial: int, *, compares: bool = False) -> None:
    write_json(
        study.fingerprint,
        {
            "fields": {},
            "space": {},
            "history": [
                {
                    "at": "2026-03-01",
                    "field": "story",
                    "from_trial": from_trial,
                    "changes": {},
                    "compares": compares,
                    "told": "story.template ('{scene}' -> 'a *red* {scene}')",
                }
            ],
        },
    )


def test_scores_from_before_an_accepted_change_never_win(make_study):
    study = make_study((6.1, 6.9, 6.2, 5.0))
    accept_change(study, from_trial=2)
    assert study.verdict().winner.spec.number == 2
    frame = leaderboard(study.verdict())
    assert frame["trial"].tolist() == ["base", 2, 3, 1, 0]
    assert frame["gate"].tolist() == ["fail", "pass", "fail", "older", "older"]
    assert "older: made before a change" in printed(study)
    accept_change(study, from_trial=4)
    assert study.verdict().winner is None


def test_each_trial_stands_under_the_base_story_that_it_compares_with(make_study):
    study = make_study((6.1, 6.9, 6.2, 5.0))
    fill(study.earlier(2).base, make_spec(-1, train=None), 4.5)
    accept_change(study, from_trial=2)
    frame = leaderboard(study.verdict())
    assert frame["trial"].tolist() == ["base", 2, 3, "base <2", 1, 0]
    assert frame["gate"].tolist() == ["fail", "pass", "fail", "older", "older", "older"]
    assert frame["aesthetic_mean"].tolist()[::3] == [5.5, 4.5]
    assert "base <2" in printed(study)
    accept_change(study, from_trial=4)  # nothing was made since
    assert leaderboard(study.verdict())["trial"].tolist()[0] == "base"


def test_a_setting_that_only_moved_leaves_scores_comparable(make_study):
    study = make_study((6.1, 6.9))
    accept_change(study, from_trial=2, compares=True)
    assert study.verdict().winner.spec.number == 1


def test_the_console_says_why_trials_failed(make_study):
    assert "trial 1: nan_loss: loss is NaN at step 3 <b>" in printed(make_study((6.1,), failed=1))


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        (3, "trials 1, 2 and 3: nan_loss"),
        (7, "trials 1, 2, 3, 4, 5, 6 and 7: nan_loss"),
        (20, "trials 1, 2, 3, 4, 5, 6 and 14 more: nan_loss"),
    ],
)
def test_one_reason_of_many_trials_is_one_line(make_study, failed, said):
    assert said in printed(make_study((6.1,), failed=failed))


def test_no_winner_under_the_gate(make_study):
    assert make_study((5.1, 5.9), failed=1).verdict().winner is None


def test_an_empty_study_has_an_empty_leaderboard(make_study):
    frame = leaderboard(make_study(base=False).verdict())
    assert len(frame) == 0
    assert "aesthetic_mean" in frame.columns


def test_console_table_says_winner_gate_and_reason_in_words_within_100_columns(make_study):
    text = printed(make_study((5.9, 6.25), failed=1))
    assert all(word in text for word in ("★ 1", "★ winner", "pass", "fail", "nan_loss", "6.25"))
    assert "lora_rank 4" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_console_table_of_an_empty_study(make_study):
    assert "aesthetic" in printed(make_study(base=False))


def test_one_is_one_and_little_is_not_nothing():
    assert [counted(number, "trial") for number in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]
    assert [size(count) for count in (0, 1, 499, 999, 1000, 93_000_000)] == [
        "0 B",
        "1 B",
        "499 B",
        "999 B",
        "1.0 kB",
        "93 MB",
    ]
    assert [numbered(list(range(3, last))) for last in (4, 6)] == ["trial 3", "trials 3, 4 and 5"]
