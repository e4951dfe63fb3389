"""What the base student answers before it has learned anything: whether it is asked in a form that it understands."""

from __future__ import annotations

from collections.abc import Iterator

from evaluation.exact_match import best_format, score_answers
from evaluation.retention import retention_probes
from pipelines.adapt_student.config import NightConfig
from pipelines.models import ModelRef, answer_format, open_student, tried_formats

_FEWEST_RIGHT = 0.05
_MOST_EMPTY = 0.5
"""Shares of the probes, in [0, 1], at which the base seems not to understand how it is asked."""

WEAK_BASE = (
    "the base student answers hardly any probe, so that they cannot show what a night forgets. Set student.format to "
    "the form that it expects (chat, few-shot or plain)."
)


def is_weak(right: int, empty: int, asked: int) -> bool:
    """Return whether a base answers so few probes that they cannot show what it forgets."""
    return bool(asked) and (right < _FEWEST_RIGHT * asked or empty > _MOST_EMPTY * asked)


def ask_base(config: NightConfig) -> Iterator[str]:
    """Yield for people how many probes the base answers in the night's form, and general questions in each form.

    Raises:
        ModelError: The student cannot be opened, or has no chat template and needs one.
        ScoringError: A probe cannot be scored.
    """
    probes = retention_probes(config.general, config.probes, config.seed_of("retention"))
    if not probes:
        return
    ref, wanted = ModelRef.of(config.student, config), config.student.format
    student = open_student(ref)
    scores = score_answers(student.model, student.tokenizer, probes, answer_format(config.student, ref))
    right, empty = sum(score.exact for score in scores), sum(score.empty for score in scores)
    yield f"The base student answers {right} of {len(probes)} probes; {empty} answers are empty."
    if is_weak(right, empty, len(probes)):
        tried = tried_formats(ref)
        forms = "; ".join(f"{name}: {each.right} of {each.asked}, {each.empty} empty" for name, each in tried.items())
        best = best_format(tried)
        advice = f"set student.format to {best}" if tried[best].right else "use another student, or other probes"
        yield f"Warning: {WEAK_BASE}"
        yield f"Now it is {wanted}. General questions answered by form: {forms}. Next step: {advice}."
