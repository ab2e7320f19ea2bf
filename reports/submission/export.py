"""The submission folder: the LoRA, its story, and everything needed to reproduce both."""

import hashlib
import os
import re
import shutil
import unicodedata
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from core.base_models import base_model
from core.errors import UserError
from core.files import safetensors_header
from core.files.files import sha256, write_json, write_text
from core.folders import TrialFolder
from core.trial.recipe import Recipe, Submission
from core.trial.result import Result
from core.verdict import CHALLENGE_GATE, Verdict, passes
from reports.submission.model_card import model_card

NAME_LENGTH = 80
CHECKSUMS, RECIPE, PROMPTS, CARD = "checksums.sha256", "recipe.json", "prompts.csv", "README.md"


class ExportError(UserError):
    """A trial cannot be exported; the message is one line for the user."""


def export(
    verdict: Verdict,
    result: Result,
    folder: TrialFolder,
    *,
    team: str,
    title: str,
    out: Path,
    force: bool,
    epoch: int | None = None,
) -> Path:
    """Write the submission of `result`, whose files are in `folder`, to `out` -> its absolute path.

    An earlier export at `out` is replaced, anything else is not. `verdict` is that of the whole study.
    `epoch` is the epoch whose LoRA `folder` holds, None for the last. `force` allows a story under the gate,
    or from before an accepted change. Raises ExportError.
    """
    out = out.resolve()
    team, title = _name("team", team), _name("title", title)
    older = "; ".join(
        f"{change.told or change.field}, from trial {change.from_trial} on"
        for change in verdict.changes
        if change.from_trial > result.spec.number
    )
    _check_result(result, folder, older, force)
    _check_out(out)

    assert result.spec.train is not None, "checked in _check_result"
    base = verdict.base_of(result.spec.number).result
    placeless = replace(
        result.spec, data=replace(result.spec.data, source=result.spec.data.shared_name), weights=None
    )
    submission = Submission(
        name=f"{team}-可图Kolors训练-{title}",
        team=team,
        title=title,
        epoch=epoch or result.spec.train.epochs,
        weight_name=f"{weight_stem(result.spec.study, result.spec.number, epoch)}.safetensors",
        base_aesthetic_mean=base.aesthetic_mean if base else None,
        older=older,
        result=replace(result, spec=placeless),
        tensors_sha256="",
        sha256={},
    )

    out.parent.mkdir(parents=True, exist_ok=True)
    made = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        _write_folder(made, submission, folder)
        _swap(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return out


def weight_stem(study: str, number: int, epoch: int | None) -> str:
    """The LoRA's file name without its ending, in ASCII whatever the study's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")[:40] or "lora"
    return f"{slug}-{number:04d}" + (f"-epoch{epoch:02d}" if epoch else "")


def write_lora(source: Path, target: Path, metadata: dict[str, str]) -> str:
    """Copy a safetensors file with `metadata` added to its header -> the sha256 of its tensor data.

    `modelspec.hash_sha256` is of the tensor data alone (ModelSpec 1.0.1), so that the header can hold it.
    """
    header, tensors = safetensors_header.split(source.read_bytes())
    digest = hashlib.sha256(tensors).hexdigest()
    kept = header.get("__metadata__", {})
    target.write_bytes(
        safetensors_header.join(header, kept | metadata | {"modelspec.hash_sha256": f"0x{digest}"}, tensors)
    )
    return digest


def write_checksums(folder: Path) -> None:
    """Write `checksums.sha256` of every other file, for `sha256sum -c`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / CHECKSUMS, "".join(lines))


def _name(field: str, text: str) -> str:
    name = text.strip()
    if not name:
        raise ExportError(f"{field} is empty: the model is named after the team and the title")
    if len(name) > NAME_LENGTH:
        raise ExportError(f"{field} has {len(name)} characters (allowed: 1 to {NAME_LENGTH})")
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name):
        raise ExportError(f"{field} {name!r} holds control characters; write it as plain text on one line")
    return name


