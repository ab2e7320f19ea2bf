"""The README.md of a submission: ModelScope's front matter, the story, and how to reproduce its images."""

import re
from dataclasses import dataclass
from html import escape

import jinja2
import yaml
from markupsafe import Markup

from core.base_models import BaseModel, base_model
from core.trial.result import Result
from core.verdict import CHALLENGE_GATE, passes
from reports.page import TEMPLATES

MARKDOWN_SYNTAX = re.compile(r"([\\`*_{}\[\]()#+!|~=$])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """Content of a model card.

    `weight_name` is the LoRA's file name, `epoch` its epoch, None for the last, `base_mean` the base model's
    own score. `older` names accepted changes since this trial, after which scores do not compare.
    """

    name: str
    team: str
    title: str
    weight_name: str
    result: Result
    epoch: int | None = None
    base_mean: float | None = None
    older: str = ""

    @property
    def is_toy(self) -> bool:
        """Whether the LoRA is for the toy model only."""
        return self.model.is_toy

    @property
    def model(self) -> BaseModel:
        """The base model that the LoRA is for."""
        return base_model(self.result.spec.backbone)


def model_card(card: Card) -> str:
    """Markdown with YAML front matter; values are escaped unless the template marks them as safe."""
    assert card.result.aesthetic_mean is not None
    return (
        _environment()
        .get_template("model_card.md.jinja")
        .render(
            card=card,
            result=card.result,
            spec=card.result.spec,
            train=card.result.spec.train,
            challenge_gate=CHALLENGE_GATE,
            valid=passes(card.result.aesthetic_mean, CHALLENGE_GATE),
            front_matter=Markup(_front_matter(card)),
            code=_code,
            pictures=list(zip(card.result.spec.story.scenes, card.result.aesthetic, strict=True)),
        )
    )


def escape_markdown(text: object) -> str:
    """`text` on one line, shown literally: Markdown and HTML in it are escaped."""
    return MARKDOWN_SYNTAX.sub(r"\\\1", escape(_one_line(text), quote=False))


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _front_matter(card: Card) -> str:
    """YAML without line breaks in values, which could end the block; the toy model has no base_model."""
    model = card.model
    values = {
        "license": model.licence,
        "tasks": ["text-to-image-synthesis"],
        "frameworks": ["Pytorch"],
        **({"base_model": [model.hub_id]} if model.hub_id else {}),
        "tags": ["LoRA", model.tag, "text-to-image"],
        "model_name": _one_line(card.name),
    }
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=1000).strip()


def _code(value: object) -> Markup:
    """A value as a Python literal on one line, so that it cannot close the code block around it."""
    return Markup(repr(value))


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(value),
    )
