"""What is said to be read of a text is what the text encoder gets."""

import subprocess
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.backbone.tokens import MAX_TOKENS, count_tokens, unread
from core.files.install import ROOT

PIECES = st.sampled_from(
    [
        "一只",
        "猫",
        "坐着看水，",
        " a",
        "cat",
        ",",
        " ",
        "  ",
        "\n",
        "e\u0301",
        "ﬁ",
        "\U0001f600",
        "</s>",
        "sop",
        "9",
        "Ä",
    ]
)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES | st.text(max_size=3), max_size=12), times=st.integers(1, 60))
def test_the_count_is_the_prompter_s_and_so_is_the_cut(backbone, pieces: list[str], times: int) -> None:
    text = "".join(pieces).encode("utf-8", "replace").decode() * times
    tokenizer = backbone._prompter.tokenizer
    whole, read = (
        tokenizer(text)["input_ids"],
        tokenizer(text, max_length=MAX_TOKENS, truncation=True)["input_ids"],
    )
    assert count_tokens(text) == len(whole)
    rest = unread(text)
    assert bool(rest) == (len(whole) > MAX_TOKENS)
    assert text.endswith(rest)
    assert read == whole[:MAX_TOKENS]  # it is the end that goes


def test_words_that_are_called_unread_change_no_embedding(backbone) -> None:
    text = "猫坐着看水，" * 60
    read = text[: -len(unread(text))]
    embedded, other_end, other_start, shorter = (
        backbone.encode_text([prompt])[0]
        for prompt in (text, read + " watercolor style" * 9, "树" + read, read[:-1])
    )
    assert torch.equal(embedded, other_end)
    assert not torch.equal(embedded, other_start)
    assert not torch.equal(embedded, shorter)


def test_counting_needs_no_torch() -> None:
    code = (
        "import sys; from core.backbone.tokens import count_tokens; assert count_tokens('a cat') == 4; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
