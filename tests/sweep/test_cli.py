"""Every command does what its help says, and wrong arguments get one clear line."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from core.files.files import write_json
from core.files.install import ROOT
from core.folders import Runs
from core.verdict import BASE_PASSES
from tests.prepared import prepare
from tests.sweep.search.test_optuna_study import complete, failed
from tests.sweep.tracking.mlflow_store import free_port


@pytest.fixture(scope="module")
def passed(tmp_path_factory, known, write_study, cli):
    """A study whose gate is so low that a barely trained story passes: the winner's way to the hand-in."""
    folder = tmp_path_factory.mktemp("passed")
    study = write_study(folder, name="easy", trials=1, gate=1.0, story="balloon_girl")
    study.write_text(study.read_text().replace("{low: 1, high: 2}", "{choices: [2]}"))
    prepare(Runs(folder / "runs"), known)
    done = cli("run", study, "--runs", folder / "runs")
    assert done.returncode == 0, done.stderr
    (folder / "run.log").write_text(done.stdout)
    return folder, study


def one_line(done: subprocess.CompletedProcess, code: int = 2) -> str:
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_help_names_only_what_exists(cli):
    help_text = cli("--help").stdout
    names = {"run", "data", "status", "plan", "doctor", "report", "export", "score", "measures", "ui"}
    assert set(re.findall(r"^  ([a-z]+)  ", help_text, re.MULTILINE)) == names


@pytest.mark.parametrize(
    "words",
    [
        ("run", "dmeo"),
        ("run", "demo", "--trials", "0"),
        ("run", "demo", "--trails", "3"),
        ("run", "demo", "--trials", "x"),
        ("walk", "demo"),
        ("run",),
        ("score", "no/such/folder"),
        ("report", "demo"),
        ("export", "demo", "--team", "t", "--title", "x"),
        ("ui",),
        ("status", "demo"),
        ("measures", "demo"),
    ],
)
def test_wrong_words_cost_one_line(cli, tmp_path, words):
    one_line(cli(*words, LORA_SWEEP_RUNS=str(tmp_path / "runs")))


def test_a_near_miss_is_suggested(cli):
    assert "did you mean demo?" in one_line(cli("run", "dmeo"))


