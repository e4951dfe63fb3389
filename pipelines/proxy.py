"""The proxy reward: what the student answers with a self-edit in its context and no update. No Prefect, no MLflow."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipelines.records import ProxyRecord
from pipelines.workspace import Workspace
from student.in_context import score_in_context
from student.scoring import ScoringFailure
from teacher.self_edit import SelfEdit


def score_edits(ws: Workspace, edits: Sequence[tuple[str, SelfEdit]]) -> ProxyRecord:
    """Return the gold answers' probabilities with each self-edit in the student's context, on the rewards' questions.

    Args:
        ws: The run's workspace.
        edits: Pairs of a document's id and a self-edit for it.
    """
    started = time.perf_counter()
    found = score_in_context(
        ws.student.model,
        ws.student.tokenizer,
        [in_words(edit) for _, edit in edits],
        [ws.tasks[name].questions for name, _ in edits],
        ws.config.student.answer_format,
    )
    return ProxyRecord(
        probabilities=tuple(
            None if isinstance(scores, ScoringFailure) else tuple(score.probability for score in scores)
            for scores in found
        ),
        seconds=time.perf_counter() - started,
    )


def in_words(edit: SelfEdit) -> str:
    """Return a self-edit as a text to read: its lines as sentences, one after another."""
    return " ".join(implication.line for implication in edit.implications)
