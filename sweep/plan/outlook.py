"""What is known of a study's images and texts before any model is loaded; every command uses this."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from core.backbone.tokens import MAX_TOKENS, count_tokens, unread
from core.base_models import base_model
from core.data.audit import COLUMNS, Row, bad_images, known_score, look_at, say_bad
from core.data.filters import BEFORE_SCORING, why_dropped
from core.data.folder import CaptionedImage, caption_of, read_folder
from core.data.hub import as_local_folder
from core.data.image import ImageError, image_size
from core.errors import UserError
from core.files.cache import Cache
from core.folders import Runs
from core.trial.spec import PROMPT, Filters, Value
from core.verdict import notes_on_gate
from reports.units import counted
from sweep.study.errors import shown
from sweep.study.story import SCENE
from sweep.study.study import Study

NAMES_SHOWN = 3
Size = tuple[int, int]  # width and height in px


class NoTrialPossible(UserError):
    """No trial of the study could have enough images; the message says why in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """`bad` has the problem of each unusable image, `notes` are lines for the user, `unscored` counts usable
    images that were never scored here.
    """

    images: int
    bad: dict[str, str]
    notes: tuple[str, ...]
    unscored: int


def look_ahead(study: Study, runs: Runs) -> Outlook:
    """Check that the filters can keep enough images. Raises DataError where the images cannot be read,
    NoTrialPossible where the filters cannot keep enough of them.

    Opens no more images than are needed to be sure; of the others only the size is read. Changes nothing.
    """
    folder = read_folder(as_local_folder(study.data.value, runs.cache))
    good = [image for image in folder.images if not image.problem]
    bad = {image.file: image.problem for image in folder.images if image.problem}
    sizes = {image.path: size for image in good if (size := image_size(image.path))}
    likely = _left_by_size(good, sizes, tuple(widest_filters(study)))
    scores = _known_scores(study, runs, likely)
    bad |= _check_enough(study, list(dict.fromkeys((*likely, *good))), scores, bad)
    captions = {image.file: caption_of(image.prompt, study.data.caption) for image in likely}
    notes = notes_on_study(study, captions, [sizes[image.path] for image in likely])
    return Outlook(
        images=len(folder.images), bad=bad, unscored=len(likely) - len(scores), notes=(*folder.notes, *notes)
    )


def notes_on_study(study: Study, captions: Mapping[str, str], sizes: Sequence[Size]) -> Iterator[str]:
    """What is no mistake in a study, but worth knowing before it runs; `captions` (by file) and `sizes` are
    those of the images that can be used.
    """
    yield from _note_on_sizes(study, sizes)
    yield from _note_on_length("caption", captions, study.data.caption, PROMPT, "data.caption")
    scenes = list(enumerate(study.story.value.scenes, start=1))
    prompts = {f"scene {number}": scene.prompt for number, scene in scenes}
    yield from _note_on_length("story prompt", prompts, study.story.template, SCENE, "the story's template")
    negatives = {scene.negative_prompt: f"scene {number}" for number, scene in reversed(scenes)}
    yield from _note_on_length("negative prompt", {name: text for text, name in negatives.items()})
    yield from notes_on_gate(study.objective.gate)


def widest_filters(study: Study) -> Iterator[Filters]:
    """The filters with every searched bound at its widest, once for each searched subset and method to find
    duplicates.
    """
    searched = {name: search.values for name, search in study.searched_filters.items()}
    kinds = {name: searched.pop(name) for name in ("subset", "deduplicate") if name in searched}
    if "none" in kinds.get("deduplicate", ()):
        kinds["deduplicate"] = ("none",)
    bounds: dict[str, Any] = {name: _widest(name, values) for name, values in searched.items()}
    wide = replace(study.data.filters, **bounds)
    for values in product(*kinds.values()):
        yield replace(wide, **dict(zip(kinds, values, strict=True)))


def _widest(name: str, values: tuple[Any, ...]) -> Value:
    wider = min if name.startswith("min_") else max
    widest: Value = None if None in values else wider(values)
    return widest


def _left_by_size(
    images: Sequence[CaptionedImage], sizes: Mapping[Path, Size], filters: Sequence[Filters]
) -> list[CaptionedImage]:
    """The images that at least one of `filters` keeps, by subset, size and ratio: without opening them."""
    measured = [image for image in images if image.path in sizes]
    rows = []
    for image in measured:
        width, height = sizes[image.path]
        shape = {"width": width, "height": height, "ratio": width / height}
        rows.append(_facts(image) | shape | {"size": image.path.stat().st_size})
    table = _table(rows)
    keeping = [
        ~why_dropped(table, replace(each, deduplicate="none", max_images=None)).isin(BEFORE_SCORING)
        for each in filters
    ]
    return [image for image, *kept in zip(measured, *keeping, strict=True) if any(kept)]


