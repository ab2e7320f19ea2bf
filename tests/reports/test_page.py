import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from core.files.files import write_text
from core.folders import StudyFolder
from reports.page import write_report
from tests.examples import HOSTILE, fill, make_spec
from tests.reports.test_leaderboard import accept_change


class Page(HTMLParser):
    """Every element of a page with its attributes, and its visible text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [attrs[attribute] for name, attrs in self.elements if name == tag and attribute in attrs]


def report_of(study: StudyFolder, *notes: list[str]) -> Path:
    return write_report(study, study.verdict(), *notes)


def test_every_link_leads_to_a_file_of_the_study(make_study):
    path = report_of(make_study((6.2, 5.8)))
    page = Page(path.read_text(encoding="utf-8"))
    links = [link for link in page.all("img", "src") + page.all("a", "href") if not link.startswith("#")]
    assert len(page.all("img", "src")) == 3 * 8
    assert all(link.startswith("../") and (path.parent / link).is_file() for link in links)
    assert "../trials/0000/lora.safetensors" in links


def test_page_asks_for_nothing_from_outside(make_study):
    html = report_of(make_study((6.2,))).read_text(encoding="utf-8")
    tags = {tag for tag, _ in Page(html).elements}
    assert not tags & {"link", "iframe", "object"}
    assert not [mark for mark in ("url(", "@import", 'src="http') if mark in html]


def test_hostile_prompts_stay_words(make_study):
    page = Page(report_of(make_study((6.2,), failed=1)).read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert '<script>alert("x")</script>, a lake' in page.all("img", "alt")
    assert "quote \" and 'single' & ampersand" in page.all("img", "title")


def test_base_model_comes_first_and_the_winner_is_marked(make_study):
    page = Page(report_of(make_study((5.8, 6.2))).read_text(encoding="utf-8"))
    assert page.all("section", "id") == ["base", "trial-0001", "trial-0000"]
    assert page.all("section", "class") == ["board", "board winner", "board"]


def test_failed_trials_are_shown_with_reason_and_message(make_study):
    text = Page(report_of(make_study((6.2,), failed=1)).read_text(encoding="utf-8")).text
    assert "failed: nan_loss" in text
    assert "loss is NaN at step 3 <b>" in text


def test_report_before_any_trial_has_finished(make_study):
    study = make_study(base=False)
    study.trial(0).path.mkdir(parents=True)
    text = Page(report_of(study).read_text(encoding="utf-8")).text
    assert "No trial has finished yet; 1 under way" in text


def test_report_with_only_the_base_model(make_study):
    text = Page(report_of(make_study()).read_text(encoding="utf-8")).text
    assert "No trial has finished yet" in text
    assert "5.500" in text


def test_title_and_frozen_study_file_are_escaped(make_study):
    study = make_study((6.2,))
    study.frozen.write_text("name: <img src=x>\n", encoding="utf-8")
    spec = make_spec(0)
    shutil.rmtree(study.trial(0).path)
    fill(study.trial(0), replace(spec, story=replace(spec.story, title="<h1>mine</h1>")), 6.2)
    page = Page(report_of(study).read_text(encoding="utf-8"))
    assert "<h1>mine</h1>" in page.text
    assert len(page.all("img", "src")) == 2 * 8


def test_what_the_results_say_of_the_study_is_on_the_page(make_study):
    study = make_study((6.2,))
    notes = ["the best rank <b>is</b> at the upper end", "objective.gate is 5"]
    page = Page(report_of(study, notes).read_text(encoding="utf-8"))
    assert [f"Note: {note}." in page.text for note in notes] == [True, True]
    assert page.all("p", "class").count("note") == 2
    assert "b" not in {tag for tag, _ in page.elements}
    assert "Note:" not in Page(report_of(study).read_text(encoding="utf-8")).text


def test_after_an_accepted_change_older_trials_keep_their_words_their_base_story_and_their_study(make_study):
    study = make_study((6.1, 6.9, 6.2))
    fill(study.earlier(2).base, make_spec(-1, train=None), 4.5)
    for number in (0, 1):
        shutil.rmtree(study.trial(number).path)
        fill(
            study.trial(number), make_spec(number, prompts=tuple(f"old {prompt}" for prompt in HOSTILE)), 6.5
        )
    write_text(study.frozen, "name: now")
    write_text(study.earlier(2).frozen, "name: then")
    accept_change(study, from_trial=2)
    path = report_of(study)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.all("section", "id") == ["base", "trial-0002", "base-before-2", "trial-0000", "trial-0001"]
    assert all((path.parent / source).is_file() for source in page.all("img", "src"))
    text = " ".join(page.text.split())
    assert "Base model, before trial 2" in text
    assert "from trial 2 on: story.template ('{scene}' -> 'a *red* {scene}')" in text
    assert "1 of 1 finished, 2 older left out" in text
    assert "as of the last startname: now" in text
    assert "as trials before 2 had itname: then" in text
    assert text.count("Scenes") == 1  # the kept base story of this test has the scenes of the new one
    assert "frozen when the study started" not in text


def test_scenes_of_older_trials_are_listed_as_they_were(make_study):
    study = make_study((6.1, 6.9))
    shutil.rmtree(study.trial(0).path)
    fill(study.trial(0), make_spec(0, prompts=tuple(f"old {prompt}" for prompt in HOSTILE)), 6.5)
    accept_change(study, from_trial=1)
    text = Page(report_of(study).read_text(encoding="utf-8")).text
    _, now, then = text.split("Scenes")
    assert "old 水彩画" in then
    assert "old 水彩画" not in now
    assert "before trial 1" in then


def test_toy_images_are_called_toy_images(make_study):
    assert "toy model, not of Kolors" in report_of(make_study((6.2,), backbone="tiny")).read_text(
        encoding="utf-8"
    )
