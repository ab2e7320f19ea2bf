"""What docs/night.md says of each class of failure is what sweep/failures.py does."""

import re

from core.files.install import ROOT
from sweep.failures import FAILURES


def test_the_page_on_nights_tells_of_every_class_what_is_done_about_it() -> None:
    page = (ROOT / "docs" / "night.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    promised = {
        name: (again.startswith("once"), what.startswith("teaches the sampler"), what.startswith("count"))
        for name, again, what in rows
    }
    assert promised == {
        row.name: (row.retried, row.by_parameters, bool(row.advice)) for row in FAILURES.values()
    }