def _check_enough(
    study: Study, images: Sequence[CaptionedImage], scores: Mapping[Path, float], bad: dict[str, str]
) -> dict[str, str]:
    """Open images until the filters are sure to keep enough -> problems of those that cannot be used.

    Raises NoTrialPossible.
    """
    widest, least = tuple(widest_filters(study)), study.data.min_images
    # An image that was never scored counts as one that passes.
    any_score = 5 * (widest[0].min_score + widest[0].max_score)

    def why(rows: list[Row]) -> pd.Series:
        """Why each image is dropped, by those of the widest filters that keep the most."""
        table = _table(rows)
        return min((why_dropped(table, filters) for filters in widest), key=lambda why: (why != "").sum())

    rows: list[Row] = []
    for image in images:
        score = scores.get(image.path, any_score)
        rows.append(_facts(image) | {"score": score} | _look(image.path))
        rounds, rest = divmod(len(rows), least)
        # Filters are applied whenever the number of images has doubled.
        if not rest and rounds & (rounds - 1) == 0 and int((why(rows) == "").sum()) >= least:
            break
    found = bad_images(_table(rows))
    usable = len(rows) - len(found)
    if usable < least:
        named = f"{say_bad(bad | found)}; " if bad or found else ""
        raise NoTrialPossible(
            f"{named}{usable} images can be used, data.min_images is {least}: no filter can help"
        )
    reasons = why(rows)
    if (kept := int((reasons == "").sum())) < least:
        stages = Counter(reason for reason in reasons if reason and reason not in found.values())
        dropped = ", ".join(f"{stage} drops {count}" for stage, count in stages.items())
        raise NoTrialPossible(
            f"at their widest the filters keep {kept} of {usable} images ({dropped}), data.min_images is "
            f"{least}, so every trial would fail; lora-sweep data shows what each of them keeps"
        )
    return found


def _facts(image: CaptionedImage) -> Row:
    """What the audit table has of an image that was not opened."""
    return {"file": image.file, "subset": image.subset, "problem": ""}


def _table(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _look(path: Path) -> Row:
    try:
        return {"size": path.stat().st_size} | look_at(path)
    except (ImageError, OSError) as error:  # OSError: the file cannot be read
        return {"problem": str(error)}


def _known_scores(study: Study, runs: Runs, images: Sequence[CaptionedImage]) -> dict[Path, float]:
    """Scores of these images that the cache has from earlier trials or `lora-sweep data`."""
    scorer = _scorer_digest(study) if (runs.cache / "audit").is_dir() else None
    if scorer is None:
        return {}
    cache = Cache(runs.cache)
    found = ((image.path, known_score(image.path, cache, scorer)) for image in images)
    return {path: score for path, score in found if score is not None}


def _scorer_digest(study: Study) -> str | None:
    """The sha256 of the scorer's weights, as a worker computes it; None where they are missing."""
    model = base_model(study.backbone)
    folder = model.weights_folder(study.weights)
    missing = model.files.missing_files(folder, ["scorer"])
    return None if missing else model.files.fingerprints(folder, ["scorer"])["scorer"]


def _note_on_sizes(study: Study, sizes: Sequence[Size]) -> Iterator[str]:
    size_px = max(study.space["size_px"].values if "size_px" in study.space else [study.render.size_px])
    small = [size for size in sizes if min(size) < size_px]
    if small:
        width, height = min(small, key=min)
        yield (
            f"{len(small)} of {counted(len(sizes), 'image')} have a side under size_px {size_px} and are "
            f"enlarged for training, the smallest from {width:.0f} x {height:.0f} px: "
            "there is no detail in them to learn"
        )


def _note_on_length(
    kind: str, texts: Mapping[str, str], template: str = "", slot: str = "", key: str = ""
) -> Iterator[str]:
    """A note on texts too long for the text encoder; it says whether the template's end is cut off too."""
    ends = {name: end for name, text in texts.items() if (end := unread(text))}
    if not ends:
        return
    named = ", ".join(f"{name} with {count_tokens(texts[name])}" for name in list(ends)[:NAMES_SHOWN])
    more = f" and {len(ends) - NAMES_SHOWN} more" if len(ends) > NAMES_SHOWN else ""
    last = template.rpartition(slot)[2] if slot and slot in template else ""
    has_words = any(map(str.isalnum, last))
    lost = [end for end in ends.values() if has_words and any(map(str.isalnum, end[-len(last) :]))]
    cut_off = (
        f"; of {len(lost)} of them that takes away words of {key}, {shown(last)}: write them before {slot}"
        if lost
        else ""
    )
    yield (
        f"{counted(len(ends), kind)} {'is' if len(ends) == 1 else 'are'} longer than the {MAX_TOKENS} tokens "
        f"that the text encoder reads, so the end is cut off ({named}{more}){cut_off}"
    )
