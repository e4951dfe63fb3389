"""Documents from SQuAD v1.1 (arXiv 1606.05250): a document is a paragraph, under its article's title.

Two forms, told apart by the top level:
- official: `{"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}`;
- regrouped by paragraph: `[{"title", "context", "questions": [{"question", "answer"}]}]`, with an optional `id`.

The first of several answers is the gold one. Other keys (`version`, `answer_start`, question ids) are ignored, as the
format has them. Repeats are kept: SQuAD's development set asks 35 questions twice about the same paragraph, and its
published count of 10,570 includes them; a repeated paragraph is a document of its own with the same digest, which
splits keep on one side.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from evaluation.data_config import SquadData
from evaluation.errors import InputError
from evaluation.loaders.files import JsonSyntaxError, parse_json, read_data_file
from evaluation.loaders.intake import Intake, sample_documents
from evaluation.loaders.rows import Content, DocumentRow, Label, Phrase, QuestionRow
from evaluation.tasks import KnowledgeTask


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Answer(_Lenient):
    text: Phrase


class _OfficialQuestion(_Lenient):
    question: Phrase
    answers: list[_Answer] = Field(min_length=1)


class _Paragraph(_Lenient):
    context: Content
    qas: list[_OfficialQuestion] = Field(min_length=1)


class _Article(_Lenient):
    title: Label | None = None
    paragraphs: list[_Paragraph] = Field(min_length=1)


class _Official(_Lenient):
    data: list[_Article] = Field(min_length=1)


class _RegroupedQuestion(_Lenient):
    question: Phrase
    answer: Phrase


class _Regrouped(_Lenient):
    id: Content | None = None
    title: Label | None = None
    context: Content
    questions: list[_RegroupedQuestion] = Field(min_length=1)


_OFFICIAL = TypeAdapter(_Official)
_REGROUPED = TypeAdapter(list[_Regrouped])


def load_squad(config: SquadData) -> tuple[KnowledgeTask, ...]:
    """Return the tasks of a SQuAD file: all in its order, or `max_documents` of them after a seeded shuffle.

    Raises:
        InputError: The file cannot be read, is in neither form, or has bad rows; the message lists all of them by
            JSON path.
    """
    try:
        raw = parse_json(read_data_file(config.path))
    except JsonSyntaxError as error:
        raise InputError(f"{config.path}: {error}. Nothing was loaded; correct the file and run again.") from error
    intake = Intake(str(config.path))
    if isinstance(raw, dict) and "data" in raw:
        _take_official(intake, raw)
    elif isinstance(raw, list):
        _take_regrouped(intake, raw)
    else:
        raise InputError(
            f"{config.path}: not SQuAD: the top level must be an object with 'data' (the official form) or a list of "
            "objects with 'context' and 'questions'. A file with one object a line is data.type 'jsonl'."
        )
    return sample_documents(intake.tasks(), config)


def _take_official(intake: Intake, raw: dict[str, object]) -> None:
    whole = intake.parse_whole(_OFFICIAL, raw)
    for a, article in enumerate(whole.data if whole else ()):
        for p, paragraph in enumerate(article.paragraphs):
            questions = [QuestionRow(question=qa.question, answer=qa.answers[0].text) for qa in paragraph.qas]
            row = DocumentRow(title=article.title, text=paragraph.context, questions=questions)
            intake.add(f"data[{a}].paragraphs[{p}]", row)


def _take_regrouped(intake: Intake, raw: list[object]) -> None:
    for i, item in enumerate(raw):
        if isinstance(item, dict):
            intake.claim_id(f"[{i}]", item.get("id"))
    items = intake.parse_whole(_REGROUPED, raw)
    for i, item in enumerate(items or ()):
        questions = [QuestionRow(question=asked.question, answer=asked.answer) for asked in item.questions]
        intake.add(f"[{i}]", DocumentRow(id=item.id, title=item.title, text=item.context, questions=questions))
