"""What a terminal shows while a sweep runs."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from core.trial.result import Result
from sweep.progress import LiveProgress, Progress
from tests.sweep.search.test_optuna_study import complete, failed, spec


@pytest.fixture
def text() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def live(text: io.StringIO) -> LiveProgress:
    progress = LiveProgress(Console(file=text, force_terminal=True, width=160))
    progress.start("mine", 1, 4, 5.5)
    return progress


def ended(live: LiveProgress, result: Result) -> None:
    live.trial_finished(result, {"learning_rate": 0.001})


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError()])
def test_words_that_nobody_can_read_stop_no_sweep(error: OSError) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    Progress(Console(file=Closed())).note("trial 1 is done")


def test_an_epoch_shows_steps_and_loss(live: LiveProgress, text: io.StringIO) -> None:
    live.epoch(spec(2), epoch=1, step=40, losses=[0.25, 0.35])
    live.stop()
    assert "trial 2" in text.getvalue()
    assert "40/100" in text.getvalue()
    assert "loss 0.3000" in text.getvalue()


def test_drawing_shows_the_image(live: LiveProgress, text: io.StringIO) -> None:
    live.epoch(spec(2), epoch=1, step=100, losses=[0.25])
    live.image(spec(2), 1)
    live.stop()
    assert "1/1" in text.getvalue()
    assert "drawing the story" in text.getvalue()


def test_the_base_model_s_story_has_a_name_and_leaves_no_bar(live: LiveProgress, text: io.StringIO) -> None:
    live.image(replace(spec(-1), train=None), 1)
    live.stop()
    assert "the base model's story" in text.getvalue()
    assert "trial -1" not in text.getvalue()
    live.base(complete(-1, 4.25))
    assert "base model's own story: 4.25" in text.getvalue()
    assert not live._bars.tasks[1].visible


def test_a_finished_trial_is_a_line_and_moves_the_sweep_s_bar(live: LiveProgress, text: io.StringIO) -> None:
    ended(live, complete(2, 6.25))
    ended(live, failed(3, "nan_loss"))
    live.stop()
    shown = text.getvalue()
    assert "trial 2 (2 of 4): 6.25 passes the gate, best so far  learning_rate 0.001" in shown
    assert "trial 3 (3 of 4): failed, nan_loss: m" in shown
    assert "best 6.25" in shown
    assert "3/4" in shown
