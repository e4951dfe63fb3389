"""Checks of the micro models: what they must be able to do, and must not know, before anything is learned with them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.common.checkpoints import Checkpoint, load_checkpoint
from evaluation.exact_match import AnswerFormat, score_answers
from evaluation.microworld.build import SHIPPED, Role
from evaluation.microworld.texts import ALTERED, USEFUL, LineKind, classify_line, teacher_prompt
from evaluation.microworld.world import PHRASINGS, Fact, WorldDocument, ask, draw_documents, known_facts
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
    checks: list[Check] = []
    for role in roles:
        model = load_checkpoint(str(directory / role))
        if role == "teacher":
            checks += _teacher_checks(model, documents)
        else:
            checks += _student_checks(model, documents)
            # The small one only has to take facts in; reading passages never formed at its size.
            checks += [_reading_check(model, documents)] if role == "student" else []
    return checks


def sampled(teacher: Checkpoint, prompts: Sequence[str], longest: int) -> list[str]:
    """Return a text of a teacher after each prompt, of at most so many tokens."""
    import torch

    tokenizer: Any = teacher.tokenizer
    encoded = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        ids = teacher.model.generate(
            **encoded, do_sample=True, temperature=SAMPLING_TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=longest
        )
    texts: list[str] = tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def accuracy(model: Checkpoint, questions: Sequence[Question], answer_format: AnswerFormat) -> float:
    """Return the share of questions that a model answers, in [0, 1]."""
    scores = score_answers(model.model, model.tokenizer, questions, answer_format)
    return sum(score.exact for score in scores) / len(scores)


def _facts_known(model: Checkpoint, facts: Sequence[Fact], phrasing: str, prompt: str | None = None) -> float:
    answer_format = AnswerFormat() if prompt is None else AnswerFormat(prompt=prompt)
    return accuracy(model, [ask(fact, phrasing) for fact in facts], answer_format)


def _student_checks(student: Checkpoint, documents: Sequence[WorldDocument]) -> list[Check]:
    rng = random.Random(_SEED)
    questioned, prose_only = (rng.sample(facts, min(_FACTS, len(facts))) for facts in known_facts())
    new = [fact for document in documents for fact in document.sheet.facts]
    asked, _, held_out, unseen = PHRASINGS
    checks = (
        ("student answers on entities it saw questions about", questioned, asked, 0.95, 1.0),
        ("student answers on entities it only saw in prose", prose_only, asked, 0.85, 1.0),
        ("the same in the held-out phrasing", prose_only, held_out, 0.80, 1.0),
        ("the same in a phrasing it never saw", prose_only, unseen, 0.40, 1.0),
        ("student answers on new entities (chance is 0.04)", new, asked, 0.0, 0.08),
    )
    return [
        Check(what, _facts_known(student, facts, phrasing), low, high) for what, facts, phrasing, low, high in checks
    ]


def _reading_check(student: Checkpoint, documents: Sequence[WorldDocument]) -> Check:
    read = [
        _facts_known(
            student, d.sheet.facts, PHRASINGS[0], f"Passage: {d.task.document.text}\nQuestion: {{question}}\nAnswer:"
        )
        for d in documents
    ]
    return Check("student reads answers on new entities from the passage", sum(read) / len(read), 0.85, 1.0)


def _teacher_checks(teacher: Checkpoint, documents: Sequence[WorldDocument]) -> list[Check]:
    bound = [
        _facts_known(
            teacher,
            d.sheet.facts,
            PHRASINGS[0],
            f"{teacher_prompt(d.task.document.text, 'self-qa')}- Question: {{question}} Answer:",
        )
        for d in documents
    ]
    kinds, copied = _written(teacher, documents)

    def share(*of: LineKind) -> float:
        return sum(kinds[kind] for kind in of) / kinds.total()

    return [
        Check("teacher copies unseen names correctly, share of lines", copied, 0.95, 1.0),
        Check("teacher's likeliest value is the right one", sum(bound) / len(bound), 0.90, 1.0),
        Check("untrained teacher: useful lines", share(*USEFUL), 0.15, 0.45),
        Check("untrained teacher: copies of the passage", share(LineKind.COPY), 0.05, 0.35),
        Check("untrained teacher: nameless lines", share(LineKind.ANONYMOUS), 0.05, 0.35),
        Check("untrained teacher: filler", share(LineKind.FILLER), 0.05, 0.35),
        Check("untrained teacher: swapped or wrong values", share(*ALTERED), 0.10, 0.50),
        Check("untrained teacher: broken lines", share(LineKind.BROKEN), 0.0, 0.10),
    ]


def _written(teacher: Checkpoint, documents: Sequence[WorldDocument]) -> tuple[Counter[LineKind], float]:
    """Return the kinds of a teacher's lines, and the share of those about an entity that name one of the passage."""
    of_texts = [document for document in documents for _ in range(_EDITS)]
    prompts = [teacher_prompt(document.task.document.text, "implications") for document in of_texts]
    kinds: Counter[LineKind] = Counter()
    copied = named = 0
    for document, text in zip(of_texts, sampled(teacher, prompts, 150), strict=True):
        for line in (line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()):
            kind = classify_line(line, document.sheet).kind
            kinds[kind] += 1
            if kind not in (LineKind.ANONYMOUS, LineKind.FILLER):
                named += 1
                copied += any(name in line for name in document.sheet.names)
    return kinds, copied / max(1, named)
