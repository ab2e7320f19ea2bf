from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt

from core.trial.recipe import Submission
from reports.submission.model_card import escape_markdown, model_card
from tests.examples import HOSTILE, make_result, make_spec

EVIL = 'x" ]\n---\nlicense: evil'


def make_card(
    *, team: str = "湖边队", title: str = "lake", mean: float = 6.2, backbone: str = "kolors"
) -> Submission:
    return Submission(
        name=f"{team}-可图Kolors训练-{title}",
        team=team,
        title=title,
        weight_name="lake-0001.safetensors",
        result=make_result(make_spec(1, backbone=backbone), mean),
        epoch=2,
        base_aesthetic_mean=5.5,
        older="",
        tensors_sha256="",
        sha256={},
    )


def split(text: str) -> tuple[dict, str]:
    """Front matter and body, as ModelScope reads them."""
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def rendered(body: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(body)


def test_front_matter_is_what_modelscope_reads():
    front, _ = split(model_card(make_card()))
    assert front["license"] == "apache-2.0"
    assert front["tasks"] == ["text-to-image-synthesis"]
    assert front["frameworks"] == ["Pytorch"]
    assert front["base_model"] == ["Kwai-Kolors/Kolors"]
    assert "LoRA" in front["tags"]
    assert front["model_name"] == "湖边队-可图Kolors训练-lake"


def test_hostile_names_do_not_leave_the_front_matter():
    front, _ = split(model_card(make_card(team=EVIL, title="--- #: [")))
    assert front["license"] == "apache-2.0"
    assert front["model_name"] == 'x" ] --- license: evil-可图Kolors训练---- #: ['


def test_hostile_prompts_are_shown_as_written():
    html = rendered(split(model_card(make_card(team="<b>[x](javascript:alert(1))")))[1])
    assert not [mark for mark in ("<script", 'href="javascript', "<b>", "<em>") if mark in html]
    assert html.count("<tr>") == 1 + 8 + 2 + 11 + 6  # prompts, means, settings, files: no row more
    assert "*bold* _it_ [link](http://x)" in html


def test_every_prompt_has_its_seed_and_score():
    card = make_card()
    body = split(model_card(card))[1]
    for number, (prompt, score) in enumerate(zip(HOSTILE, card.result.aesthetic, strict=True), start=1):
        assert f"| {escape_markdown(prompt)} | {99 + number} | {score:.3f} |" in body


def test_strength_is_one_everywhere_and_the_folder_is_given_apart_from_the_name():
    body = split(model_card(make_card()))[1]
    assert "weight_name='lake-0001.safetensors'" in body
    assert "lora_alpha=1.0" in body
    assert "`strength_model` 1.0" in body


def test_toy_card_says_so_first_and_names_no_base_model():
    front, body = split(model_card(make_card(backbone="tiny")))
    assert "base_model" not in front
    assert "Kolors" not in front["tags"]
    assert "not for Kolors" in body.strip().splitlines()[0]
    assert "KolorsPipeline" not in body


def test_card_of_a_story_under_the_gate_says_so():
    assert "failed the gate" in model_card(make_card(mean=5.7)).partition("# ")[0]
    assert "failed the gate" not in model_card(make_card())


@pytest.mark.parametrize(
    ("gate", "mean", "said"),
    [
        (7, 6.5, "failed the gate:** its mean aesthetic score is 6.500, under 7."),
        (
            7,
            5.5,
            "failed the gate:** its mean aesthetic score is 5.500, under 7. The challenge counts it as "
            "invalid.",
        ),
        (
            5,
            5.5,
            "Under the challenge's gate:** its mean aesthetic score is 5.500, under 6.0. The challenge "
            "counts it as invalid.",
        ),
        (5, 6.5, ""),
    ],
)
def test_what_is_valid_is_for_the_challenge_s_gate_to_say(gate, mean, said):
    card = make_card()
    own = replace(card, result=make_result(replace(card.result.spec, gate=gate), mean))
    above = split(model_card(own))[1].partition("\n# ")[0]
    assert above.strip().endswith(said)
    assert bool(above.strip()) == bool(said)


def test_an_earlier_epoch_is_named():
    card = replace(make_card(), epoch=1)
    assert "| Epochs | 1 of 2, 100 steps each |" in model_card(card)


def test_code_on_the_card_is_python():
    body = split(model_card(make_card()))[1]
    blocks = [block.partition("\n```")[0] for block in body.split("\n```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


def test_another_gate_than_the_challenge_s_is_named_beside_it():
    card = make_card()
    assert ", gate 6.0." in model_card(card)
    own = replace(card, result=replace(card.result, spec=replace(card.result.spec, gate=5.5)))
    assert ", gate 5.5 (the challenge's own is 6.0)." in model_card(own)
