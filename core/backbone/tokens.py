"""How much of a text the text encoder reads, counted with its own tokenizer but without torch."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sentencepiece import SentencePieceProcessor

# KolorsPrompter's (prompters/kolors_prompter.py, DiffSynth 1.1.9): longer texts are cut off at the end
MAX_TOKENS = 256
OWN_TOKENS = 2  # [gMASK] and sop, which the tokenizer puts before each text
TOKENIZER = "tokenizer_configs/kolors/tokenizer/tokenizer.model"


def count_tokens(text: str) -> int:
    """Number of tokens of a text, the tokenizer's own two included."""
    return len(_processor().encode(text)) + OWN_TOKENS


def unread(text: str) -> str:
    """The end of a text that is cut off before the text encoder; empty where all of it is read."""
    pieces = _processor().encode(text, return_type="proto").pieces
    if len(pieces) + OWN_TOKENS <= MAX_TOKENS:
        return ""
    return text.encode()[pieces[MAX_TOKENS - OWN_TOKENS].begin :].decode(errors="ignore")


@cache
def _processor() -> SentencePieceProcessor:
    spec = find_spec("diffsynth")  # found, not imported: that would take torch along
    assert spec is not None, "diffsynth is a requirement"
    assert spec.submodule_search_locations
    return SentencePieceProcessor(model_file=str(Path(spec.submodule_search_locations[0]) / TOKENIZER))
