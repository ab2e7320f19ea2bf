"""What a study costs here: measured where trials were finished, else estimated; the plan names which."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from core.base_models import base_model
from core.files.files import write_json
from core.files.weight_files import needed_bytes
from core.folders import Runs
from core.kolors.files import FILES
from core.trial.result import Result
from core.trial.spec import Rendering, Training
from reports.units import size
from sweep.plan.cost import lora_parameters, trial_disk_bytes
from sweep.plan.plan import disks, make_plan
from sweep.plan.table import plan_page
from sweep.stop import deadline, seconds_until
from sweep.study.study import STUDIES, Study, load_study

EVENING = datetime(2026, 3, 1, 22, 0)
ZONE = f"UTC{EVENING.astimezone().isoformat()[-6:]}"
RTX_4090 = "NVIDIA GeForce RTX 4090, 24564, 512, 550.90, [N/A]"
TINY_S = {"prepare": 1.0, "train": 30.0, "render": 16.0, "score": 0.8}


@pytest.fixture
def study(tmp_path, write_study) -> Study:
    """Searches ranks of 2 and 4 and one or two epochs of 3 steps."""
    return load_study(str(write_study(tmp_path, trials=10)))


@pytest.fixture
def kolors_file(tmp_path) -> Path:
    """The challenge's two hand-made settings at full size; the data need not be there."""
    path = tmp_path / "watercolor.yaml"
    path.write_text(f"""
name: watercolor
backbone: kolors
story: {STUDIES}/stories/lake_painter.yaml
data: {{source: not_there_yet}}
space: {{lora_rank: {{low: 4, high: 64, log: true}}, epochs: {{low: 2, high: 12}}}}
first: [{{lora_rank: 16, epochs: 5}}, {{lora_rank: 16, epochs: 10}}]
budget: {{trials: 40}}
""")
    return path


