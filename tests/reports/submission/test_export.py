import json
import shutil
import subprocess
from dataclasses import asdict, replace

import pandas as pd
import pytest
from safetensors import safe_open

from core.files.files import read_json, sha256
from core.folders import TrialFolder
from reports.submission.export import ExportError, export, weight_stem
from tests.examples import ADDED, HOSTILE, STUDY, fill, make_spec
from tests.reports.test_leaderboard import accept_change


@pytest.fixture
def study(make_study):
    return make_study((6.2, 5.7), failed=1)


def hand_in(study, out, number=0, *, team="湖边队", title="湖上", force=False, **more):
    folder = study.trial(number)
    return export(
        study.verdict(), folder.read_result(), folder, team=team, title=title, out=out, force=force, **more
    )


def tensors(path) -> dict:
    with safe_open(path, framework="numpy") as file:
        return {name: (file.get_tensor(name).dtype, file.get_tensor(name).tobytes()) for name in file.keys()}  # noqa: SIM118


def metadata(path) -> dict:
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def tree(folder) -> dict:
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_folder_holds_exactly_the_submission(study, tmp_path):
    out = hand_in(study, tmp_path / "out")
    assert set(tree(out)) == {
        "lake-painter-0000.safetensors",
        "README.md",
        "prompts.csv",
        "recipe.json",
        "checksums.sha256",
        "story.png",
        *(f"story/{number}.png" for number in range(1, 9)),
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_tensors_are_bit_equal_and_metadata_is_added(study, tmp_path):
    weights = hand_in(study, tmp_path / "out") / "lake-painter-0000.safetensors"
    assert tensors(weights) == tensors(study.trial(0).lora)
    content = weights.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    (tmp_path / "data").write_bytes(content[start:])
    written = metadata(weights)
    assert start % 8 == 0
    assert ADDED.items() <= written.items()
    assert written["modelspec.title"] == "湖边队-可图Kolors训练-湖上"
    assert written["modelspec.author"] == "湖边队"
    assert written["modelspec.hash_sha256"] == "0x" + sha256(tmp_path / "data")
    assert written["ss_output_name"] == "lake-painter-0000"
    assert {"modelspec.date", "modelspec.description"} <= written.keys()


def test_sha256sum_accepts_the_checksums_and_they_cover_every_other_file(study, tmp_path):
    out = hand_in(study, tmp_path / "out")
    lines = (out / "checksums.sha256").read_text(encoding="utf-8").splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    assert all(line[64:66] == "  " for line in lines)
    assert listed == {name: digest for name, digest in tree(out).items() if name != "checksums.sha256"}
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "checksums.sha256"], cwd=out, check=True, capture_output=True)


