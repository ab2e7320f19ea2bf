"""Make the submission of a trial, or of one of its epochs, whose story is then rendered and scored first."""

from dataclasses import replace
from pathlib import Path

from core.errors import UserError
from core.files.files import at_home, write_json
from core.folders import Runs, StudyFolder, TrialFolder, shown_path
from core.trial.result import Result
from core.verdict import CHALLENGE_GATE, Verdict, passes
from reports.submission.export import export as write_export
from sweep.process.console import say, say_not_passed_on
from sweep.start.started import started


def epoch_story(
    study: StudyFolder, result: Result, epoch: int, cache: Path, device: str
) -> tuple[TrialFolder, Result]:
    """Render and score the story of epoch `epoch` (from 1), once; the last epoch is the trial itself.

    Device `auto` is the kind that the trial was made on. Raises UserError where the trial has no such epoch,
    its LoRA was removed, or the base model was changed since.
    """
    trial = study.artifacts_of(result)
    train = result.spec.train
    if train is None or not 1 <= epoch <= train.epochs:
        raise UserError(
            f"trial {result.spec.number} has no epoch {epoch} (allowed: 1 to {train.epochs if train else 0})"
        )
    if epoch == train.epochs:
        return trial, result
    folder = TrialFolder(trial.epoch_lora(epoch).parent)
    if stored := folder.read_result():
        return folder, stored

    if not folder.lora.exists():
        raise UserError(
            f"trial {result.spec.number}: its LoRAs were removed to make room (storage.keep); "
            f"its images and its recipe are in {trial.path}"
        )

    from core.backbone.backbone import load_backbone
    from core.files.cache import Cache
    from core.fingerprint import read_fingerprint
    from core.lora.file import inject_file
    from core.story.score import score_images
    from sweep.trial import draw_story, judge, write_recipe

    # Training for k epochs is a prefix of training for k+1: the spec of a trial that ends at this epoch.
    spec = replace(result.spec, train=replace(train, epochs=epoch))
    device = result.device.partition(":")[0] if device == "auto" else device
    backbone = load_backbone(spec.backbone, device, spec.precision, spec.weights)
    if changed := read_fingerprint(study.fingerprint).changed_weights(spec.number, backbone.weights):
        raise UserError(
            f"{study.path.name}: the base model's {changed} changed since trial {spec.number}, and a story "
            f"drawn now would not compare; only the last epoch, as it was drawn then, can be exported"
        )
    inject_file(backbone.unet, folder.lora)
    images = draw_story(spec, backbone, Cache(cache), folder, lambda event: None)
    judged = judge(
        spec,
        backbone,
        folder,
        score_images(backbone, images),
        losses=[],
        images=result.images,
        duration_s=0.0,
    )
    write_recipe(judged, folder)
    write_json(folder.result, judged)
    return folder, judged


def export_trial(
    study: str,
    runs: Path,
    team: str,
    title: str,
    trial: int | None,
    epoch: int | None,
    out_dir: Path | None,
    force: bool,
    device: str,
) -> None:
    """Make the submission folder of trial `trial`, by default the winner. Raises UserError."""
    say_not_passed_on()
    folder = started(study, runs)
    verdict = folder.verdict()
    result = verdict.winner if trial is None else folder.trial(trial).read_result()
    if result is None:
        asked = f"--trial is {trial}, but there is no such finished trial"
        if trial is None:
            asked = f"{folder.path.name}: no story passes the gate yet; name one with --trial and --force"
        raise UserError(f"{asked} ({_exportable(verdict)})")
    source = folder.artifacts_of(result)
    if epoch is not None and result.state == "complete":
        source, result = epoch_story(folder, result, epoch, Runs(runs).cache, device)
    earlier = epoch if source.path != folder.artifacts_of(result).path else None
    name = f"{folder.path.name}-{result.spec.number:04d}" + (f"-epoch{earlier:02d}" if earlier else "")
    target = at_home(out_dir) if out_dir else Path("exports") / name
    made = write_export(
        verdict, result, source, team=team, title=title, out=target, force=force, epoch=earlier
    )
    which = f"{result.spec.number}, epoch {earlier}" if earlier else str(result.spec.number)
    say(f"exported trial {which} (mean {result.aesthetic_mean:.2f}) to {shown_path(made)}")
    if result.aesthetic_mean is not None and not passes(result.aesthetic_mean, CHALLENGE_GATE):
        say(f"note: a mean under {CHALLENGE_GATE:g} makes an entry of the challenge invalid")


def _exportable(verdict: Verdict) -> str:
    """Which trials can be exported, as the end of an error line; failed trials have no story."""
    passing = {result.spec.number for result in verdict.passed}
    passed, under = (
        ", ".join(
            str(result.spec.number)
            for result in verdict.results
            if result.state == "complete" and (result.spec.number in passing) is wanted
        )
        for wanted in (True, False)
    )
    if not passed and not under:
        return "allowed: none, for no trial has made a story yet"
    if not passed:
        return f"allowed with --force: {under}"
    return f"allowed: {passed}" + (f"; with --force: {under}" if under else "")
