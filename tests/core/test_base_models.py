"""A base model is a folder and one row: what decides about a model asks its row, not for its name."""

import ast
import re
from pathlib import Path

import pytest

from core.base_models import BASE_MODELS, base_model
from core.files.install import ROOT
from core.files.weight_files import PARTS

NAMES = "|".join(BASE_MODELS)
THEIRS = {"text_encoder_kolors"}  # an attribute of DiffSynth's pipeline
OUTSIDE = [
    path for room in ("sweep", "reports", "tests/bench") for path in sorted((ROOT / room).rglob("*.py"))
]
TEMPLATES = sorted((ROOT / "reports").rglob("*.jinja"))


def decisions(source: str) -> list[str]:
    """Where a module uses a model's name as a value, has one in a name of its own, or imports from a model's
    folder.

    A name within a longer text (help, an error line) decides nothing; one that is all of a text is compared,
    looked up, passed on or a default.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)):
                words = [text] if re.fullmatch(rf"\W*({NAMES})\W*", text, re.IGNORECASE) else []
            case (
                ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word) | ast.keyword(arg=str(word))
            ):
                words = _named(word)
            case ast.FunctionDef(name=word) | ast.ClassDef(name=word) | ast.alias(name=word):
                words = _named(word)
            case ast.ImportFrom(module=str(word)):
                words = _named(word)
            case _:
                words = []
        found += [f"{getattr(node, 'lineno', 0)}: {word}" for word in words]
    return found


def _named(word: str) -> list[str]:
    return [word] if word not in THEIRS and re.search(NAMES, word, re.IGNORECASE) else []


def template_decisions(source: str) -> list[str]:
    """Where a Jinja tag or expression, unlike the text around them, has a model's name."""
    return [
        tag
        for tag in re.findall(r"\{%.*?%\}|\{\{.*?\}\}", source, re.DOTALL)
        if re.search(NAMES, tag, re.IGNORECASE)
    ]


@pytest.mark.parametrize(
    "source",
    [
        'if study.backbone == "kolors": pass',
        'x = {"tiny": 1}',
        'def f(a="tiny"): pass',
        'a.startswith("tiny")',
        'x in ("Kolors",)',
        "match x:\n    case 'tiny': pass",
        "x = KOLORS_PACE",
        "from core.kolors.files import FILES",
        "from core import tiny",
        'load_backbone("tiny")',
        "guess(is_tiny=True)",
        'f"{x}" == "tiny-"',
    ],
)
def test_a_decision_by_name_is_noticed(source: str) -> None:
    assert decisions(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""The toy is called tiny, the other kolors."""',
        'f"{name} runs on the CPU, Kolors needs one"',
        'help="tiny or kolors"',
    ],
)
def test_a_name_within_a_text_for_people_decides_nothing(source: str) -> None:
    assert decisions(source) == []


def test_a_template_s_decision_by_name_is_noticed() -> None:
    assert template_decisions('Kolors {% if spec.backbone == "tiny" %}tiny{% endif %}') == [
        '{% if spec.backbone == "tiny" %}'
    ]


def test_nothing_outside_the_models_decides_by_their_names() -> None:
    assert len(OUTSIDE) > 50
    assert len(TEMPLATES) > 3
    found = {
        path.relative_to(ROOT).as_posix(): decisions(path.read_text(encoding="utf-8")) for path in OUTSIDE
    }
    found |= {
        path.relative_to(ROOT).as_posix(): template_decisions(path.read_text(encoding="utf-8"))
        for path in TEMPLATES
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize("name", BASE_MODELS)
def test_what_a_row_names_is_there(name: str, tmp_path: Path) -> None:
    model = base_model(name)
    assert model.name == name
    assert {file.part for file in model.files.FILES} == set(PARTS)
    assert (ROOT / "reports" / "templates" / model.usage).is_file()
    assert all(
        (ROOT / f"{module.replace('.', '/')}.py").is_file()
        for module in (model.loader, model.download)
        if module
    )
    assert model.lora_parameters.keys() == {"to_q", "to_k", "to_v", "to_out"}


def test_a_model_that_is_not_known_costs_one_line() -> None:
    with pytest.raises(ValueError, match=r"backbone 'kolor' is not known \(allowed: tiny, kolors\)"):
        base_model("kolor")
