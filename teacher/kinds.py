"""Kinds of training lines that a teacher is asked for, each a YAML file in `configs/kinds/` or one of one's own.

A kind file is a prompt file (`teacher.prompts`: `instruction`, `text`, `cue`, `examples`; without `text` it is the
usual passage) with three keys more:

- `label`: for tables and plots.
- `form`: what is written. `lines` are statements, one on each line; `questions` are numbered questions, each with its
  answer; `text` is one training text per paragraph.
- `first` (optional): a prompt with a `name` whose lines, joined by `combine` (1 to 3, default 1), take the place of
  `{item}` in the instruction, such as Active Reading's strategies or EntiGraph's pairs of entities.

SEAL's five (arXiv 2506.10943), the seven of SPA (arXiv 2603.22213), the two steps of Active Reading (arXiv 2508.09494)
and of EntiGraph (arXiv 2409.07431) are in words of our own. Each asks for lines that can be understood without the
passage, because every line is trained on alone. Cues have no space at the end, because most tokenizers join it to the
next word.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from evaluation.common.data import Frozen, did_you_mean, reason
from evaluation.common.errors import ConfigError
from evaluation.common.text import without_thoughts
from teacher.parsing.lines import DropReason, classify, is_terminated, remove_bold, without_markup
from teacher.parsing.parser import parse_self_edit
from teacher.prompts import KINDS, PromptTemplate, fields_of_kind, read_yaml
from teacher.self_edit import Implication

SPA = tuple(
    f"spa-{name}"
    for name in ("key-concepts", "mind-map", "implications", "questions", "case-studies", "discussion", "teacher")
)
STRATEGIES, STRATEGY = "active-reading-strategies", "active-reading"
"""Templates of the two steps of Active Reading."""
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*(?=\s)|[。！？][」』）]*")


class Kind(Frozen):
    """A kind of training lines: a prompt, the form of what is written, and what is written before it, if anything."""

    name: str = Field(min_length=1)
    label: str = Field(min_length=1, max_length=60)
    """Shown in tables and plots, at most 60 characters."""
    form: Literal["lines", "questions", "text"]
    template: PromptTemplate
    first: PromptTemplate | None = None
    """Prompt of a first step, whose lines fill `{item}` in the template's instruction; None for one step."""
    combine: int = Field(default=1, ge=1, le=3)
    """Lines of the first step that are joined to one item, in [1, 3]."""

    @model_validator(mode="after")
    def _item_has_a_source(self) -> Kind:
        wanted, found = self.first is not None, "{item}" in self.template.instruction
        if wanted != found or (self.combine > 1 and not wanted):
            raise ValueError(
                f"first: got {'a' if wanted else 'no'} first step, {'an' if found else 'no'} {{item}} in the "
                f"instruction and combine {self.combine}, allowed are a first step with {{item}}, or neither"
            )
        return self

    def items(self, lines: Sequence[Implication]) -> tuple[str, ...]:
        """Return what fills `{item}`: the first step's lines, or all their combinations in order, joined by commas."""
        texts = tuple(dict.fromkeys(line.line.strip().rstrip(".;,") for line in lines))
        return tuple(", ".join(chosen) for chosen in combinations(texts, self.combine))

    def prompt(self, item: str = "") -> PromptTemplate:
        """Return the template of the last step, about an item where there is a first step."""
        return self.template.with_item(item) if self.first else self.template


@functools.cache
def kinds() -> Mapping[str, Kind]:
    """Return the kinds that ship, by name."""
    return MappingProxyType({file.stem: _read(file) for file in sorted(KINDS.glob("*.yaml"))})


def load_kind(name_or_path: str) -> Kind:
    """Return a kind that ships by its name, or one's own by its YAML file.

    Raises:
        ConfigError: There is neither, or the file has mistakes, which are listed.
    """
    if name_or_path in kinds():
        return kinds()[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"kind: got {name_or_path!r}{did_you_mean(name_or_path, kinds()) or '.'} Allowed are "
            f"{', '.join(kinds())}, or the path of a YAML file (docs/extending.md)"
        )
    return _read(path)


def _read(path: Path) -> Kind:
    try:
        found = read_yaml(str(path))
        if not isinstance(found, Mapping):
            raise ValueError(f"kind file {str(path)!r} must be a mapping, got {type(found).__name__}")
        first = found.get("first")
        if isinstance(first, Mapping):
            first = fields_of_kind(first, f"{path.stem}-first")
        fields = {key: found[key] for key in ("label", "form", "combine") if key in found}
        template = fields_of_kind(found, path.stem)
        return Kind.model_validate({"name": path.stem, **fields, "template": template, "first": first})
    except ValidationError as error:
        places = [(".".join(map(str, each["loc"])).removeprefix("template."), each) for each in error.errors()]
        mistakes = "; ".join(f"{place}{reason(each, Kind)}" for place, each in places)
        raise ConfigError(f"kind file {str(path)!r}: {mistakes}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def lines_of_kind(
    kind: Kind, completion: str, prompt: str = "", finish_reason: Literal["stop", "length"] = "stop"
) -> tuple[Implication, ...]:
    """Return the training lines in a completion; none where it has none.

    Args:
        kind: Says the form. Statements beside `questions` are left out.
        completion: What was written.
        prompt: What it continues; echoes of it are left out.
        finish_reason: With `length`, an incomplete last line or sentence is left out.
    """
    if kind.form == "text":
        texts = _paragraphs(completion, prompt, cut=finish_reason == "length")
        return tuple(Implication(text=text) for text in dict.fromkeys(texts))
    edit = parse_self_edit(completion, prompt=prompt, finish_reason=finish_reason).edit
    lines = edit.implications if edit else ()
    return tuple(line for line in lines if line.answer is not None or kind.form == "lines")


def _paragraphs(completion: str, prompt: str, *, cut: bool) -> Iterator[str]:
    """Yield the paragraphs of a text on one line each; headings, remarks to the reader and refusals are left out."""
    written = without_markup(without_thoughts(completion, prompt))[0]
    if cut and not is_terminated(written.rstrip()):
        ends = [match.end() for match in _SENTENCE_END.finditer(written)]
        written = written[: ends[-1] if ends else 0]
    for paragraph in _PARAGRAPH.split(written):
        texts = [" ".join(line.split()) for line in paragraph.splitlines() if line.strip()]
        while texts and isinstance(classify(texts[0], 0).kind, DropReason):
            texts = texts[1:]
        if texts:
            yield remove_bold(" ".join(texts))
