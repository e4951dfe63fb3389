"""What the micro models must be able to do, and must not know, before anything is learned with them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.answers import AnswerFormat, score_answers
from evaluation.checkpoints import Checkpoint, load_checkpoint
from evaluation.microworld.build import SHIPPED, Role
from evaluation.microworld.corpora import known_facts, teacher_prompt
from evaluation.microworld.lines import ALTERED, USEFUL, LineKind, classify_line
from evaluation.microworld.templates import PHRASINGS
from evaluation.microworld.world import Fact, WorldDocument, ask, draw_documents
from evaluation.tasks import Question

_SEED = 7
_DOCUMENTS = 24
_FACTS = 300
"""Most facts to ask for on each side of the known ones."""
_EDITS = 4
"""Sampled for each document."""
SAMPLING_TEMPERATURE = 1.0
"""At which the shipped configurations sample: what is learned from must be legible there."""


class Check(NamedTuple):
    """One measured property with the range it must be in."""

    what: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the value is in range, ends included."""
        return self.low <= self.value <= self.high


def run_checks(directory: Path, roles: Sequence[Role] = SHIPPED) -> list[Check]:
    """Return all checks of models, each in the directory with the name of its role, measured anew.

    Raises:
        ModelError: A checkpoint could not be opened.
    """
    documents = draw_documents("development", _DOCUMENTS, _SEED)
    models = {role: load_checkpoint(str(directory / role)) for role in roles}
    checks: list[Check] = []
    for role, model in models.items():
        if role == "teacher":
            checks += _teacher_checks(model, documents)
        else:
            checks += _student_checks(model, documents)
            # The small one only has to take facts in and tell them; reading passages never formed at its size.
            checks += [_reading_check(model, documents)] if role == "student" else []
    return checks


def _student_checks(student: Checkpoint, documents: Sequence[WorldDocument]) -> list[Check]:
    rng = random.Random(_SEED)
    questioned, prose_only = (rng.sample(facts, min(_FACTS, len(facts))) for facts in known_facts())
    new = [fact for document in documents for fact in document.sheet.facts]

    def accuracy(facts: Sequence[Fact], phrasing: str) -> float:
        return _accuracy(student, [ask(fact, phrasing) for fact in facts], AnswerFormat())

    return [
        Check("student answers on entities it saw questions about", accuracy(questioned, PHRASINGS[0]), 0.95, 1.0),
        Check("student answers on entities it only saw in prose", accuracy(prose_only, PHRASINGS[0]), 0.85, 1.0),
        Check("the same in the held-out phrasing", accuracy(prose_only, PHRASINGS[2]), 0.80, 1.0),
        Check("the same in a phrasing it never saw", accuracy(prose_only, PHRASINGS[3]), 0.40, 1.0),
        Check("student answers on new entities (chance is 0.04)", accuracy(new, PHRASINGS[0]), 0.0, 0.08),
    ]


def _reading_check(student: Checkpoint, documents: Sequence[WorldDocument]) -> Check:
    read = [
        _accuracy(student, [ask(f, PHRASINGS[0]) for f in d.sheet.facts], AnswerFormat(prompt=_passage_prompt(d)))
        for d in documents
    ]
    return Check("student reads answers on new entities from the passage", sum(read) / len(read), 0.85, 1.0)


def _passage_prompt(document: WorldDocument) -> str:
    return f"Passage: {document.task.document.text}\nQuestion: {{question}}\nAnswer:"


def _accuracy(model: Checkpoint, questions: Sequence[Question], answer_format: AnswerFormat) -> float:
    scores = score_answers(model.model, model.tokenizer, questions, answer_format)
    return sum(score.exact for score in scores) / len(scores)


def _teacher_checks(teacher: Checkpoint, documents: Sequence[WorldDocument]) -> list[Check]:
    bound = [
        _accuracy(
            teacher,
            [ask(fact, PHRASINGS[0]) for fact in document.sheet.facts],
            AnswerFormat(
                prompt=f"{teacher_prompt(document.task.document.text, 'self-qa')}- Question: {{question}} Answer:"
            ),
        )
        for document in documents
    ]
    written = _written_kinds(teacher, documents)
    kinds, total = written.kinds, written.kinds.total()
    altered = sum(kinds[LineKind(kind)] for kind in ALTERED) / total
    return [
        Check("teacher copies unseen names correctly, share of lines", written.copied, 0.95, 1.0),
        Check("teacher's likeliest value is the right one", sum(bound) / len(bound), 0.90, 1.0),
        Check("untrained teacher: useful lines", sum(kinds[kind] for kind in USEFUL) / total, 0.15, 0.45),
        Check("untrained teacher: copies of the passage", kinds[LineKind.COPY] / total, 0.05, 0.35),
        Check("untrained teacher: nameless lines", kinds[LineKind.ANONYMOUS] / total, 0.05, 0.35),
        Check("untrained teacher: filler", kinds[LineKind.FILLER] / total, 0.05, 0.35),
        Check("untrained teacher: swapped or wrong values", altered, 0.10, 0.50),
        Check("untrained teacher: broken lines", kinds[LineKind.BROKEN] / total, 0.0, 0.10),
    ]


class _Written(NamedTuple):
    """What a teacher writes about documents."""

    kinds: Counter[LineKind]
    copied: float
    """Share of the lines about an entity that name one of the passage, in [0, 1]."""


def _written_kinds(teacher: Checkpoint, documents: Sequence[WorldDocument]) -> _Written:
    """Return what lines a teacher writes, and how many of them name an entity of the passage."""
    copied = named = 0
    kinds: Counter[LineKind] = Counter()
    for document, text in _sampled_edits(teacher, documents):
        for line in (line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()):
            kind = classify_line(line, document.sheet).kind
            kinds[kind] += 1
            if kind not in (LineKind.ANONYMOUS, LineKind.FILLER):
                named += 1
                copied += any(name in line for name in document.sheet.names)
    return _Written(kinds, copied / max(1, named))


def _sampled_edits(teacher: Checkpoint, documents: Sequence[WorldDocument]) -> list[tuple[WorldDocument, str]]:
    """Return some edits of each document."""
    import torch

    prompts = [teacher_prompt(d.task.document.text, "implications") for d in documents for _ in range(_EDITS)]
    tokenizer: Any = teacher.tokenizer
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        written = teacher.model.generate(
            **encoded, do_sample=True, temperature=SAMPLING_TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=150
        )
    texts = tokenizer.batch_decode(written[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return [(documents[i // _EDITS], text) for i, text in enumerate(texts)]
