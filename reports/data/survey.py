"""Which images the filters of a study keep, at their loosest and at their strictest."""

from dataclasses import dataclass

import pandas as pd

from core.data.audit import bad_images, some_names
from core.data.filters import STAGES, left_after, why_dropped
from core.trial.spec import Data, Filters


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """`table` is the audit, `searched` describes the search of each filter that is not fixed."""

    study: str
    data: Data
    scorer: str
    is_toy: bool
    table: pd.DataFrame
    loosest: Filters
    strictest: Filters
    searched: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def bad(self) -> dict[str, str]:
        """File -> problem of each image that cannot be used."""
        return bad_images(self.table)

    @property
    def why_loosest(self) -> pd.Series:
        """For each row of `table` which filter drops it at the loosest bounds; empty if it is kept."""
        return why_dropped(self.table, self.loosest)

    @property
    def why_strictest(self) -> pd.Series:
        """As `why_loosest`, at the strictest bounds."""
        return why_dropped(self.table, self.strictest)

    def dropped(self) -> dict[str, str]:
        """Filter -> names of images that it drops even at its loosest."""
        why = self.why_loosest
        return {
            stage: some_names(list(self.table["file"][why == stage]))
            for stage in STAGES
            if (why == stage).any()
        }

    def stages(self) -> list[tuple[str, str, int, int]]:
        """For each filter its name, bounds, and how many images are left after it, loosest and strictest."""
        loosest, strictest = left_after(self.why_loosest), left_after(self.why_strictest)
        return [(stage, self._bounds(stage), loosest[stage], strictest[stage]) for stage in loosest]

    @property
    def warning(self) -> str:
        """Whether all trials, or some, would keep fewer than data.min_images; empty if none."""
        least = self.data.min_images
        loosest, strictest = (int((why == "").sum()) for why in (self.why_loosest, self.why_strictest))
        if loosest < least:
            return f"every trial would fail: at most {loosest} images are kept, data.min_images is {least}"
        if strictest < least:
            return (
                f"trials near the strictest bounds fail as no_images: {strictest} kept, data.min_images is "
                f"{least}"
            )
        return ""

    def _bounds(self, stage: str) -> str:
        """`min_ratio 0.5, max_ratio 1.6 to 3.0`, without unset bounds."""
        values = {
            name: self.searched.get(name, getattr(self.loosest, name)) for name in STAGES.get(stage, ())
        }
        return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
