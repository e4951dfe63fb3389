"""Scores of the student without an update: computed once for each document and set of questions, and kept on disk.

They are no units of work: a document takes milliseconds, and documents come together anew in every round. Each has a
file in the work directory, named by content; a file that is missing, torn or not understood is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from evaluation.files import write_together
from evaluation.tasks import KnowledgeTask
from pipelines.config import QuestionSet
from pipelines.records import BankRecord
from pipelines.work import UpdateRequest, answer_settings, run_bank
from pipelines.workspace import Workspace


def base_scores(ws: Workspace, tasks: Sequence[KnowledgeTask], questions: QuestionSet) -> BankRecord:
    """Return the scores of the student without an update, in the order of the tasks.

    Only those that are not on disk are computed, together in one bank. The seconds are those that all of them took
    when they were computed, so that a resumed run reports the same.

    Args:
        ws: The run's workspace.
        tasks: What to ask about; ids are unique.
        questions: Which questions to ask.
    """
    places = {task.id: score_path(ws, task, questions) for task in tasks}
    found = {name: record for name, path in places.items() if (record := _read(path)) is not None}
    missing = [task for task in tasks if task.id not in found]
    if missing:
        made = run_bank(ws, [UpdateRequest(task.id, 0, None, 0) for task in missing], questions)
        seconds = made.seconds / len(missing)
        new = {r.document_id: BankRecord(replicates=(r,), seconds=seconds) for r in made.replicates}
        # A run that is killed between two of them would compute the rest again in another batch, which may round
        # otherwise; so all come to be together.
        write_together({places[name]: record.model_dump_json() for name, record in new.items()})
        found |= new
    # Documents of the same content share a file, whatever their ids.
    replicates = [found[task.id].replicates[0].model_copy(update={"document_id": task.id}) for task in tasks]
    return BankRecord(replicates=tuple(replicates), seconds=sum(found[task.id].seconds for task in tasks))


def score_path(ws: Workspace, task: KnowledgeTask, questions: QuestionSet) -> Path:
    """Return where the base student's scores on one document are, whether or not they were computed."""
    content = {
        "student": ws.student_digest,
        "format": ws.config.student.answer_format.model_dump(mode="json"),
        "task": task.digest,
        "questions": questions,
        "answers": answer_settings(ws.config, questions),
    }
    digest = ws.key("base", content).rsplit("/", 1)[1]
    return ws.work_dir / "base-scores" / f"{digest}.json"


def _read(path: Path) -> BankRecord | None:
    """Return the record of one document in a file, or None where there is none."""
    try:
        record = BankRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return record if len(record.replicates) == 1 else None