def test_prompts_come_back_as_they_were(study, tmp_path):
    path = hand_in(study, tmp_path / "out") / "prompts.csv"
    prompts = pd.read_csv(path, encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert prompts.columns.tolist() == ["number", "file", "seed", "prompt", "negative_prompt", "aesthetic"]
    assert prompts["prompt"].tolist() == list(HOSTILE)
    assert prompts["seed"].tolist() == list(range(100, 108))
    assert prompts["aesthetic"].tolist() == pytest.approx(study.trial(0).read_result().aesthetic)


def test_recipe_holds_what_it_takes_to_do_it_again(study, tmp_path):
    out = hand_in(study, tmp_path / "out")
    recipe = read_json(out / "recipe.json", dict)
    result = study.trial(0).read_result()
    assert recipe["spec"] == json.loads(json.dumps(asdict(result.spec)))
    assert (recipe["lora_rank"], recipe["training_alpha"], recipe["scale"]) == (4, 4.0, 1.0)
    assert (recipe["scorer"], recipe["device"], recipe["dtype"]) == ("fake-scorer", "cpu", "float32")
    assert recipe["versions"] == {"torch": "2.15"}
    assert recipe["base_aesthetic_mean"] == 5.5
    assert len(recipe["sha256"]) == 10
    assert recipe["sha256"].items() <= tree(out).items()


def test_a_story_under_the_gate_needs_force_and_its_card_says_so(study, tmp_path):
    with pytest.raises(ExportError, match="under the gate 6"):
        hand_in(study, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
    result = study.trial(1).read_result()
    strict = replace(result, spec=replace(result.spec, gate=7.0), aesthetic_mean=6.5)
    with pytest.raises(ExportError, match="under the gate 7; --force"):  # for the challenge it is valid
        export(
            study.verdict(), strict, study.trial(1), team="t", title="t", out=tmp_path / "out", force=False
        )
    out = hand_in(study, tmp_path / "out", 1, force=True)
    assert "failed the gate" in (out / "README.md").read_text(encoding="utf-8")
    assert read_json(out / "recipe.json", dict)["passed_gate"] is False


def test_a_trial_from_before_an_accepted_change_needs_force_and_is_compared_with_its_own_base_story(
    study, tmp_path
):
    fill(study.earlier(1).base, make_spec(-1, train=None), 4.5)
    accept_change(study, from_trial=1)
    told = "story.template ('{scene}' -> 'a *red* {scene}'), from trial 1 on"
    with pytest.raises(ExportError) as refused:
        hand_in(study, tmp_path / "out")
    assert str(refused.value) == (
        f"trial 0 was made before the study was changed ({told}), and its score does not compare with "
        "later ones; --force exports it all the same"
    )
    out = hand_in(study, tmp_path / "out", force=True)
    card, recipe = (out / "README.md").read_text(encoding="utf-8"), read_json(out / "recipe.json", dict)
    assert "Made before the study was changed:** story.template" in card
    assert "the base model alone, same prompts and seeds: 4.500" in card
    assert (recipe["base_aesthetic_mean"], recipe["older"]) == (4.5, told)
    now = read_json(hand_in(study, tmp_path / "now", 1, force=True) / "recipe.json", dict)
    assert (now["base_aesthetic_mean"], now["older"]) == (5.5, "")


def test_failed_trials_and_the_base_model_are_never_exported(study, tmp_path):
    with pytest.raises(ExportError, match="nan_loss"):
        hand_in(study, tmp_path / "out", 2, force=True)
    with pytest.raises(ExportError, match="base model"):
        export(
            study.verdict(),
            study.base.read_result(),
            study.base,
            team="t",
            title="x",
            out=tmp_path / "out",
            force=True,
        )


def test_a_second_export_replaces_the_first(study, tmp_path):
    first = tree(hand_in(study, tmp_path / "out"))
    assert tree(hand_in(study, tmp_path / "out")) == first
    out = hand_in(study, tmp_path / "out", 1, force=True)
    assert not (out / "lake-painter-0000.safetensors").exists()
    assert (out / "lake-painter-0001.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_a_foreign_folder_is_left_as_it_is(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ExportError, match="no export made"):
        hand_in(study, out, force=True)
    assert [path.name for path in out.iterdir()] == ["diary.txt"]


def test_a_file_put_into_an_export_is_not_lost(study, tmp_path):
    out = hand_in(study, tmp_path / "out")
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ExportError, match=r"notes\.txt"):
        hand_in(study, out)
    assert (out / "notes.txt").exists()


def test_an_empty_folder_is_filled_and_a_file_is_refused(study, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (hand_in(study, tmp_path / "empty") / "README.md").exists()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ExportError, match="is a file"):
        hand_in(study, tmp_path / "file")


def test_a_lora_other_than_the_scored_one_is_refused(study, tmp_path):
    shutil.copyfile(study.trial(1).lora, study.trial(0).lora)
    with pytest.raises(ExportError, match="not the file that was scored"):
        hand_in(study, tmp_path / "out")


def test_a_missing_image_is_refused(study, tmp_path):
    study.trial(0).image(3).unlink()
    with pytest.raises(ExportError, match=r"3\.png is missing"):
        hand_in(study, tmp_path / "out")


@pytest.mark.parametrize("bad", ["", "  ", "x" * 81, "a\nb", "a\x00b", "a\u202eb", "a\u2028b"])
def test_names_that_are_no_names_are_refused_in_one_line(study, tmp_path, bad):
    for words in ({"team": bad}, {"title": bad}):
        with pytest.raises(ExportError) as error:
            hand_in(study, tmp_path / "out", **words)
        assert len(str(error.value).splitlines()) == 1


def test_hostile_names_reach_no_file_name(study, tmp_path):
    out = hand_in(study, tmp_path / "out", team="../../etc", title="<b>/x---")
    assert (out / "lake-painter-0000.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_another_epoch_brings_its_own_files(study, tmp_path):
    folder = TrialFolder(tmp_path / "runs" / STUDY / "trials" / "0000" / "epochs" / "01")
    result = fill(folder, replace(study.trial(0).read_result().spec, number=0), 6.3)
    out = export(
        study.verdict(), result, folder, team="t", title="x", out=tmp_path / "out", force=False, epoch=1
    )
    assert tensors(out / "lake-painter-0000-epoch01.safetensors") == tensors(folder.lora)
    assert read_json(out / "recipe.json", dict)["epoch"] == 1


@pytest.mark.parametrize(
    ("study_name", "stem"), [("Lake Painter", "lake-painter-0007"), ("湖", "lora-0007"), ("../x", "x-0007")]
)
def test_weight_names_are_plain_ascii(study_name, stem):
    assert weight_stem(study_name, 7, None) == stem
