"""The contact sheet of a study's images: one offline page of those kept, those dropped, and why."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from core.data.image import ImageError, open_image
from core.files.files import write_text
from reports.data.survey import Survey
from reports.page import template_environment
from reports.units import size

THUMBNAIL_PX = 240
MOST_SHOWN = 400  # images in each section; the audit table has all of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One image; `thumbnail` is a data URI, so that the page needs no other file."""

    file: str
    caption: str
    score: float | None  # None: dropped before it was scored
    facts: str
    why: str
    thumbnail: str | None


def write_data_page(survey: Survey, folder: Path) -> Path:
    """Write `index.html` and the audit table `audit.csv` into `folder`."""
    loosest, strictest = survey.why_loosest, survey.why_strictest
    good = survey.table["problem"] == ""
    best_first = survey.table.sort_values("score", ascending=False, kind="stable").index
    kept = [i for i in best_first if loosest[i] == ""]
    dropped = [i for i in best_first if good[i] and loosest[i] != ""]
    html = (
        template_environment()
        .get_template("data.html.jinja")
        .render(
            survey=survey,
            total=len(survey.table),
            usable=int(good.sum()),
            stages=survey.stages(),
            bad=survey.bad,
            strictest=int((strictest == "").sum()),
            sections=[
                (title, len(rows), [_card(survey.table.loc[i], why[i]) for i in rows[:MOST_SHOWN]])
                for title, rows, why in (("Kept", kept, strictest), ("Dropped", dropped, loosest))
            ],
        )
    )
    write_text(folder / "audit.csv", survey.table.to_csv(index=False))
    return write_text(folder / "index.html", html)


def _card(row: pd.Series, why: str) -> Card:
    score = None if pd.isna(row["score"]) else row["score"]
    return Card(
        file=row["file"],
        caption=row["caption"],
        score=score,
        why=why,
        thumbnail=_thumbnail(Path(row["path"])),
        facts=f"{row['width']:.0f} × {row['height']:.0f} px · {size(row['size'])}",
    )


def _thumbnail(path: Path) -> str | None:
    try:
        image = open_image(path)
    except ImageError:  # gone since the audit
        return None
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
