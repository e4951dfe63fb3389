"""Prompts: how a document is shown to the teacher.

A prompt is plain text that a completion continues from its last character. It holds the document's title and passage
and nothing else: `PromptTemplate.render` takes a `Document`, which has no questions, so that no evaluation question
can reach the teacher. The long forms ask for what SEAL's prompts ask for (arXiv 2506.10943), in other words; the
`micro-` forms are those that the embedded micro teacher was trained on and must not change by a character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import Field, field_validator

from evaluation.common.data import Frozen
from evaluation.common.errors import ConfigError, ModelError
from evaluation.domains import DOMAINS
from evaluation.tasks import Document

_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class PromptTemplate(Frozen):
    """A named text with `{passage}` once and, optionally, `{title}` and `{budget}` once each."""

    name: str = Field(min_length=1)
    """What configurations and lineage call the template."""
    text: str = Field(min_length=1)
    """The prompt; a line that holds `{title}` alone is left out for documents without a title, and the line with
    `{budget}` where a run limits no steps."""

    @field_validator("text")
    @classmethod
    def _has_placeholders(cls, value: str) -> str:
        found = _PLACEHOLDER.findall(value)
        optional = ("title", "budget")
        if found.count("passage") != 1 or max(map(found.count, optional)) > 1 or set(found) - {"passage", *optional}:
            raise ValueError(
                f"prompt template: got the placeholders {found}, allowed are {{passage}} exactly once and {{title}} "
                "and {budget} at most once each; write the template with these"
            )
        return value

    def render(self, document: Document, budget: int | None = None) -> str:
        """Return the prompt for `document`; braces in its title or passage are left as they are.

        Args:
            document: What to show.
            budget: Optimizer steps that a self-edit may ask for; None limits none.
        """
        text = self.text if document.title else self.text.replace("{title}\n", "")
        if budget is None:
            text = "".join(line for line in text.splitlines(keepends=True) if "{budget}" not in line)
        values = {"title": document.title, "passage": document.text, "budget": str(budget)}
        return _PLACEHOLDER.sub(lambda match: values[match.group(1)], text)

    def render_chat(self, document: Document, tokenizer: Any, budget: int | None = None) -> str:
        """Return the prompt as a user's message in the tokenizer's chat format, up to where the answer starts.

        Args:
            document: What to show.
            tokenizer: A Hugging Face tokenizer with a chat template.
            budget: As for `render`.

        Raises:
            ModelError: The tokenizer has no chat template.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"prompt {self.name!r}: the tokenizer of {getattr(tokenizer, 'name_or_path', '')!r} has no chat "
                "template, which chat prompts need. Set teacher.chat to false, or use an instruction-tuned teacher."
            )
        message = [{"role": "user", "content": self.render(document, budget)}]
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def _shown(instruction: str, opening: str) -> str:
    return f"{instruction}\n\nPassage:\n{{title}}\n{{passage}}\n\n{opening}"


_TEXTS = {
    "implications": _shown(
        "Read the passage below and list what follows from it: what it states and what can be concluded from it.",
        "Implications:\n",
    ),
    "rewrite": _shown(
        "Read the passage below and rewrite it in several different ways, each version on a line of its own.",
        "Rewritten passages:\n",
    ),
    # The first question continues the prompt; no space at the end, because most tokenizers join it to the next word.
    "self-qa": _shown(
        "Read the passage below and rewrite it as numbered questions, each followed by its answer.",
        "Question 1:",
    ),
    "micro-implications": "Passage: {passage}\nImplications:\n",
    "micro-rewrite": "Passage: {passage}\nRewritten passages:\n",
    "micro-self-qa": "Passage: {passage}\nQuestions and answers:\n",
}

PROMPTS: Mapping[str, PromptTemplate] = MappingProxyType(
    {
        name: PromptTemplate(name=name, text=text)
        for texts in (_TEXTS, *(domain.prompts for domain in DOMAINS.values()))
        for name, text in texts.items()
    }
)
"""All templates by name."""


def prompt_template(name: str) -> PromptTemplate:
    """Return the template called `name`.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in PROMPTS:
        raise ConfigError(f"prompt: got {name!r}, allowed are {sorted(PROMPTS)}. Set teacher.prompt to one of these.")
    return PROMPTS[name]


def prompt_token_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the token ids that a teacher reads for `prompt`, the same for sampling and for learning.

    The tokenizer's own opening token is added once: not again where a chat template has already written it. A closing
    token that some tokenizers append is taken off, because the completion continues the prompt.
    """
    opening, closing = tokenizer.bos_token, tokenizer.eos_token
    written = bool(opening) and prompt.startswith(opening)
    ids = list(tokenizer(prompt, add_special_tokens=not written)["input_ids"])
    if ids and closing and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(closing):
        ids.pop()
    return ids
