"""`lora-sweep data` shows what the filters keep; unusable images are always named and never stop a sweep."""

import io
import json
import shutil
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors import safe_open

from core.backbone.encode import image_tensor
from core.data.folder import DataError
from core.data.image import open_image
from core.files.cache import Cache
from core.files.install import ROOT, python
from core.folders import Runs, TrialFolder
from core.trial.result import Result
from core.trial.spec import Filters, Training, TrialSpec
from reports.data.data_juicer import process
from sweep import events
from sweep.events import Attempt, Task
from sweep.progress import LiveProgress
from sweep.study.study import STUDIES, load_study
from sweep.trial import NoImagesError, _sparing, look_at_images, run_trial, select_images
from sweep.worker.worker import Reporter, _carry_out

WATERCOLOR = ROOT / "studies" / "data" / "watercolor" / "train"
BAD = {
    "empty.png": "cannot be read: it is empty",
    "half <b>.png": "cannot be read: it is cut short or damaged",
    "words.png": "cannot be read: it is no image",
    "mute.png": "caption is empty",
    "gone.png": "file is missing",
}
SPACE = """
  min_width: {choices: [1, 96]}
  max_ratio: {low: 1.6, high: 3.0}
  max_images: {choices: [4, null]}
"""


def make_images(train: Path) -> None:
    """Six good images, one of them small, one wide, one a duplicate; and five bad ones."""
    train.mkdir(parents=True)
    names = {
        "01.png": "一 只.png",
        "02.png": "it's.png",
        "04.png": "d.png",
        "21.png": "small.png",
        "24.png": "wide.png",
    }
    for source, name in names.items():
        shutil.copy(WATERCOLOR / source, train / name)
    Image.open(train / "d.png").save(train / "repeated.tif")
    shutil.copy(WATERCOLOR / "05.png", train / "mute.png")
    (train / "empty.png").touch()
    (train / "half <b>.png").write_bytes((train / "d.png").read_bytes()[:900])
    (train / "words.png").write_text("I am an image")
    rows = [
        {"file_name": name, "text": "" if name == "mute.png" else "a cat"}
        for name in [*names.values(), "repeated.tif", *BAD]
    ]
    (train / "metadata.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def make_study(folder: Path, write_study: Any) -> Path:
    make_images(folder / "images" / "train")
    study = write_study(folder, name="mine")
    text = study.read_text().replace(str(WATERCOLOR.parent), "images")
    study.write_text(text.replace("space:\n", f"space:{SPACE}"), encoding="utf-8")
    return study


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory, write_study, cli):
    folder = tmp_path_factory.mktemp("surveyed")
    done = cli("data", make_study(folder, write_study), "--runs", folder / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "mine" / "data", done.stdout


def counts(printed: str, stage: str) -> list[int]:
    line = next(line for line in printed.splitlines() if line.strip().startswith(stage))
    return [int(word) for word in line.split()[-2:]]


def test_it_is_told_what_each_filter_leaves_at_its_loosest_and_strictest(surveyed):
    _, printed = surveyed
    assert counts(printed, "can be used") == [6, 6]
    assert counts(printed, "image_shape_filter") == [6, 5]
    assert counts(printed, "image_aspect_ratio_filter") == [6, 4]
    assert counts(printed, "image_deduplicator") == [5, 3]
    assert counts(printed, "max_images") == [5, 3]
    assert "min_width 1 or 96, min_height 1" in printed
    assert "trials near the strictest bounds fail as no_images: 3 kept, data.min_images is 4" in printed


def test_every_bad_image_is_named_with_its_reason(surveyed):
    for file, reason in BAD.items():
        assert f"cannot be used: {file}: {reason}\n" in surveyed[1]


def test_what_a_filter_drops_even_at_its_loosest_is_named(surveyed):
    said = [line for line in surveyed[1].splitlines() if line.startswith("dropped by")]
    assert said == ["dropped by image_deduplicator: repeated.tif"]


def test_the_page_shows_every_image_and_needs_no_other_file(surveyed):
    page = (surveyed[0] / "index.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == 6
    assert page.count("http") == 0
    assert "half &lt;b&gt;.png" in page
    assert "it&#39;s.png" in page
    kept, dropped = page.split('<section class="dropped">')
    assert "一 只.png" in kept
    assert "repeated.tif" in dropped
    assert kept.count('<span class="badge">image_aspect_ratio_filter</span>') == 1


def test_the_audit_table_is_written_whole(surveyed):
    table = pd.read_csv(surveyed[0] / "audit.csv", keep_default_na=False)
    assert dict(zip(table["file"], table["problem"], strict=True)).items() >= BAD.items()
    assert len(table) == 11


def test_the_recipe_is_data_juicer_s(surveyed):
    text = (surveyed[0] / "data_juicer.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    steps = {name: bounds for step in recipe["process"] for name, bounds in step.items()}
    assert list(steps) == [
        "image_shape_filter",
        "image_aspect_ratio_filter",
        "image_size_filter",
        "image_aesthetics_filter",
        "image_deduplicator",
    ]
    assert steps["image_shape_filter"] == {"min_width": 1, "min_height": 1}
    assert steps["image_aspect_ratio_filter"] == {"min_ratio": 0.333, "max_ratio": 3.0}
    assert steps["image_size_filter"] == {"min_size": "1"}
    assert steps["image_deduplicator"] == {"method": "phash"}
    assert "# max_ratio is searched: 1.6 to 3.0; here its loosest." in text
    lines = [
        json.loads(line) for line in Path(recipe["dataset_path"]).read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) == 6
    assert all(Path(path).is_file() for line in lines for path in line["image"])
    assert {line["text"] for line in lines} == {"a cat, watercolor style"}


def test_the_recipe_has_a_subset_first_and_the_best_last_and_no_step_for_what_is_off():
    names = [
        next(iter(step)) for step in process(Filters(subset="Watercolor", max_images=3, deduplicate="none"))
    ]
    assert (names[0], names[-1], len(names)) == ("specified_field_filter", "topk_specified_field_selector", 6)
    assert "image_deduplicator" not in names


@pytest.mark.skipif(find_spec("datasets") is not None, reason="the package that loads it is installed")
def test_a_data_set_that_cannot_be_loaded_costs_one_line(cli, tmp_path):
    done = cli("data", "kolors_watercolor", "--runs", tmp_path / "runs")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert f"{python()} -m pip install -c constraints.txt -e '.[modelscope]'" in done.stderr


@pytest.mark.skipif(find_spec("datasets") is not None, reason="the package that loads it is installed")
@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("fp32", "the package that loads it is missing"),
        # the machine is asked before the network is
        ("fp16", "precision is fp16, but"),
    ],
)
def test_a_sweep_whose_data_cannot_be_loaded_does_not_start_nor_fetch_weights(cli, tmp_path, precision, why):
    study, words = (
        tmp_path / "kolors_watercolor.yaml",
        (STUDIES / "kolors_watercolor.yaml").read_text(encoding="utf-8"),
    )
    study.write_text(
        words.replace("stories/", f"{STUDIES}/stories/").replace("fp16", precision), encoding="utf-8"
    )
    done = cli(
        "run",
        study,
        "--device",
        "cpu",
        "--runs",
        tmp_path / "runs",
        LORA_SWEEP_MODELS=str(tmp_path / "models"),
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert why in done.stderr
    assert not Runs(tmp_path / "runs").study("kolors_watercolor").frozen.exists()
    assert not (tmp_path / "models").exists()


@pytest.fixture
def study(tmp_path, write_study):
    return load_study(str(make_study(tmp_path, write_study)))


@pytest.fixture
def attempt(backbone, tmp_path):
    """Do one trial as the worker does, with one cache; what its journal has comes too."""
    cache = Cache(tmp_path / "cache")

    def call(spec: TrialSpec) -> tuple[Result, list[dict[str, Any]]]:
        folder = TrialFolder(tmp_path / "trial")
        reporter = Reporter(io.StringIO(), folder.events, spec.number, threading.Event())
        task = Task(spec=spec, folder=folder, attempt=Attempt(micro_batch=1))
        assert _carry_out(task, backbone, cache, reporter, checkpoint_every_s=120.0)
        result = folder.read_result()
        assert result
        assert not (folder.path / "traceback.txt").exists()
        assert not (folder.path / "epochs").exists()
        *said, last = map(json.loads, folder.events.read_text(encoding="utf-8").splitlines())
        assert (last["event"], last["reason"]) == ("finished", result.reason)
        return result, said

    return call


def spec_of(study, **sampled) -> TrialSpec:
    return study.spec(0, {name: search.start for name, search in study.space.items()} | sampled)


def test_filters_that_keep_too_few_end_the_trial_before_a_model_is_read(study, attempt, backbone):
    backbone._parts.clear()
    assert attempt(spec_of(study, min_width=96, max_ratio=1.6))[0].reason == "no_images"
    assert backbone._parts.keys() == {"scorer"}


def test_filters_that_keep_too_few_end_the_trial_as_no_images(study, attempt):
    result, events = attempt(spec_of(study, min_width=96, max_ratio=1.6))
    assert (result.state, result.reason) == ("failed", "no_images")
    assert result.message == "the filters keep 3 of 11 images, but data.min_images is 4"
    looked = [(event["image"], event["total"]) for event in events if event["event"] == "looking"]
    assert looked == [(n, 11) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 6)]  # those that fit are scored
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert note.startswith(
        "note: 5 images cannot be used: empty.png (cannot be read: it is empty), half <b>.png ("
    )

    again, events = attempt(spec_of(study, min_width=96, max_ratio=1.6))
    assert again.reason == "no_images"
    # all is known: nothing is looked at again
    assert [event["event"] for event in events] == ["started", "note"]


@pytest.mark.parametrize("least", [7, 12])
def test_too_few_images_for_any_filter_are_no_fault_of_the_parameters(study, attempt, least):
    spec = spec_of(study)
    result, _ = attempt(replace(spec, data=replace(spec.data, min_images=least)))
    assert result.reason == "bad_image"
    assert result.message.endswith(
        f"; 6 images can be used, but data.min_images is {least}: no filter can help"
    )


def test_after_a_lack_of_memory_one_row_at_a_time_is_recomputed_unless_the_study_forbids_it():
    again = Attempt(micro_batch=1, retried=("cuda_oom",))
    assert _sparing(Training(), again).gradient_checkpointing == "on"
    assert _sparing(Training(gradient_checkpointing="off"), again).gradient_checkpointing == "off"
    assert (
        _sparing(Training(), Attempt(micro_batch=2, retried=("cuda_oom",))).gradient_checkpointing == "auto"
    )


def test_a_terminal_shows_which_image_is_looked_at(study):
    text = io.StringIO()
    progress = LiveProgress(Console(file=text, force_terminal=True, width=160))
    progress.start("mine", 0, 2)
    progress.looking(spec_of(study), 7, 30)
    progress.stop()
    assert "7/30" in text.getvalue()
    assert "looking at the images" in text.getvalue()


@pytest.mark.parametrize("what", ["images", "images/train"])
def test_a_folder_that_goes_ends_the_trial_as_bad_image(study, attempt, tmp_path, what):
    attempt(spec_of(study, min_width=96, max_ratio=1.6))
    shutil.move(tmp_path / what, tmp_path / "elsewhere")
    result, _ = attempt(spec_of(study))
    assert (result.state, result.reason) == ("failed", "bad_image")
    assert str(tmp_path / "images") in result.message


def test_images_that_go_end_the_trial_as_bad_image(study, attempt, tmp_path):
    for path in (tmp_path / "images" / "train").glob("*.[pt]*"):
        path.unlink()
    result, _ = attempt(spec_of(study))
    assert result.reason == "bad_image"
    assert result.message.startswith("11 images cannot be used: 一 只.png (file is missing), ")
    assert result.message.endswith(
        "and 6 more (lora-sweep data lists them); 0 images can be used, but data.min_images is 4: "
        "no filter can help"
    )


def refusing(backbone, folder: Path, *names: str):
    """The base model, its VAE's encoder in trouble with some images."""
    encoder = backbone.vae_encoder
    refused = [image_tensor(open_image(folder / name), 128) for name in names]

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        if any(torch.equal(pixels[0], one) for one in refused):
            raise ValueError("too odd")
        return encoder(pixels)

    return replace(backbone, _parts=backbone._parts | {"vae_encoder": encode})


def test_an_image_that_cannot_be_encoded_is_left_out_by_name_and_the_trial_goes_on(study, backbone, tmp_path):
    spec = spec_of(study, max_images=None, max_ratio=3.0)
    spec = replace(
        spec,
        story=replace(spec.story, scenes=spec.story.scenes[:1]),
        train=replace(spec.train, epochs=1, steps_per_epoch=1),
    )
    said: list[events.Event] = []
    result = run_trial(
        spec,
        refusing(backbone, tmp_path / "images" / "train", "d.png"),
        Cache(tmp_path / "cache"),
        TrialFolder(tmp_path / "trial"),
        said.append,
        attempt=Attempt(micro_batch=1),
    )
    notes = [event.text for event in said if isinstance(event, events.Note)]
    # repeated.tif, which has the same pixels, took its place: it was no duplicate any more
    assert notes[1:] == [
        f"note: 1 image cannot be used: {name} (cannot be processed: too odd)"
        for name in ("d.png", "repeated.tif")
    ]
    assert (result.state, result.images) == ("complete", 4)
    assert [event.images for event in said if isinstance(event, events.Training)] == [4]
    with safe_open(TrialFolder(tmp_path / "trial").lora, "np") as lora:
        assert lora.metadata()["ss_num_train_images"] == "4"


@pytest.mark.parametrize(
    ("refused", "sampled", "error", "message"),
    [
        (
            ["d.png"],
            {"min_width": 96},
            NoImagesError,
            "the filters keep 3 of 11 images, but data.min_images is 4",
        ),
        (
            ["d.png", "small.png"],
            {},
            DataError,
            "8 images cannot be used: .*; 3 images can be used, but data.min_images is 4",
        ),
    ],
)
def test_what_is_left_of_images_that_cannot_be_encoded_is_counted_again(
    study, backbone, tmp_path, refused, sampled, error, message
):
    spec, cache = spec_of(study, max_images=None, max_ratio=3.0, **sampled), Cache(tmp_path / "cache")
    picky = refusing(backbone, tmp_path / "images" / "train", *refused)
    table = look_at_images(spec, picky, cache, lambda event: None)
    with pytest.raises(error, match=message):
        select_images(spec, table, picky, cache, lambda event: None)


def test_an_image_that_goes_after_it_was_looked_at_is_left_out_by_name(study, backbone, tmp_path):
    spec, cache = spec_of(study, max_images=None, max_ratio=3.0), Cache(tmp_path / "cache")
    notes: list[str] = []
    table = look_at_images(spec, backbone, cache, lambda event: None)
    (tmp_path / "images" / "train" / "small.png").unlink()
    kept = select_images(spec, table, backbone, cache, lambda event: notes.append(event.text))
    assert notes == ["note: 1 image cannot be used: small.png (cannot be read: no such file or directory)"]
    assert list(kept["file"]) == ["一 只.png", "it's.png", "d.png", "wide.png"]
