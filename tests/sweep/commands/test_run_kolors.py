"""Thirty images and a small random Kolors in the true layout, through the command line on the CPU."""

import shutil
import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors import safe_open

from core.files.install import ROOT, python
from core.folders import Runs
from core.kolors.files import FILES, SCORER_FOLDER
from tests.core.kolors.small_kolors import write_small_kolors

# adapters on each transformer layer; layers in the blocks of the second and third width
MODULES = 8 * (5 * 1 + 6 * 2)
STUDY = """
name: small
backbone: kolors
weights: {models}
story: {root}/studies/stories/lake_painter.yaml
data: {{source: {root}/studies/data/watercolor, caption: "{{prompt}}, watercolor style"}}
train: {{steps_per_epoch: 2, batch_size: 2}}
render: {{steps: 2, cfg_scale: 4, size_px: 64}}
space: {{lora_rank: {{choices: [2, 4]}}, learning_rate: {{low: 1.0e-4, high: 1.0e-3, log: true}}}}
budget: {{trials: 2}}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_small_kolors(tmp_path_factory.mktemp("models"))


def write_study(folder: Path, models: Path, more: str = "") -> Path:
    path = folder / "small.yaml"
    path.write_text(STUDY.format(root=ROOT, models=models) + more, encoding="utf-8")
    return path


@pytest.mark.usefixtures("with_tables")
def test_a_sweep_of_kolors_goes_from_start_to_mlflow(tmp_path, models, cli):
    done = cli(
        "run",
        write_study(tmp_path, models, "precision: fp32"),
        "--runs",
        tmp_path / "runs",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Runs(tmp_path / "runs").study("small")
    base, results = folder.base.read_result(), folder.results()
    assert base.state == "complete"
    assert [result.state for result in results] == ["complete", "complete"]
    assert {(result.scorer, result.device, result.dtype) for result in (base, *results)} == {
        (SCORER_FOLDER, "cpu", "float32")
    }
    assert base.encoded["text"] > 30  # captions and prompts alike, before the UNet was read
    assert results[0].encoded.keys() == {"audit", "latents"}
    assert results[1].encoded == {}
    with safe_open(folder.trial(0).lora, framework="pt") as lora:
        assert lora.metadata()["modelspec.architecture"] == "sdxl_kolors/lora"
        assert lora.metadata()["ss_base_model_version"] == "sdxl_kolors"
        assert len(list(lora.keys())) == 3 * MODULES

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"small", "trial-0000", "trial-0001"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["small"].data.params["backbone"] == "kolors"
    assert all(len(result.aesthetic) == 8 for result in results)
    assert runs["trial-0001"].data.metrics["aesthetic_mean"] == pytest.approx(results[1].aesthetic_mean)


def test_a_precision_that_cannot_train_here_costs_one_line(tmp_path, models, cli):
    done = cli("run", write_study(tmp_path, models), "--runs", tmp_path / "runs", "--device", "cpu")
    assert done.returncode == 2, done.stderr
    assert "precision is fp16" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_weights_are_not_fetched_for_a_machine_that_cannot_train_on_them(tmp_path, cli, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    done = cli(
        "run",
        write_study(tmp_path, tmp_path / "models"),
        "--runs",
        tmp_path / "runs",
        "--device",
        "cpu",
        "--until",
        "06:30",
        TZ="CST-8",
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("stops at 06:30 (UTC+08:00), ")
    (line,) = done.stderr.splitlines()
    assert "precision is fp16, but loss scaling needs a GPU" in line
    assert "nothing was fetched" in line
    assert not (tmp_path / "models").exists()


@pytest.mark.usefixtures("with_tables")
def test_a_damaged_weight_file_ends_the_sweep_in_one_line_and_the_trial_goes_on_once_it_is_mended(
    tmp_path, models, cli
):
    unet = next(file.path for file in FILES if file.part == "unet")
    torn = shutil.copytree(models, tmp_path / "torn")
    (torn / unet).write_bytes((models / unet).read_bytes()[:-1000])
    study = write_study(tmp_path, torn, "precision: fp32")
    arguments = ("run", study, "--runs", tmp_path / "runs", "--device", "cpu", "--trials", "1")
    done = cli(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert str(torn / unet) in line
    assert "delete it and fetch it anew" in line
    shutil.copy(models / unet, torn / unet)
    assert cli(*arguments).returncode == 0


@pytest.mark.usefixtures("with_tables")
def test_without_weights_and_network_every_missing_file_is_named(tmp_path, cli):
    with socket.socket() as nobody:  # bound, but not listening
        nobody.bind(("127.0.0.1", 0))
        done = cli(
            "run",
            write_study(tmp_path, tmp_path / "models", "precision: fp32"),
            "--runs",
            tmp_path / "runs",
            MODELSCOPE_ENDPOINT=f"http://127.0.0.1:{nobody.getsockname()[1]}",
            MODELSCOPE_DOWNLOAD_MAX_RETRIES="1",
        )
    assert done.returncode == 1
    # beside the client's own warnings
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("lora-sweep: "))
    assert all(file.path in line for file in FILES)
    assert f"{python()} -m core.kolors.download --to {tmp_path / 'models'}" in line
    assert "Traceback" not in done.stderr