def _check_result(result: Result, folder: TrialFolder, older: str, force: bool) -> None:
    number = result.spec.number
    if result.state == "failed":
        raise ExportError(f"trial {number} failed ({result.reason}) and has no story to hand in")
    if result.spec.train is None:
        raise ExportError("the base model's own story has no LoRA to hand in")
    if not result.passed_gate and not force:
        assert result.aesthetic_mean is not None
        valid = passes(result.aesthetic_mean, CHALLENGE_GATE)
        raise ExportError(
            f"trial {number} scored {result.aesthetic_mean:.3f}, under the gate {result.spec.gate:g}"
            f"{'' if valid else ', and would be invalid'}; --force exports it all the same"
        )
    if older and not force:
        raise ExportError(
            f"trial {number} was made before the study was changed ({older}), and its score does not compare "
            "with later ones; --force exports it all the same"
        )
    images = [folder.image(index) for index in range(1, len(result.spec.story.scenes) + 1)]
    missing = [path for path in (folder.lora, folder.sheet, *images) if not path.exists()]
    if missing:
        raise ExportError(
            f"{missing[0]} is missing; to make room, LoRAs are removed (storage.keep says whose stay)"
        )
    if result.lora_sha256 and sha256(folder.lora) != result.lora_sha256:
        raise ExportError(f"{folder.lora} is not the file that was scored; restore it or run the trial again")


def _check_out(out: Path) -> None:
    """Raise ExportError unless `out` is new, empty, or an export without added or changed files."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file; choose a new folder with --out")
    files = {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    if not files and not any(out.iterdir()):
        return
    if not {CHECKSUMS, RECIPE} <= files:
        raise ExportError(f"{out} holds files that no export made; choose a new folder with --out")
    lines = (line.partition("  ") for line in (out / CHECKSUMS).read_text(encoding="utf-8").splitlines())
    listed = {name: digest for digest, _, name in lines}
    elsewhere = "move it away or choose another --out"
    if foreign := sorted(files - listed.keys() - {CHECKSUMS}):
        raise ExportError(f"{out} holds {foreign[0]!r}, which no export made; {elsewhere}")
    if changed := [name for name in sorted(files & listed.keys()) if sha256(out / name) != listed[name]]:
        raise ExportError(f"{out} holds {changed[0]!r}, which was changed after its export; {elsewhere}")


def _write_folder(made: Path, submission: Submission, folder: TrialFolder) -> None:
    """Write all files; `submission` lacks their checksums."""
    shutil.rmtree(made, ignore_errors=True)
    (made / "story").mkdir(parents=True)
    for number in range(1, len(submission.result.spec.story.scenes) + 1):
        shutil.copyfile(folder.image(number), made / "story" / f"{number}.png")
    shutil.copyfile(folder.sheet, made / "story.png")
    tensors = write_lora(folder.lora, made / submission.weight_name, _metadata(submission, folder))
    files = sorted(path for path in made.rglob("*") if path.is_file())
    digests = {path.relative_to(made).as_posix(): sha256(path) for path in files}
    submission = replace(submission, tensors_sha256=tensors, sha256=digests)
    _prompts(submission.result).to_csv(made / PROMPTS, index=False, encoding="utf-8-sig")
    write_json(made / RECIPE, Recipe.of_export(submission).to_json())
    write_text(made / CARD, model_card(submission))
    write_checksums(made)


def _metadata(submission: Submission, folder: TrialFolder) -> dict[str, str]:
    """Added metadata; its date is that of the trained file, so that a second export is the same file."""
    result = submission.result
    toy = "toy model, not for Kolors; " if base_model(result.spec.backbone).is_toy else ""
    trained = datetime.fromtimestamp(folder.lora.stat().st_mtime, UTC)
    return {
        "modelspec.title": submission.name,
        "modelspec.author": submission.team,
        "modelspec.date": trained.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.description": f"{submission.title} ({toy}mean aesthetic score {result.aesthetic_mean:.3f} "
        f"by {result.scorer}; use at strength 1.0)",
        "ss_output_name": Path(submission.weight_name).stem,
    }


def _prompts(result: Result) -> pd.DataFrame:
    table = pd.DataFrame(map(asdict, result.spec.story.scenes))
    numbers = range(1, len(table) + 1)
    files = [f"story/{number}.png" for number in numbers]
    table = table.assign(number=numbers, file=files, aesthetic=result.aesthetic)
    return table[["number", "file", "seed", "prompt", "negative_prompt", "aesthetic"]]


def _swap(made: Path, out: Path) -> None:
    """Rename `made` to `out`; an old folder there is removed only after that."""
    if not out.exists():
        made.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    try:
        made.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
