"""The folder of a study whose trials are finished."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.files.files import write_json
from core.folders import StudyFolder
from core.trial.spec import Filters, Training
from tests.examples import STUDY, fill, make_failure, make_spec


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., StudyFolder]:
    """`make_study(means, failed=n)`: a base model at 5.5, one complete trial for each mean, then `failed`
    failures.
    """

    def make(
        means: tuple[float, ...] = (), *, failed: int = 0, base: bool = True, backbone: str = "kolors"
    ) -> StudyFolder:
        study = StudyFolder(tmp_path / "runs" / STUDY)
        study.path.mkdir(parents=True)
        if base:
            fill(study.base, make_spec(-1, train=None, backbone=backbone), 5.5)
        for number, mean in enumerate(means):
            train = Training(lora_rank=4, epochs=1 + number, learning_rate=1e-4 * (1 + number))
            filters = Filters(min_width=64 * (1 + number))
            fill(
                study.trial(number), make_spec(number, train=train, filters=filters, backbone=backbone), mean
            )
        for number in range(len(means), len(means) + failed):
            write_json(study.trial(number).result, make_failure(make_spec(number, backbone=backbone)))
        return study

    return make
