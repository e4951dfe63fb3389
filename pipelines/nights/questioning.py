"""Questions for documents that came without any: written before the night, proved with the frozen student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluation.tasks import Split
from pipelines.inbox.question_writer import write_questions
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.nights.config import NightConfig
from pipelines.nights.plan import unasked
from pipelines.workspace import Workspace


def write_missing_questions(config: NightConfig, work_dir: Path, say: Callable[[str], None]) -> int:
    """Write questions for the documents of the inbox that have none, and return for how many some were kept.

    The teacher as it is writes them, not the champion: what rewards are measured with must not change with what earns
    them. They are stored with the document and reach no prompt.

    Args:
        config: Of the night; without `questions` nothing is written.
        work_dir: Of the inbox.
        say: Told of what was done.

    Raises:
        InboxError: The inbox cannot be read or written.
        GenerationError: The teacher's engine failed.
    """
    if config.questions is None:
        return 0
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        silent = unasked(inbox.documents(), {*inbox.aside(), *inbox.superseded()})
        if not silent:
            return 0
        with Workspace(config.as_run(), work_dir, Split((), (), ())) as ws:
            if ws.taught_locally:
                ws.at_policy(None)
            settings = config.questions.model_copy(update={"seed": ws.seed("questions")})
            tokenizer = ws.policy.tokenizer if settings.chat else None
            written = write_questions(silent, ws.sampler, ws.student, config.student.answer_format, settings, tokenizer)
        kept = [(document, found) for document, found in zip(silent, written, strict=True) if found.questions]
        for document, found in kept:
            inbox.put_questions(document.id, found.questions, found.held_out_questions)
    questions = sum(found.kept for _, found in kept)
    say(f"{questions} questions written for {len(kept)} of {len(silent)} documents without any")
    return len(kept)
