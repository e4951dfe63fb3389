"""Prompt templates of the teacher.

A prompt is plain text that the completion continues. `PromptTemplate.render` takes a `Document`, which has no
questions, so no evaluation question can reach the teacher. The long forms paraphrase SEAL's prompts (arXiv 2506.10943);
the `micro-` forms are the ones the shipped micro teacher was trained on and must not change by a character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from evaluation.common.data import Frozen, did_you_mean, digest_json
from evaluation.common.errors import ConfigError, ModelError
from evaluation.common.text import NO_THOUGHTS
from evaluation.domains import DOMAINS
from evaluation.tasks import Document

_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class WorkedExample(Frozen):
    """A passage with what the teacher is to write about it."""

    passage: Document
    lines: str = Field(min_length=1)
    """Continues the template's cue."""


def _checked(text: str) -> str:
    found, optional = _PLACEHOLDER.findall(text), ("title", "budget")
    if found.count("passage") != 1 or max(map(found.count, optional)) > 1 or set(found) - {"passage", *optional}:
        raise ValueError(
            f"prompt template: got the placeholders {found}, allowed are {{passage}} exactly once and {{title}} and "
            "{budget} at most once each; write the template with these"
        )
    return text


class PromptTemplate(Frozen):
    """A text with the placeholders `{passage}` and, optionally, `{title}` and `{budget}`, once each."""

    name: str = Field(min_length=1)
    instruction: str = ""
    """Stands before everything else, in a chat at the head of each of the user's turns."""
    text: Annotated[str, AfterValidator(_checked)] = Field(min_length=1)
    """A line `{title}` is omitted for documents without a title, the line with `{budget}` without a step limit."""
    cue: str = ""
    """Begins what the teacher writes: it ends the prompt, in a chat as the start of the assistant's answer."""
    example: WorkedExample | None = None
    """Stands before the document, in a chat as an earlier turn."""

    def render(self, document: Document, budget: int | None = None) -> str:
        """Return the prompt; `budget` is the number of optimizer steps a self-edit may request, None for no limit."""
        worked = self.example
        earlier = "" if worked is None else f"{self._asked(worked.passage)}{self.cue}{worked.lines}\n\n"
        return f"{self.instruction}{earlier}{self._asked(document, budget)}{self.cue}"

    def _asked(self, document: Document, budget: int | None = None) -> str:
        """Return the text about one document."""
        # A title stands once: parts of a split document have a path of headings, of which the last opens the text.
        opening = document.text.lstrip("# ").partition("\n")[0].strip()
        titled = document.title and opening.casefold() != document.title.rpartition(" > ")[2].strip().casefold()
        # Substituted in one pass, which preserves braces of the document.
        text = self.text if titled else self.text.replace("{title}\n", "")
        if budget is None:
            text = "".join(line for line in text.splitlines(keepends=True) if "{budget}" not in line)
        values = {"title": document.title, "passage": document.text, "budget": str(budget)}
        return _PLACEHOLDER.sub(lambda match: values[match.group(1)], text)

    def render_chat(self, document: Document, tokenizer: Any, budget: int | None = None) -> str:
        """Return the prompt as user messages in the tokenizer's chat template, and the cue as the answer's beginning.

        Thoughts are switched off where the template has a switch.

        Raises:
            ModelError: The tokenizer has no chat template.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"prompt {self.name!r}: the tokenizer of {getattr(tokenizer, 'name_or_path', '')!r} has no chat "
                "template, which chat prompts need. Set teacher.chat to false, or use an instruction-tuned teacher."
            )
        turns = [{"role": "user", "content": (self.instruction + self._asked(document, budget)).strip()}]
        if (worked := self.example) is not None:
            asked = (self.instruction + self._asked(worked.passage)).strip()
            shown = [{"role": "user", "content": asked}, {"role": "assistant", "content": self.cue + worked.lines}]
            turns = [*shown, *turns]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **NO_THOUGHTS)
        return str(text) + self.cue.rstrip("\n")


_PASSAGE = "Passage:\n{title}\n{passage}\n\n"
# Cues have no space at the end, because most tokenizers join it to the next word.
_INSTRUCTED = {
    "implications": (
        "Read the passage below and list what follows from it: what it states and what can be concluded from it.",
        "Implications:\n",
    ),
    "rewrite": (
        "Read the passage below and rewrite it in several different ways, each version on a line of its own.",
        "Rewritten passages:\n",
    ),
    "self-qa": (
        "Read the passage below and rewrite it as numbered questions, each followed by its answer.",
        "Question 1:",
    ),
}
_WORKED = PromptTemplate(
    name="worked-self-qa",
    instruction="Write questions about a passage, each with a short answer that is copied from the passage.\n\n",
    text="Passage: {title}\n{passage}\n",
    cue="Question 1:",
    example=WorkedExample(
        passage=Document(
            id="example",
            title="Ravensburg mill",
            text="The mill in Ravensburg was opened in 1871 by Anton Keller. It ran on water until 1923 and ground 40 "
            "tons of wheat a week. Since 2006 it has been a museum of baking.",
        ),
        lines=" Who opened the mill in Ravensburg?\nAnswer 1: Anton Keller\n"
        "Question 2: In which year was the mill in Ravensburg opened?\nAnswer 2: 1871\n"
        "Question 3: How much wheat did the mill in Ravensburg grind in a week?\nAnswer 3: 40 tons\n"
        "Question 4: What has the mill in Ravensburg been since 2006?\nAnswer 4: a museum of baking",
    ),
)
_TEXTS = {
    "micro-implications": "Passage: {passage}\nImplications:\n",
    "micro-rewrite": "Passage: {passage}\nRewritten passages:\n",
    "micro-self-qa": "Passage: {passage}\nQuestions and answers:\n",
}

PROMPTS: Mapping[str, PromptTemplate] = {
    _WORKED.name: _WORKED,
    **{
        name: PromptTemplate(name=name, text=f"{instruction}\n\n{_PASSAGE}", cue=cue)
        for name, (instruction, cue) in _INSTRUCTED.items()
    },
    **{
        name: PromptTemplate(name=name, text=text)
        for texts in (_TEXTS, *(domain.prompts for domain in DOMAINS.values()))
        for name, text in texts.items()
    },
}


def prompt_template(prompt: str) -> PromptTemplate:
    """Return a template by its name, or that of a text with `{passage}`, named after its digest.

    Raises:
        ConfigError: It is neither.
    """
    if prompt in PROMPTS:
        return PROMPTS[prompt]
    if "{passage}" not in prompt:
        raise ConfigError(
            f"got {prompt!r}{did_you_mean(prompt, PROMPTS) or '.'} Allowed are {', '.join(sorted(PROMPTS))}, "
            "{file: PATH}, or {text: TEXT} with {passage}"
        )
    return PromptTemplate(name=f"own-{digest_json(prompt)[:8]}", text=prompt)


def _read(prompt: Any) -> Any:
    """Return the text of `{file: ...}` or `{text: ...}`, which is all that stays of it; anything else unchanged."""
    if not isinstance(prompt, Mapping):
        return prompt
    kind, value = next(iter(prompt.items()), ("", None))
    if len(prompt) != 1 or kind not in ("file", "text") or not isinstance(value, str):
        raise ValueError(f"got {dict(prompt)}, allowed are a name, {{file: PATH}} or {{text: TEXT}}")
    try:
        return _checked(value if kind == "text" else Path(value).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt file {value!r} cannot be read: {error}; give a text file in UTF-8") from error


def _valid(prompt: str) -> str:
    if prompt not in PROMPTS and "{" in prompt:
        return _checked(prompt)
    prompt_template(prompt)
    return prompt


Prompt: TypeAlias = Annotated[str, BeforeValidator(_read), AfterValidator(_valid)]
"""Name of a template, or a text of one's own, given as such or by its file."""


class PromptedConfig(Frozen):
    """Configuration of a model with a prompt template."""

    prompt: Prompt
    """Name of a prompt template; or one's own as `{file: my-prompt.txt}` or `{text: "..."}`, with `{passage}` and, if
    wanted, `{title}` and `{budget}` where title, passage and step limit go."""


def prompt_token_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the token ids of a prompt, the same for sampling and for learning.

    The BOS token is added unless a chat template has written it; an EOS token that some tokenizers append is removed,
    because the completion continues the prompt.
    """
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    has_bos = bool(bos) and prompt.startswith(bos)
    ids = list(tokenizer(prompt, add_special_tokens=not has_bos)["input_ids"])
    if ids and eos and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(eos):
        ids.pop()
    return ids
