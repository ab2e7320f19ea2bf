"""What the results say of the study itself, with results as trials leave them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.files.files import write_json, write_text
from core.folders import Runs, StudyFolder
from core.trial.spec import Training
from core.verdict import BASE_PASSES
from sweep.commands.status import findings
from sweep.study.study import load_study
from tests.examples import make_result, make_spec, with_value
from tests.sweep.resume.test_fingerprint import STUDY, make_folder

GATE = "objective.gate is 5, but the challenge's gate is 6"
RATE = (
    "the best learning_rate, 0.01, is at the upper end of its search (0.0001 to 0.01): a wider one may hold "
    "a better"
)


def study_with(
    tmp_path: Path, base: float | None, rates: dict[float, float], values: Any = STUDY
) -> StudyFolder:
    """A study whose base story has this mean, and a trial of that mean for each learning rate."""
    study = load_study(str(write_text(make_folder(tmp_path) / "study.yaml", yaml.safe_dump(values))))
    folder = Runs(tmp_path / "runs").study("mine")
    write_text(folder.frozen, study.to_yaml())
    if base is not None:
        write_json(folder.base.result, make_result(make_spec(-1, train=None), base))
    for number, (rate, mean) in enumerate(rates.items()):
        spec = make_spec(number, train=Training(lora_rank=4, epochs=3, learning_rate=rate))
        write_json(folder.trial(number).result, make_result(spec, mean))
    return folder


@pytest.mark.parametrize(
    ("base", "rates", "gate", "found"),
    [
        (None, {}, 6, []),
        (5.5, {1e-3: 6.5, 1e-2: 6.2}, 6, []),  # the best lies within its range
        (5.5, {1e-3: 6.2, 1e-2: 6.5}, 6, [RATE]),
        (5.5, {1e-3: 5.2, 1e-2: 5.8}, 6, []),  # a story under the gate is no best one
        (6.1, {}, 6, [BASE_PASSES]),
        (5.5, {1e-3: 6.5}, 5, [GATE]),
        (6.1, {1e-2: 6.5}, 5, [BASE_PASSES, GATE, RATE]),
    ],
)
def test_findings(tmp_path, base, rates, gate, found):
    folder = study_with(tmp_path, base, rates, with_value(STUDY, "objective.gate", gate))
    assert findings(folder, folder.verdict()) == found


def test_a_study_file_that_cannot_be_read_keeps_nobody_from_the_results(tmp_path):
    folder = study_with(tmp_path, 6.1, {1e-2: 6.5})
    folder.frozen.write_text("name: mine\nspace: [\n")
    (line,) = findings(folder, folder.verdict())
    assert line.startswith("nothing is said of base story, gate and ranges: ")
    assert "study.yaml" in line
