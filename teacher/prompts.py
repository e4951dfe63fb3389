"""Prompt templates of the teacher.

A prompt is plain text that the completion continues. `PromptTemplate.render` takes a `Document`, which has no
questions, so no evaluation question can reach the teacher. Those of the kinds of training lines are files
(`teacher.kinds`); the `micro-` forms are the ones the shipped micro teacher was trained on and must not change by a
character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from evaluation.common.data import Frozen, did_you_mean, digest_json, reason
from evaluation.common.errors import ConfigError, ModelError
from evaluation.common.text import NO_THOUGHTS
from evaluation.domains import DOMAINS
from evaluation.tasks import Document

KINDS = Path(__file__).resolve().parents[1] / "configs" / "kinds"
"""The kinds of training lines that ship, a YAML file each (`teacher.kinds`)."""
PASSAGE = "Passage:\n{title}\n{passage}\n\n"
"""Text of a kind's prompt, unless its file gives one."""
_OF_KINDS = frozenset({"label", "form", "combine", "first"})
"""Keys of a kind's file beside those of its prompt."""
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class WorkedExample(Frozen):
    """A passage with what the teacher is to write about it."""

    title: str = ""
    passage: str = Field(min_length=1)
    lines: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    """Continues the template's cue, or begins with it."""


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
    examples: tuple[WorkedExample, ...] = ()
    """Stand before the document, in a chat as earlier turns."""

    @property
    def stop(self) -> str | None:
        """Text at which a completion ends, because another passage begins there; None where none is known.

        In a chat the end of the turn takes its place.
        """
        opening = _PLACEHOLDER.split(self.text)[0].strip().partition("\n")[0]
        known = (self.instruction or self.examples) and re.search(r"\w", opening)
        return f"\n{opening}" if known else None

    @model_validator(mode="after")
    def _ends(self) -> PromptTemplate:
        if self.examples and self.stop is None:
            raise ValueError(
                "text: with examples, got one that begins with a placeholder, allowed is one that begins with words, "
                "such as 'Passage:', because a completion is cut off where they begin another example"
            )
        return self

    def render(self, document: Document, budget: int | None = None) -> str:
        """Return the prompt; `budget` is the number of optimizer steps a self-edit may request, None for no limit."""
        earlier = "".join(f"{asked}{written}\n\n" for asked, written in self._shown())
        return f"{self.instruction}{earlier}{self._asked(document, budget)}{self.cue}"

    def with_item(self, item: str) -> PromptTemplate:
        """Return the template with an item of a first step in its instruction, where it says `{item}`."""
        return self.model_copy(update={"instruction": self.instruction.replace("{item}", item)})

    def _shown(self) -> Iterator[tuple[str, str]]:
        """Yield the text about each example, and what is written about it."""
        for example in self.examples:
            lines = example.lines.removeprefix(self.cue.strip()).lstrip()
            gap = " " if self.cue and not self.cue[-1].isspace() else ""
            yield self._asked(Document(id="example", title=example.title, text=example.passage)), self.cue + gap + lines

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
        turns = []
        for asked, written in (*self._shown(), (self._asked(document, budget), "")):
            turns += [{"role": "user", "content": (self.instruction + asked).strip()}]
            turns += [{"role": "assistant", "content": written}] if written else []
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **NO_THOUGHTS)
        return str(text) + self.cue.rstrip("\n")


_ENDS = {"instruction": "\n\n", "text": "\n"}
"""White space behind the parts of a template in a file, however YAML has read them."""