@pytest.fixture
def kolors(kolors_file) -> Study:
    return load_study(str(kolors_file), data_may_be_gone=True)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Put a program of that name first on the PATH, which answers with one line."""

    def answer(line: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho '{line}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return answer


def finish(
    runs: Runs, study: Study, number: int, *, epochs: int = 1, device: str = "cpu", **timings_s: float
) -> None:
    spec = study.spec(
        number, {name: search.start for name, search in study.space.items()} | {"epochs": epochs}
    )
    result = Result(state="complete", spec=spec, device=device, timings_s=TINY_S | timings_s)
    write_json(runs.study(study.name).trial(number).result, result)
    runs.study(study.name).frozen.write_text(study.to_yaml())


def page(study: Study, runs: Path, until: str = "07:00", free_bytes: int = 10**12, width: int = 100) -> str:
    console, plan = Console(width=width, file=StringIO()), make_plan(study, Runs(runs))
    found = [replace(disk, free_bytes=free_bytes) for disk in disks(plan, Runs(runs))]
    console.print(plan_page(plan, EVENING, deadline(until, EVENING), found, width))
    return console.file.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def test_without_a_finished_trial_it_is_an_estimate_and_says_so(cli, tmp_path, write_study):
    done = cli("plan", write_study(tmp_path), "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("quick: 2 trials take about ")
    assert "All of this is an estimate: nothing was measured here yet." in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["kolors_watercolor", "kolors_folder"])
def test_the_shipped_studies_are_planned_with_what_is_still_to_be_fetched(tmp_path, monkeypatch, name):
    monkeypatch.setenv("LORA_SWEEP_MODELS", str(tmp_path / "none"))
    study = load_study(name, data_may_be_gone=True)
    assert f"weights about {size(needed_bytes(FILES))} are missing: fetched once" in words(
        page(study, tmp_path)
    )


def test_on_a_cpu_the_text_encoder_lies_in_the_host_s_memory(tmp_path, kolors):
    fp32 = kolors.model_copy(update={"precision": "fp32"})
    plan = make_plan(fp32, Runs(tmp_path), "cpu")
    assert plan.host_bytes > 4 * 6.2e9 > make_plan(fp32, Runs(tmp_path)).host_bytes


def test_kolors_is_planned_without_card_weights_or_data(cli, tmp_path, kolors_file):
    (tmp_path / "bin").mkdir()
    done = cli("plan", kolors_file, "--runs", tmp_path / "runs", PATH=str(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("watercolor: how long a trial takes here is not known: no GPU found")
    assert "a typical trial by estimate: " in done.stdout


def test_finished_trials_of_this_study_give_the_pace(tmp_path, study):
    finish(Runs(tmp_path), study, 0)
    finish(Runs(tmp_path), study, 1, epochs=2, train=60.0)
    plan = make_plan(study, Runs(tmp_path))
    assert plan.basis == "measured on 2 finished trials of this study"
    assert plan.pace.parts_s(plan.typical.spec) == pytest.approx(TINY_S | {"train": 60.0})
    assert (plan.done, plan.todo) == (2, 8)
    # the base model's own story is not there yet
    assert plan.ends_s(plan.pace)[-1] == pytest.approx(8 * 77.8 + 16.8)


def test_another_study_s_pace_counts_where_model_size_and_device_are_the_same(tmp_path, study):
    runs = Runs(tmp_path)
    other, large = (study.model_copy(update={"name": name}) for name in ("other", "large"))
    large = large.model_copy(update={"render": Rendering(steps=2, cfg_scale=3, size_px=256)})
    finish(runs, large, 0, train=1.0)
    finish(runs, other, 0, device="cuda:0", train=2.0)
    assert make_plan(study, runs).basis.startswith("a rough guess")
    finish(runs, other, 1, train=20.0)
    plan = make_plan(study, runs)
    assert plan.basis == "measured on 1 finished trial of other"
    assert plan.pace.parts_s(plan.cheapest.spec)["train"] == pytest.approx(20.0)


def test_results_that_another_version_wrote_are_left_out(tmp_path, study):
    runs, other = Runs(tmp_path), study.model_copy(update={"name": "other"})
    finish(runs, other, 0)
    for each in (study, other):
        write_json(runs.study(each.name).trial(1).result, {"verdict": "good"})
    plan = make_plan(study, runs)
    assert (plan.basis, plan.done) == ("measured on 1 finished trial of other", 0)
    finish(runs, study, 0)
    plan = make_plan(study, runs)
    assert (plan.basis, plan.done) == ("measured on 1 finished trial of this study", 1)


def test_rows_go_from_the_cheapest_trial_to_the_dearest_and_to_the_hand_made(tmp_path, kolors):
    plan = make_plan(kolors, Runs(tmp_path))
    rows = [plan.cheapest, plan.typical, plan.dearest, *plan.first]
    assert [row.name for row in rows] == ["cheapest", "typical", "dearest", "first 1", "first 2"]
    assert [(row.spec.train.lora_rank, row.spec.train.epochs) for row in rows] == [
        (4, 2),
        (16, 7),
        (64, 12),
        (16, 5),
        (16, 10),
    ]


def test_the_hand_made_trials_come_first_in_the_sweep_s_time(tmp_path, study):
    study = study.model_copy(update={"first": ({"epochs": 1}, {"epochs": 1})})
    finish(Runs(tmp_path), study, 0)
    finish(Runs(tmp_path), study, 1)
    study = study.model_copy(update={"name": "next"})
    plan = make_plan(study, Runs(tmp_path))
    assert [row.name for row in plan.queue] == ["first 1", "first 2"] + ["typical"] * 8
    assert plan.ends_s(plan.pace)[:4] == pytest.approx([16.8, 64.6, 112.4, 190.2])


def test_the_verdict_comes_first(tmp_path, study):
    finish(Runs(tmp_path), study, 0)
    assert page(study, tmp_path, width=200).startswith(
        f"quick: 9 more trials take about 12 min on the CPU; all fit before 07:00 ({ZONE}), done by"
    )
    assert page(study, tmp_path, until="22:05", width=200).startswith(
        f"quick: 9 more trials take about 12 min on the CPU; 3 of them fit before 22:05 ({ZONE}), 5 min from "
        "now."
    )
    assert "none of them fits before 22:01" in page(study, tmp_path, until="22:01")
    assert f"The disk is too small for that: {tmp_path} has 1.0 MB free and" in page(
        study, tmp_path, free_bytes=10**6, width=200
    )
    for number in range(1, 10):
        finish(Runs(tmp_path), study, number)
    assert page(study, tmp_path).startswith(
        "quick: 10 trials done, none left to do; one more takes about 78 s on the CPU."
    )


def test_missing_weights_count_where_the_trials_lie_on_the_same_disk(tmp_path, kolors, monkeypatch):
    monkeypatch.setenv("LORA_SWEEP_MODELS", str(tmp_path / "models"))
    plan = make_plan(kolors, Runs(tmp_path))
    assert plan.fetch_bytes > 20e9
    (disk,) = disks(plan, Runs(tmp_path))
    assert (disk.folder, disk.needed_bytes) == (tmp_path, plan.disk_bytes + plan.fetch_bytes)
    assert "The disk is too small for that" in page(kolors, tmp_path, free_bytes=plan.disk_bytes + 10**9)
    assert "The disk is too small" not in page(kolors, tmp_path, free_bytes=disk.needed_bytes)


def test_one_trial_is_one(tmp_path, study):
    finish(Runs(tmp_path), study, 0)
    text = page(study.with_trials(2), tmp_path)
    assert text.startswith("quick: 1 more trial takes about ")
    assert "; it fits before 07:00" in text
    assert "for the 1 trial left; " in text


def test_the_hour_is_said_with_its_time_zone(cli, write_study, tmp_path):
    study = write_study(tmp_path)
    done = cli("run", study, "--dry-run", "--until", "06:30", "--runs", tmp_path / "runs", TZ="CST-8")
    assert " before 06:30 (UTC+08:00)" in done.stdout


@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_wider_than_the_terminal(tmp_path, kolors, nvidia_smi, width):
    nvidia_smi(RTX_4090)
    text = page(kolors, tmp_path, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_a_known_card_is_estimated_from_counted_work(tmp_path, kolors, nvidia_smi):
    nvidia_smi(RTX_4090)
    plan = make_plan(kolors, Runs(tmp_path))
    five_epochs = plan.pace.parts_s(plan.first[0].spec)
    assert five_epochs["train"] == pytest.approx(500 * 14.5 / (165 * 0.45))
    assert five_epochs["render"] == pytest.approx(8 * 50 * 2 * 6.96 / (165 * 0.45))
    text = words(page(kolors, tmp_path))
    assert "on NVIDIA GeForce RTX 4090" in text
    assert "All of this is an estimate" in text
    assert "at 74 TFLOP/s in training and 74 in drawing, shares of the GPU's peak of 165 assumed" in text
    assert "a GPU of 24 GB is enough; this one has 24 GB" in text


def test_the_measured_card_s_pace_is_the_measured_one(tmp_path, kolors, nvidia_smi):
    nvidia_smi("NVIDIA H100 80GB HBM3, 81559, 1, 580.159, Disabled")
    plan = make_plan(kolors, Runs(tmp_path))
    five_epochs = plan.pace.parts_s(plan.first[0].spec)
    assert five_epochs["train"] == pytest.approx(500 * 0.101, rel=0.02)  # docs/measurements.md
    assert five_epochs["render"] == pytest.approx(19.9, rel=0.02)
    assert "as measured on an H100" in plan.basis


@pytest.mark.parametrize(("choice", "tflop"), [("on", 20.9), ("off", 14.5), ("auto", 14.5)])
def test_the_study_s_word_on_checkpointing_counts(tmp_path, kolors, nvidia_smi, choice, tflop):
    nvidia_smi(RTX_4090)
    plan = make_plan(
        kolors.model_copy(update={"train": Training(gradient_checkpointing=choice)}), Runs(tmp_path)
    )
    assert plan.pace.parts_s(plan.first[0].spec)["train"] == pytest.approx(500 * tflop / (165 * 0.45))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            "NVIDIA GeForce RTX 4090 Laptop GPU, 16376, 1, 550.90, [N/A]",
            "RTX 4090 Laptop GPU is at this cannot be known",
        ),
        ("NVIDIA H100 80GB HBM3, 81559, 1, 550.90, Enabled", "is cut into MIG slices"),
        ("something else", "nvidia-smi's answer cannot be read"),
    ],
)
def test_where_the_card_says_nothing_no_time_is_told(tmp_path, kolors, nvidia_smi, answer, reason):
    nvidia_smi(answer)
    plan = make_plan(kolors, Runs(tmp_path))
    assert plan.pace is None
    assert reason in plan.basis
    text = words(page(kolors, tmp_path))
    assert "how long a trial takes here is not known" in text
    assert "a typical trial by estimate: " in text


def test_without_a_card_disk_and_memory_are_told_all_the_same(tmp_path, kolors, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    text = words(page(kolors, tmp_path))
    assert "how long a trial takes here is not known: no GPU found" in text
    assert "a GPU of 24 GB is enough" in text
    assert "702 MB" in text  # rank 16, 5 epochs: seven files of 93 MB, and the images


def test_a_hanging_driver_costs_a_few_seconds(tmp_path, kolors, nvidia_smi, monkeypatch):
    nvidia_smi("x")
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    monkeypatch.setattr("sweep.plan.machine.NVIDIA_SMI_TIMEOUT_S", 0.1)
    assert "gave no answer" in make_plan(kolors, Runs(tmp_path)).basis


def test_memory_grows_with_the_batch_until_only_checkpointing_fits(tmp_path, kolors):
    large = kolors.model_copy(update={"train": Training(batch_size=4)})
    one, four = (make_plan(study, Runs(tmp_path)).memory for study in (kolors, large))
    assert one.training < 24 * 2**30 < four.training
    assert four.checkpointed < 24 * 2**30
    assert "enough with gradient checkpointing" in words(page(large, tmp_path))


def test_a_lora_of_rank_16_has_the_field_s_number_of_parameters(kolors):
    spec = kolors.spec(0, {"lora_rank": 16, "epochs": 1})
    assert lora_parameters(spec) == 23_224_320
    assert 3 * 4 * 23_224_320 < trial_disk_bytes(spec) < 3 * 4 * 23_224_320 + 60e6


@pytest.mark.parametrize("name", ["kolors", "tiny"])
def test_the_counted_layers_are_the_model_s(name):
    import torch
    from diffsynth.models.sdxl_unet import SDXLUNet

    from core.tiny.models import tiny_unet

    with torch.device("meta"):
        unet = SDXLUNet(is_kolors=True) if name == "kolors" else tiny_unet()
    for target, per_rank in base_model(name).lora_parameters.items():
        layers = [module for path, module in unet.named_modules() if path.endswith(f".{target}")]
        assert len(layers) == base_model(name).lora_layers
        assert sum(layer.in_features + layer.out_features for layer in layers) == per_rank


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("23:30", datetime(2026, 3, 1, 23, 30)),
        ("7:00", datetime(2026, 3, 2, 7)),
        ("22:00", datetime(2026, 3, 2, 22)),
        ("00:00", datetime(2026, 3, 2)),
    ],
)
def test_the_deadline_is_the_next_such_time(written, expected):
    assert deadline(written, EVENING) == expected


@pytest.mark.parametrize("written", ["24:00", "7", "7:60", "07:00:00", "morning", ""])
def test_a_wrong_deadline_costs_one_line(written):
    with pytest.raises(ValueError, match=r"--until is .*allowed: 00:00 to 23:59"):
        deadline(written, EVENING)


def test_the_command_refuses_a_wrong_deadline(cli, tmp_path):
    done = cli("plan", "demo", "--until", "25:00", "--runs", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--until is '25:00'" in done.stderr


def test_the_command_refuses_a_device_that_cannot_be(cli, tmp_path):
    done = cli("plan", "demo", "--device", "cuda:x", "--runs", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "allowed: auto, cpu, cuda, cuda:1" in done.stderr


def test_a_night_in_which_the_clock_is_changed_is_an_hour_shorter(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        evening = datetime(2026, 3, 28, 22, 0)
        assert seconds_until(deadline("07:00", evening), evening) == 8 * 3600
    finally:
        monkeypatch.undo()
        time.tzset()
