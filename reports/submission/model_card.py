"""The README.md of a submission: ModelScope's front matter, the story, and how to reproduce its images."""

import re
from html import escape

import yaml
from markupsafe import Markup

from core.base_models import base_model
from core.trial.recipe import Submission
from core.verdict import CHALLENGE_GATE, passes
from reports.page import template_environment

MARKDOWN_SYNTAX = re.compile(r"([\\`*_{}\[\]()#+!|~=$])")


def model_card(submission: Submission) -> str:
    """Markdown with YAML front matter; values are escaped unless the template marks them as safe."""
    result = submission.result
    assert result.aesthetic_mean is not None
    markdown = template_environment().overlay(
        autoescape=False,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(value),
    )
    return markdown.get_template("model_card.md.jinja").render(
        card=submission,
        model=base_model(result.spec.backbone),
        result=result,
        spec=result.spec,
        train=result.spec.train,
        challenge_gate=CHALLENGE_GATE,
        valid=passes(result.aesthetic_mean, CHALLENGE_GATE),
        front_matter=Markup(_front_matter(submission)),
        code=_code,
        images=list(zip(result.spec.story.scenes, result.aesthetic, strict=True)),
    )


def escape_markdown(text: object) -> str:
    """`text` on one line, shown literally: Markdown and HTML in it are escaped."""
    return MARKDOWN_SYNTAX.sub(r"\\\1", escape(_one_line(text), quote=False))


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _front_matter(submission: Submission) -> str:
    """YAML without line breaks in values, which could end the block; the toy model has no base_model."""
    model = base_model(submission.result.spec.backbone)
    values = {
        "license": model.licence,
        "tasks": ["text-to-image-synthesis"],
        "frameworks": ["Pytorch"],
        **({"base_model": [model.hub_id]} if model.hub_id else {}),
        "tags": ["LoRA", model.tag, "text-to-image"],
        "model_name": _one_line(submission.name),
    }
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=1000).strip()


def _code(value: object) -> Markup:
    """A value as a Python literal on one line, so that it cannot close the code block around it."""
    return Markup(repr(value))