def test_an_unwritable_runs_folder_is_one_line(cli, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in one_line(cli("run", "demo", "--runs", tmp_path / "file" / "runs"), code=1)


def test_a_run_says_each_note_once(passed):
    lines = (passed[0] / "run.log").read_text().splitlines()
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == len(set(notes)), notes
    assert f"note: {BASE_PASSES}" in notes
    assert "note: objective.gate is 1, but the challenge's gate is 6" in notes
    assert any("which a LoRA learns where captions have them: " in note for note in notes), notes


def test_status_of_all_and_of_one(cli, passed):
    folder, _ = passed
    listed = cli("status", "--runs", folder / "runs").stdout
    assert listed.startswith("easy: not running, 1 of 1 trials done, 1 passed the gate, 0 failed, best ")
    assert "base" in cli("status", "easy", "--runs", folder / "runs").stdout


def test_report_is_written(cli, passed):
    folder, study = passed
    assert cli("report", study, "--runs", folder / "runs").returncode == 0
    page = (folder / "runs" / "easy" / "report" / "index.html").read_text()
    assert "../trials/0000/story/8.png" in page


def export(
    cli: Callable[..., subprocess.CompletedProcess[str]], folder: Path, study: Path, *words: object
) -> subprocess.CompletedProcess[str]:
    names = () if "--team" in words else ("--team", "t", "--title", "x")
    return cli("export", study, *names, *words, "--runs", folder / "runs")


def test_export_makes_a_whole_submission(cli, passed):
    folder, study = passed
    done = export(cli, folder, study, "--team", "蓝队", "--title", "watercolor", "--out", folder / "hand-in")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("note: a mean under 6 makes an entry of the challenge invalid\n")
    made = folder / "hand-in"
    assert (made / "README.md").read_text().startswith("---\n")
    assert len(pd.read_csv(made / "prompts.csv")) == 8
    # where it lay is private
    assert json.loads((made / "recipe.json").read_text())["spec"]["data"]["source"] == "watercolor"
    for line in (made / "checksums.sha256").read_text().splitlines():
        digest, name = line.split("  ", 1)
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest
    assert len(list(made.glob("*.safetensors"))) == 1


def test_an_export_names_the_trials_that_have_a_story(cli, tmp_path):
    folder = Runs(tmp_path).study("mine")
    for result in (complete(0, 5.5), failed(1, "killed"), complete(2, 6.5), complete(3, 7.5)):
        write_json(folder.trial(result.spec.number).result, result)
    folder.frozen.touch()

    def refused(*words):
        return one_line(
            cli("export", "mine", "--team", "t", "--title", "x", "--runs", tmp_path, *words)
        ).strip()

    assert refused("--trial", 7).endswith(
        "--trial is 7, but there is no such finished trial (allowed: 2, 3; with --force: 0)"
    )
    assert refused("--trial", 1).endswith("trial 1 failed (killed) and has no story to hand in")
    for number in (2, 3):
        folder.trial(number).result.unlink()
    assert refused().endswith(
        "no story passes the gate yet; name one with --trial and --force (allowed with --force: 0)"
    )
    folder.trial(0).result.unlink()
    assert refused().endswith("(allowed: none, for no trial has made a story yet)")


def test_another_epoch_is_rendered_and_judged_anew(cli, passed):
    folder, study = passed
    done = export(cli, folder, study, "--epoch", 1, "--out", folder / "epoch")
    assert done.returncode == 0, done.stderr
    trial = folder / "runs" / "easy" / "trials" / "0000"
    stored = json.loads((trial / "epochs" / "01" / "result.json").read_text())
    last = json.loads((trial / "result.json").read_text())
    assert stored["aesthetic"] != last["aesthetic"]
    assert stored["lora_sha256"] != last["lora_sha256"]
    assert stored["spec"]["train"]["epochs"] == 1
    assert "allowed: 1 to 2" in one_line(export(cli, folder, study, "--epoch", 9, "--out", folder / "none"))
    assert not (folder / "none").exists()

    kept = folder / "runs" / "easy" / "fingerprint.json"
    words = kept.read_text()
    unet = json.loads(words)["fields"]["weights"]["weights.unet"]
    kept.write_text(words.replace(unet, "0" * 64))
    (trial / "epochs" / "01" / "result.json").unlink()
    again = export(cli, folder, study, "--epoch", 1, "--out", folder / "none")
    kept.write_text(words)
    assert "easy: the base model's unet changed since trial 0" in one_line(again)
    assert not (folder / "none").exists()


def test_score_equals_what_the_trial_was_told(cli, passed):
    folder, _ = passed
    trial = folder / "runs" / "easy" / "trials" / "0000"
    for named in (trial / "story", trial):  # beside story/ lies its sheet, which is not meant
        printed = cli("score", named).stdout.splitlines()[-1]
        assert "mean of 8" in printed
        told = json.loads((trial / "result.json").read_text())["aesthetic_mean"]
        assert float(printed.split()[0]) == pytest.approx(told, abs=1e-3)


def test_a_device_that_cannot_be_leaves_nothing_behind(cli, tmp_path):
    assert "--device is 'cdua', but there is no such device" in one_line(
        cli("run", "demo", "--device", "cdua", "--runs", tmp_path / "runs")
    )
    assert not list(tmp_path.iterdir())


def test_score_names_what_it_leaves_out(cli, tmp_path):
    assert "holds no image" in one_line(cli("score", tmp_path))
    Image.new("RGB", (200, 100), "teal").save(tmp_path / "good.png")
    Image.new("RGB", (40, 1), "teal").save(tmp_path / "thin.png", icc_profile=b"oops")
    (tmp_path / "bad.png").write_text("no image")
    done = cli("score", tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"{tmp_path}/bad.png: left out, cannot be read: it is no image",
        f"{tmp_path}/thin.png: colour profile cannot be read: taken as sRGB",
    ]
    assert "mean of 2" in done.stdout


def test_the_ui_of_a_database_elsewhere_needs_no_runs_folder(tmp_path):
    """With a server that ends at once; its output is kept in a file."""
    code = (
        "import sys; from sweep.cli import main; sys.executable = '/bin/false'; "
        f"sys.argv[1:] = ['ui', '--port', '{free_port()}', '--runs', {str(tmp_path / 'runs')!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    assert "ended with exit code 1" in one_line(done, 1)
    assert (tmp_path / "runs" / "ui.log").exists()


def test_a_port_in_use_is_one_line(cli, passed):
    folder, _ = passed
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = one_line(cli("ui", "--port", taken.getsockname()[1], "--runs", folder / "runs"))
    assert "cannot be used" in line