def _normal(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a template in a file with the white space that belongs behind them."""
    texts = {key: found[key].rstrip() + end for key, end in _ENDS.items() if str(found.get(key) or "").strip()}
    return dict(found) | texts


def fields_of_kind(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the fields of the template in a kind's file, or in its first step; `name` is its own unless it has one."""
    return {"name": name, "text": PASSAGE} | _normal({key: found[key] for key in found if key not in _OF_KINDS})


def _of_kinds() -> Iterator[PromptTemplate]:
    """Yield the templates of the kinds that ship, those of first steps included."""
    for file in sorted(KINDS.glob("*.yaml")):
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        for each in (found, found.get("first")):
            if each is not None:
                yield PromptTemplate.model_validate(fields_of_kind(each, file.stem))


_WORKED = PromptTemplate(
    name="worked-self-qa",
    instruction="Write questions about a passage, each with a short answer that is copied from the passage.\n\n",
    text="Passage: {title}\n{passage}\n",
    cue="Question 1:",
    examples=(
        WorkedExample(
            title="Ravensburg mill",
            passage="The mill in Ravensburg was opened in 1871 by Anton Keller. It ran on water until 1923 and ground "
            "40 tons of wheat a week. Since 2006 it has been a museum of baking.",
            lines="Who opened the mill in Ravensburg?\nAnswer 1: Anton Keller\n"
            "Question 2: In which year was the mill in Ravensburg opened?\nAnswer 2: 1871\n"
            "Question 3: How much wheat did the mill in Ravensburg grind in a week?\nAnswer 3: 40 tons\n"
            "Question 4: What has the mill in Ravensburg been since 2006?\nAnswer 4: a museum of baking",
        ),
    ),
)
_TEXTS = {
    "micro-implications": "Passage: {passage}\nImplications:\n",
    "micro-rewrite": "Passage: {passage}\nRewritten passages:\n",
    "micro-self-qa": "Passage: {passage}\nQuestions and answers:\n",
}

PROMPTS: Mapping[str, PromptTemplate] = {
    **{template.name: template for template in (_WORKED, *_of_kinds())},
    **{
        name: PromptTemplate(name=name, text=text)
        for texts in (_TEXTS, *(domain.prompts for domain in DOMAINS.values()))
        for name, text in texts.items()
    },
}


def prompt_template(prompt: str) -> PromptTemplate:
    """Return a template by its name, by its JSON, or that of a text with `{passage}`, named after its digest.

    Raises:
        ConfigError: It is none of them.
    """
    if prompt in PROMPTS:
        return PROMPTS[prompt]
    if prompt.startswith(_JSON):
        return PromptTemplate.model_validate_json(prompt)
    if "{passage}" not in prompt:
        raise ConfigError(
            f"got {prompt!r}{did_you_mean(prompt, PROMPTS) or '.'} Allowed are {', '.join(sorted(PROMPTS))}, "
            "{file: PATH}, {name: NAME, examples: PATH}, or {text: TEXT} with {passage}"
        )
    return PromptTemplate(name=f"own-{digest_json(prompt)[:8]}", text=prompt)


_JSON = '{"name":'
"""Begins the JSON of a template, which no text of one's own does."""


def _read(prompt: Any) -> Any:
    """Return the text of a prompt, or the JSON of its template, which is all that stays of files; a name as it is."""
    if not isinstance(prompt, Mapping):
        return prompt
    match dict(prompt):
        case {"text": str(text), **rest} if not rest:
            return _checked(text)
        case {"file": str(path), **rest} if not rest:
            return _from_yaml(path) if Path(path).suffix in (".yaml", ".yml") else _checked(_text_of(path))
        case {"name": str(name), "examples": str(path), **rest} if not rest and name in PROMPTS:
            return _from_yaml(path, PROMPTS[name])
    raise ValueError(
        f"got {dict(prompt)}, allowed are a name, {{file: PATH}}, {{text: TEXT}} or {{name: NAME, examples: PATH}} "
        f"with a name out of {', '.join(sorted(PROMPTS))}"
    )


def _text_of(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt file {path!r} cannot be read: {error}; give a text file in UTF-8") from error


def read_yaml(path: str) -> Any:
    """Return the content of a YAML file; raises ValueError where it cannot be read."""
    try:
        return yaml.safe_load(_text_of(path))
    except yaml.YAMLError as error:
        raise ValueError(f"prompt file {path!r} is not YAML: {error}") from error


def _from_yaml(path: str, base: PromptTemplate | None = None) -> str:
    """Return the JSON of a template in a file, or of `base` with the examples in a file."""
    found, own = read_yaml(path), digest_json(_text_of(path))[:8]
    if base is not None:
        examples = found.get("examples") if isinstance(found, Mapping) else found
        found = base.model_dump() | {"examples": examples, "name": f"{base.name}-{own}"}
    elif isinstance(found, Mapping):
        found = {"name": f"own-{own}"} | _normal(found)
    try:
        return PromptTemplate.model_validate(found).model_dump_json()
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, e['loc']))}{reason(e, PromptTemplate)}" for e in error.errors()]
        raise ValueError(f"prompt file {path!r}: {'; '.join(mistakes)}") from error


def _valid(prompt: str) -> str:
    if prompt not in PROMPTS and "{" in prompt and not prompt.startswith(_JSON):
        return _checked(prompt)
    prompt_template(prompt)
    return prompt


Prompt: TypeAlias = Annotated[str, BeforeValidator(_read), AfterValidator(_valid)]
"""Name of a template, or one of one's own, given as such or by its file."""


class PromptedConfig(Frozen):
    """Configuration of a model with a prompt template."""

    prompt: Prompt
    """Name of a prompt template; or one's own as `{file: my-prompt.txt}` or `{text: "..."}`, with `{passage}` and, if
    wanted, `{title}` and `{budget}` where title, passage and step limit go. `{file: my-prompt.yaml}` has `instruction`,
    `text`, `cue` and `examples`, a list of `title`, `passage` and `lines`; `{name: implications, examples:
    my-examples.yaml}` puts such examples in front of a template."""


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
