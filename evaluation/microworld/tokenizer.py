"""The micro models' tokenizer: byte-level BPE in which every word of the world is one token, any other text is bytes.

The word list is exact, not learned: with `ignore_merges` (as in Llama 3) a word in the vocabulary is taken whole and
everything else falls back to its bytes, so that no text is ever unknown and real documents round-trip.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from evaluation.microworld.templates import ATTRIBUTES, FILLERS, OPENINGS
from evaluation.microworld.vocabulary import NAME_PARTS, VALUES

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
CONTEXT_TOKENS = 1024
"""Longest text that the micro models take, in tokens."""

FRAME = (
    "Passage: x\nImplications:\n- x\nRewritten passages:\n- x\nQuestions and answers:\n"
    "- Question: x\nAnswer: x Answer: x"
)
"""All the words that prompts put around passages, questions and answers."""


def _world_texts() -> list[str]:
    """Return texts in which every word of the world occurs in every position that it can take."""
    sentences = [FRAME, *FILLERS, *itertools.chain(*OPENINGS.values())]
    for attributes in ATTRIBUTES.values():
        for forms in attributes.values():
            sentences += [*forms.passage, *forms.statements, forms.anonymous, *forms.questions]
    texts = [text.format(name="x", value="x") if "{" in text else text for text in sentences]
    words = [*itertools.chain(*VALUES.values()), *itertools.chain(*itertools.chain(*NAME_PARTS.values()))]
    return texts + [f"- {text}" for text in texts] + words


def build_tokenizer() -> Any:
    """Return the tokenizer as a `transformers.PreTrainedTokenizerFast` (about 1,100 tokens, deterministic)."""
    from tokenizers import pre_tokenizers

    # The prefix space makes a name the same token at the start of a text as in the middle of it.
    split = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    words = {piece for text in _world_texts() for piece, _ in split.pre_tokenize_str(text)}
    return tokenizer_of(sorted(words), split, CONTEXT_TOKENS)


def tokenizer_of(words: Sequence[str], split: Any, context: int) -> Any:
    """Return a byte-level tokenizer in which each of some words is one token and all else is bytes.

    Args:
        words: In byte-level form, in the order of their ids; single bytes among them are in the alphabet already.
        split: The pre-tokenizer, which takes texts apart into words in that form.
        context: Longest text in tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = set(alphabet)
    tokens = [*SPECIAL_TOKENS, *alphabet, *(word for word in words if word not in known)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    bos = SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=context,
        padding_side="right",
    )
