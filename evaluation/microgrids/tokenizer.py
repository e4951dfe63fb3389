"""The micro-grids' tokenizer: a token for each digit, line break, heading, word of a rule and part of a specification.

Any other text is bytes, so that nothing is ever unknown.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from evaluation.microgrids.rules import FAMILIES, Kind
from evaluation.microgrids.specs import SPACE
from evaluation.microworld.tokenizer import tokenizer_of

CONTEXT_TOKENS = 512
"""Longest text that the micro models take, in tokens."""
HEADINGS = ("Input:\n", "\nInput:\n", "\nOutput:\n", "Rule: ", "\nRule: ", "\nSteps: ")
_WORD = re.compile(r"\+|-?[a-z0-9]+")


def rule_words() -> list[str]:
    """Return the parts that rules' names are put together from, such as `colours: `, `fall`, `-left` and `+`."""
    words = {word for family in FAMILIES for word in _WORD.findall(family)}
    return sorted(words | {f"{kind}: " for kind in get_args(Kind)})


def build_tokenizer() -> Any:
    """Return the tokenizer as a `transformers.PreTrainedTokenizerFast` (about 300 tokens, deterministic)."""
    from tokenizers import Regex, pre_tokenizers

    pieces = sorted({*HEADINGS, *rule_words(), *SPACE.pieces()}, key=lambda piece: (-len(piece), piece))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = ["".join(part for part, _ in to_bytes.pre_tokenize_str(piece)) for piece in pieces]
    whole = Regex("|".join(re.escape(piece) for piece in pieces))
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(whole, "isolated"), to_bytes])
    return tokenizer_of(words, split, CONTEXT_TOKENS)
