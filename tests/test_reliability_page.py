"""docs/reliability.md is the evidence: every test that it names is there."""

import re

from core.files.install import ROOT


def test_every_test_that_the_page_names_is_there() -> None:
    tests = {
        (path.name, name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    }
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", page)
    assert len(named) > 100
    assert set(named) - tests - {("", name) for _, name in tests} == set()
